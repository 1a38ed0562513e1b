"""docs/nemo.md and the files beside it say what the recipes, the settings and the code say."""

import json
import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from agent_rft.cli import parser
from agent_rft.commands.parts import layout_of
from agent_rft.compose import recipes, settings_for
from agent_rft.training.nemo import find
from agent_rft.training.nemo.placement import missing_resources

ROOT = Path(__file__).resolve().parents[1]
DOC = (ROOT / "docs/nemo.md").read_text()
CONTAINER, SLURM = ROOT / "docs/nemo/container.sh", ROOT / "docs/nemo/slurm.sh"
MANIFEST = yaml.safe_load((ROOT / "docs/nemo/raycluster.yaml").read_text())
IMAGE = f"nvcr.io/nvidia/nemo-rl:v{find.VERSION}"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TWO_NODES = layout_of(settings_for("research_70b_2node", []))


@pytest.mark.parametrize("script", [CONTAINER, SLURM], ids=lambda script: script.name)
def test_scripts_are_bash(script: Path):
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- KubeRay ----------------------------------------------------------------------------------------------------------


def groups(manifest: dict) -> list[dict]:
    """Head and workers, a group as often as it has pods."""
    spec = manifest["spec"]
    return [spec["headGroupSpec"], *(group for group in spec["workerGroupSpecs"] for _ in range(group["replicas"]))]


def nodes(pods: list[dict]) -> list[dict]:
    """As ray.nodes() would answer once KubeRay has run `ray start` with these parameters."""
    answer = []
    for pod in pods:
        start = pod["rayStartParams"]
        marks = json.loads(json.loads(start["resources"].strip("'"))) if "resources" in start else {}
        answer.append({"Alive": True, "Resources": {"GPU": float(start["num-gpus"]), **marks}})
    return answer


def test_the_manifest_has_all_that_the_recipe_asks_of_ray():
    assert missing_resources(TWO_NODES, nodes(groups(MANIFEST))) == []


@pytest.mark.parametrize("without", [0, 1, 2])
def test_and_not_a_pod_more_than_it_needs(without: int):
    pods = groups(MANIFEST)
    assert missing_resources(TWO_NODES, nodes(pods[:without] + pods[without + 1 :]))
    assert len(pods) == TWO_NODES.cluster.nodes + 1


def test_each_pod_is_given_the_gpus_that_ray_is_told_of_and_the_image_of_this_nemo_rl():
    for pod in groups(MANIFEST):
        [container] = pod["template"]["spec"]["containers"]
        gpus = int(pod["rayStartParams"]["num-gpus"])
        assert container["resources"]["limits"]["nvidia.com/gpu"] == container["resources"]["requests"]["nvidia.com/gpu"] == gpus
        assert container["image"] == IMAGE
        assert container["args"] == ["bash /shared/agent-rft/docs/nemo/container.sh"]


def test_the_manifest_names_the_ray_of_nemo_rl():
    assert f"ray>={MANIFEST['spec']['rayVersion']}" in PYPROJECT["optional-dependencies"]["nemo"]


# --- Slurm ------------------------------------------------------------------------------------------------------------


def test_the_job_asks_slurm_for_the_nodes_of_the_recipe_and_one_gpu_more():
    training, reference = (dict(re.findall(r"#SBATCH --([a-z-]+)=(\S+)", part)) for part in SLURM.read_text().split("#SBATCH hetjob"))
    assert (int(training["nodes"]), int(training["gpus-per-node"])) == (TWO_NODES.cluster.nodes, TWO_NODES.cluster.gpus_per_node)
    assert (reference["nodes"], reference["gpus-per-node"]) == ("1", "1")
    assert f"GPUS={TWO_NODES.cluster.gpus + 1} " in SLURM.read_text()


def test_the_job_tells_ray_of_them(tmp_path: Path):
    """Run with commands that only say how they were called, in place of Slurm's, Ray's and Python's."""
    (tmp_path / "docs/nemo").mkdir(parents=True)
    (tmp_path / "docs/nemo/container.sh").write_text("")
    fakes = {
        "scontrol": "echo first; sleep 0.2; echo second",  # a reader that left after the first line would fail it
        "srun": f'while [ "$1" != bash ]; do echo "srun $1" >> {tmp_path}/said; shift; done; exec "$@"',
        "ray": f'echo "ray $*" >> {tmp_path}/said',
        "python": "exit 0",
        "rft": f'echo "rft $*" >> {tmp_path}/said; exit 3',
    }
    for name, body in fakes.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HF_HOME": "/models", "SLURM_JOB_NODELIST_HET_GROUP_0": "x"}
    done = subprocess.run(["bash", SLURM], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3, done.stderr  # that of the run itself
    said = (tmp_path / "said").read_text().splitlines()
    for line in (
        f"ray start --head --port=6379 --num-gpus={TWO_NODES.cluster.gpus_per_node}",
        f"ray start --address=first:6379 --num-gpus={TWO_NODES.cluster.gpus_per_node} --block",
        f'ray start --address=first:6379 --num-gpus=1 --resources={{"{TWO_NODES.reference.resource}": 1}} --block',
        "rft train research_70b_2node",
        f"srun --container-image={IMAGE.replace('/', '#', 1)}",
    ):
        assert line in said, said


# --- the container ----------------------------------------------------------------------------------------------------


def test_the_container_is_given_light_packages_of_ours_alone():
    given = re.findall(r'"([a-z]+[<>=][^"]*)"', CONTAINER.read_text())
    assert given
    assert set(given) <= set(PYPROJECT["dependencies"])


def test_our_megatron_worker_has_the_environment_that_is_looked_for_under_its_name():
    source = (ROOT / "agent_rft/training/nemo/launch.py").read_text()
    [worker] = re.findall(r'ADAPTER_OFF_WORKER = "(.*)"', source)
    assert f"/{worker}" in CONTAINER.read_text()


# --- the page ---------------------------------------------------------------------------------------------------------


def commands() -> list[str]:
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", DOC, re.DOTALL | re.MULTILINE)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith(("rft ", "make "))] + re.findall(
        r"`(rft (?:train|prior|plan) research\S*(?: \S+=\S+)*)`", DOC
    )


@pytest.mark.parametrize("command", commands())
def test_every_command_is_one_that_exists_and_its_settings_compose(command: str):
    words = shlex.split(command)
    if words[0] == "make":
        subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, check=True, capture_output=True)
        return
    parser().parse_args(words[1:])
    if words[2] in recipes():
        settings_for(words[2], words[3:])


def test_the_recipes_of_nemo_rl_are_all_there():
    of_nemo = {recipe for recipe in recipes() if settings_for(recipe, []).backend.name == "nemo"}
    assert set(re.findall(r"^\| `(research\w+)` \|", DOC, re.MULTILINE)) == of_nemo


def test_every_patch_is_told():
    source = (ROOT / "agent_rft/training/nemo/compat_v0_7_0.py").read_text()
    patched = re.findall(r'where=(?:grpo \+ )?"(?:[\w.]+:)?(\w+)"', source) + re.findall(r'"(run_\w+_rollout)"', source)
    assert len(patched) == 8
    table = DOC.partition("## What is replaced in NeMo RL")[2].partition("\n## ")[0]
    assert [name for name in patched if name not in table] == []


def test_every_check_of_the_preflight_is_told():
    source = (ROOT / "agent_rft/commands/preflight.py").read_text()
    checks = re.findall(r'^        "([a-z ]+)": _\w+,$', source, re.MULTILINE)
    table = DOC.partition("## Before anything is started")[2].partition("\n## ")[0]
    assert re.findall(r"^\| ([a-z ]+) \| (?!passes when)", table, re.MULTILINE) == checks


def test_links_lead_somewhere():
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", DOC)]
    assert [target for target in targets if target and not (ROOT / "docs" / target).exists()] == []


@pytest.mark.nemo
@pytest.mark.skipif("NEMO_RL_SRC" not in os.environ, reason="its converters come with a checkout: set NEMO_RL_SRC")
def test_the_converters_take_the_arguments_that_are_named():
    lines = re.findall(r"python (examples/converters/\w+\.py) (.*)", DOC)
    assert len(lines) == 2
    for script, arguments in lines:
        source = (Path(os.environ["NEMO_RL_SRC"]) / script).read_text()
        asked = [line for line in source.splitlines() if line.strip().startswith('"--')]
        assert [flag for flag in re.findall(r"--[a-z-]+", arguments) if not any(f'"{flag}"' in line for line in asked)] == []
