#!/bin/bash
# research_70b_2node under Slurm with pyxis: two nodes train and roll out, one GPU elsewhere holds the reference.
# From this repository's root, which all nodes must see under the same path:
#   HF_HOME=/shared/huggingface sbatch docs/nemo/slurm.sh
# COMMAND says what is run; `rft prior research_70b_2node` comes first.
#SBATCH --job-name=agent-rft
#SBATCH --time=24:00:00
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH hetjob
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
set -euo pipefail

IMAGE=${IMAGE:-nvcr.io#nvidia/nemo-rl:v0.7.0}
export COMMAND=${COMMAND:-rft train research_70b_2node}
export HF_HOME=${HF_HOME:?a folder for models that all nodes see}
export RAY_AUTH_MODE=disabled # as the driver has it
export GPUS=17                # of the whole job; the driver waits until Ray has them

NODES=$(scontrol show hostnames "$SLURM_JOB_NODELIST_HET_GROUP_0")
HEAD=${NODES%%$'\n'*}
export HEAD

in_container() {
  srun --cpu-bind=none --no-container-mount-home --container-image="$IMAGE" \
    --container-mounts="$PWD:$PWD,$HF_HOME:$HF_HOME" --container-workdir="$PWD" "$@"
}

join='bash docs/nemo/container.sh
until ray health-check --address "$HEAD:6379"; do sleep 5; done'
in_container --het-group=0 --nodes=1 --ntasks=1 --exclude="$HEAD" bash -c "$join
ray start --address=\"\$HEAD:6379\" --num-gpus=8 --block" &
in_container --het-group=1 --nodes=1 --ntasks=1 bash -c "$join
ray start --address=\"\$HEAD:6379\" --num-gpus=1 --resources='{\"reference_gpu\": 1}' --block" &

in_container --het-group=0 --nodes=1 --ntasks=1 --nodelist="$HEAD" bash -c '
bash docs/nemo/container.sh
ray start --head --port=6379 --num-gpus=8
until python -c "import os, ray; ray.init(\"auto\"); exit(ray.cluster_resources().get(\"GPU\", 0) < int(os.environ[\"GPUS\"]))"; do sleep 5; done
$COMMAND
code=$?
ray stop
exit $code'
