"""What this machine would have once Ray is started on it, and what is said to be missing there."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from nemo_jobs import job_and_layout

from agent_rft.contracts.layouts import Layout
from agent_rft.training.nemo.machines import nodes_of
from agent_rft.training.nemo.placement import missing_resources

ROOT = Path(__file__).resolve().parents[3]


def layout_of(recipe: str, *overrides: str) -> Layout:
    return job_and_layout(recipe, *overrides)[1]


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch):
    """What is missing on a machine of so many GPUs, by the keys that name it."""

    def missing(gpus: int, *overrides: str, recipe: str = "research_70b") -> dict[str, str]:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        layout = layout_of(recipe, *overrides)
        return {fault.where: fault.what for fault in missing_resources(layout, nodes_of(layout))}

    return missing


NO_REFERENCE = "this machine has {} GPUs: beside the policy's 8 none is left for the reference"


def test_nine_gpus_do_for_eight_that_train_and_a_reference(missing):
    assert missing(9) == {}


def test_of_eight_none_is_left_for_the_reference(missing):
    """All eight train; no one is told that seven of them would."""
    assert missing(8) == {"reference.resource": NO_REFERENCE.format(8)}


def test_without_gpus_both_are_missing(missing):
    assert missing(0) == {
        "cluster": "1 node(s) of 8 GPUs are asked for beside the reference's, and this machine has 0 GPUs",
        "reference.resource": NO_REFERENCE.format(0),
    }


def test_eight_do_where_the_policy_is_its_own_reference(missing):
    alone = ("reference=adapter_off",)
    assert missing(8, *alone) == {}
    assert missing(7, *alone) == {"cluster": "1 node(s) of 8 GPUs are asked for, and this machine has 7 GPUs"}


def test_one_machine_is_not_two(missing):
    """However many GPUs it has: Ray would be started on this one alone."""
    said = missing(16, "cluster.address=null", recipe="research_70b_2node")["cluster"]
    assert said == "2 node(s) of 8 GPUs are asked for beside the reference's, and this machine has 16 GPUs"


def test_a_machine_of_its_own_has_both_ways_out(monkeypatch: pytest.MonkeyPatch):
    """Ray was not asked, and no head runs to which anything could be joined."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    layout = layout_of("research_70b")
    policy, reference = (fault.cure for fault in missing_resources(layout, nodes_of(layout)))
    for cure in (policy, reference):
        assert cure.startswith("run it on one machine with 9 GPUs, or `ray start --head --port=6379 --num-gpus=8` on the machine")
        assert "then cluster.address=auto" in cure
    assert """--num-gpus=1 --resources='{"reference_gpu": 1}'""" in reference
    layout = layout_of("research_70b_2node", "cluster.address=null")
    two = missing_resources(layout, nodes_of(layout))[0].cure
    assert "`ray start --head --port=6379 --num-gpus=8`" in two and "`ray start --address=HEAD:6379 --num-gpus=8` on the other 1" in two


def test_workers_on_the_cpu_miss_nothing(missing):
    assert missing(0, recipe="research_tiny_nemo") == {}


def nodes_at(address: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: Ray keeps to the cluster that it has found."""
    code = (
        "import msgspec\nfrom agent_rft.contracts.errors import UserError\nfrom agent_rft.contracts.layouts import Cluster, Layout\n"
        "from agent_rft.training.nemo.machines import nodes_of\n"
        f"try: print(len(nodes_of(Layout(cluster=Cluster(address={address!r})))), 'nodes')\nexcept UserError as error: print(error)"
    )
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.nemo
@pytest.mark.parametrize("address", ["127.0.0.1:9", "127.0.0.1:gcs"])
def test_a_cluster_that_does_not_answer_is_named_with_the_key(address: str):
    done = nodes_at(address)
    assert done.stdout.startswith(f"no Ray cluster answers at cluster.address={address}: "), done.stdout + done.stderr
    assert "ray start --head" in done.stdout


@pytest.mark.nemo
def test_something_else_that_listens_there_is_no_cluster_and_ray_says_nothing_of_it():
    with socket.create_server(("0.0.0.0", 0)) as listening:
        address, began = f"127.0.0.1:{listening.getsockname()[1]}", time.monotonic()
        done = nodes_at(address)
    assert done.stdout.startswith(f"no Ray cluster answers at cluster.address={address}: what listens there did not answer as Ray does")
    assert done.stderr == "" and time.monotonic() - began < 55


@pytest.mark.nemo
def test_a_cluster_that_answers_is_asked(ray_here):
    import ray

    assert nodes_at(ray.get_runtime_context().gcs_address).stdout == "1 nodes\n"
