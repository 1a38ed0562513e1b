"""Whether a Ray cluster has what a layout asks of it, from what Ray says of its nodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agent_rft.contracts.errors import Fault
from agent_rft.contracts.layouts import Layout

WHERE = "cluster"


def missing_resources(layout: Layout, nodes: Sequence[Mapping[str, Any]]) -> list[Fault]:
    """What is missing. `nodes`: what ray.nodes() answers."""
    if layout.workers == "cpu":
        return []
    alive = [dict[str, float](node["Resources"]) for node in nodes if node["Alive"]]
    resource = layout.reference.resource
    marked = [has for has in alive if resource in has]
    others = [has for has in alive if resource not in has] if layout.reference.dedicated else alive
    faults = list(_policy_faults(layout, others))
    if layout.reference.dedicated:
        faults += _reference_faults(resource, marked, attached(layout))
    return faults


def _policy_faults(layout: Layout, nodes: Sequence[Mapping[str, float]]) -> Iterator[Fault]:
    wanted, each = layout.cluster.nodes, layout.cluster.gpus_per_node
    found = sum(has.get("GPU", 0) >= each for has in nodes)
    if found < wanted:
        beside = " beside the reference's" if layout.reference.dedicated else ""
        yield Fault(
            WHERE,
            f"{wanted} node(s) of {each} GPUs are asked for{beside}, and Ray has {found}",
            f"on each machine that is missing: ray start --address=HEAD:6379 --num-gpus={each}{attached(layout)}",
        )


def attached(layout: Layout) -> str:
    """Without an address a Ray of the run's own is started on this machine alone."""
    return "" if layout.cluster.address else "; and name the cluster with cluster.address=auto"


def _reference_faults(resource: str, marked: Sequence[Mapping[str, float]], attach: str) -> Iterator[Fault]:
    start = f"ray start --address=HEAD:6379 --num-gpus=1 --resources='{{\"{resource}\": 1}}'{attach}"
    if not marked:
        yield Fault("reference.resource", f"no Ray node has the resource {resource}", f"on the reference's machine: {start}")
    elif not any(has.get("GPU", 0) >= 1 for has in marked):
        yield Fault("reference.resource", f"the Ray node with the resource {resource} has no GPU", f"start it anew: {start}")
