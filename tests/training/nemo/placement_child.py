"""A Ray cluster of two machines that are none, 8 GPUs and 1 that are none, in a process of its own: where the policy and each
kind of reference come to lie. Prints one line of JSON."""

import json
import os
import sys
import tempfile
from pathlib import Path

from agent_rft.training.nemo import find

FOLDER = Path(__file__).parent
os.environ["NEMO_RL_PY_EXECUTABLES_SYSTEM"] = "1"  # NeMo RL's way of saying: build no environments
sys.path += [str(FOLDER), str(FOLDER.parent / "local")]
os.environ["PYTHONPATH"] = os.pathsep.join([str(FOLDER / "stand_in"), os.environ.get("PYTHONPATH", "")])
os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # Ray believes it before what it is told
find.prepare()

import policy_world as here  # noqa: E402
import ray  # noqa: E402
from nemo_rl.distributed.virtual_cluster import RayVirtualCluster  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402
from ray.util.placement_group import placement_group_table  # noqa: E402

from agent_rft.contracts.layouts import Cluster as Machines  # noqa: E402
from agent_rft.contracts.layouts import Layout, Reference  # noqa: E402
from agent_rft.training.nemo import machines  # noqa: E402
from agent_rft.training.nemo.placement import missing_resources  # noqa: E402
from agent_rft.training.nemo.reference import VllmReference, gpu_cluster  # noqa: E402

LAYOUT = Layout(
    cluster=Machines(address="auto", gpus_per_node=8), reference=Reference(engine="dedicated_vllm", weights="fp8", resource="apart")
)


def nodes_of(virtual) -> list[str]:
    table = placement_group_table(virtual.get_placement_groups()[0])
    return sorted(table["bundles_to_node_id"].values())


def main(base: str, folder: str) -> None:
    """`folder`: for what Ray keeps in files, so that a Ray that runs beside this one is not found in it."""
    head = {"num_cpus": 16, "num_gpus": 8, "include_dashboard": False, "temp_dir": folder}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    ray.init(address=cluster.address, log_to_driver=False)
    lacking = [str(fault) for fault in missing_resources(LAYOUT, ray.nodes())]
    apart = cluster.add_node(num_cpus=4, num_gpus=1, resources={"apart": 1})
    cluster.wait_for_nodes()
    complete = [str(fault) for fault in missing_resources(LAYOUT, machines.nodes_of(LAYOUT))]
    reference = gpu_cluster("apart")
    policy = RayVirtualCluster([8], use_gpus=True, num_gpus_per_node=8, max_colocated_worker_groups=2, name="grpo_policy_cluster")
    said = {"lacking": lacking, "complete": complete, "apart": apart.node_id}
    said |= {"reference": nodes_of(reference), "policy": nodes_of(policy)}
    said["taken"] = [str(fault) for fault in missing_resources(LAYOUT, machines.nodes_of(LAYOUT))]
    reference.shutdown()
    scorer = VllmReference(LAYOUT.reference, base, longest=40, temperature=1.0)
    said["vllm"] = ray.get(scorer._scorer.__ray_call__.remote(lambda self: ray.get_runtime_context().get_node_id()))
    said["scored"] = scorer.logprobs(here.make_batch(base, rows=3), 1).tolist()
    scorer.shutdown()
    ray.shutdown()
    cluster.shutdown()
    print(json.dumps(said))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:  # a short path: sockets lie in it
        main(sys.argv[1], folder)
