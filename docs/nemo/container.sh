#!/bin/bash
# Adds agent-rft to NVIDIA's container of NeMo RL v0.7.0. Run it in each container before Ray is started there.
# Only what that container lacks is installed; of what it has, nothing moves but rich and SQLAlchemy.
set -euo pipefail
cd "$(dirname "$0")/../.."

python=${UV_PROJECT_ENVIRONMENT:-/opt/nemo_rl_venv}/bin/python
"$python" -m pip list --format=freeze | grep -viE '^(rich|sqlalchemy|agent-rft)=' > /tmp/as-it-is.txt
"$python" -m pip install --no-deps --editable .
"$python" -m pip install --constraint /tmp/as-it-is.txt \
  "litestar>=2.20" "structlog>=25.5" "uvloop>=0.22" "httptools>=0.7" "sqlalchemy>=2.1,<2.2" "rich>=14"

# Our Megatron worker (reference=adapter_off) runs in the environment of NeMo RL's own, which is in the image already.
environments=${NEMO_RL_VENV_DIR:-/opt/ray_venvs}
ln -sfn "$environments/nemo_rl.models.policy.workers.megatron_policy_worker.MegatronPolicyWorker" \
  "$environments/agent_rft.training.nemo.megatron_worker.AdapterOffWorker"
