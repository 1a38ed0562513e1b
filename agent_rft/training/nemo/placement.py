"""Whether the machines have what a layout asks of them, from what Ray, or this machine, says of its nodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from agent_rft.contracts.errors import Fault
from agent_rft.contracts.layouts import Layout

WHERE, REFERENCE = "cluster", "reference.resource"
WAIT = "wait until it has ended; `ray status` says what is taken"


class Machine(msgspec.Struct, frozen=True):
    """A node that is up."""

    marked: bool
    """It has the resource that marks the reference's machine."""
    gpus: float
    free: float
    """GPUs that nobody holds."""


def missing_resources(layout: Layout, nodes: Sequence[Mapping[str, Any]]) -> list[Fault]:
    """What is missing, or there and taken. `nodes`: what ray.nodes() answers, with what is free under Available; without that
    everything is."""
    if layout.workers == "cpu":
        return []
    machines = [_machine(node, layout.reference.resource) for node in nodes if node["Alive"]]
    if not layout.cluster.address:
        return list(_faults_of_this_machine(layout, int(sum(machine.gpus for machine in machines))))
    if not layout.reference.dedicated:
        return list(_policy_faults(layout, machines))
    others, marked = ([machine for machine in machines if machine.marked == side] for side in (False, True))
    return [*_policy_faults(layout, others), *_reference_faults(layout.reference.resource, marked)]


def _machine(node: Mapping[str, Any], resource: str) -> Machine:
    """Ray leaves out a resource of which nothing is free."""
    has: Mapping[str, float] = node["Resources"]
    free: Mapping[str, float] = node.get("Available", has)
    return Machine(resource in has, has.get("GPU", 0), free.get("GPU", 0))


def _faults_of_this_machine(layout: Layout, gpus: int) -> Iterator[Fault]:
    """Without an address a Ray of the run's own is started on this machine alone, and it may do for policy and reference."""
    wanted, each = layout.cluster.nodes, layout.cluster.gpus_per_node
    needed = layout.cluster.gpus + layout.reference.dedicated
    alone = f"run it on one machine with {needed} GPUs, or" if wanted == 1 else "without cluster.address a run has this machine alone:"
    head = f"`ray start --head --port=6379 --num-gpus={each}` on the machine that trains"
    if wanted > 1 or gpus < each:
        others = f", `ray start --address=HEAD:6379 --num-gpus={each}` on the other {wanted - 1}" if wanted > 1 else ""
        cure = f"{alone} {head}{others}, then cluster.address=auto there"
        yield Fault(WHERE, f"{_asked(layout)}, and this machine has {gpus} GPUs", cure)
    if layout.reference.dedicated and gpus < needed:
        what = f"this machine has {gpus} GPUs: beside the policy's {layout.cluster.gpus} none is left for the reference"
        yield Fault(REFERENCE, what, f"{alone} {head}, `{_start(layout.reference.resource)}` on the reference's, then cluster.address=auto")


def _asked(layout: Layout) -> str:
    beside = " beside the reference's" if layout.reference.dedicated else ""
    return f"{layout.cluster.nodes} node(s) of {layout.cluster.gpus_per_node} GPUs are asked for{beside}"


def _start(resource: str) -> str:
    return f"ray start --address=HEAD:6379 --num-gpus=1 --resources='{{\"{resource}\": 1}}'"


def _policy_faults(layout: Layout, machines: Sequence[Machine]) -> Iterator[Fault]:
    wanted, each = layout.cluster.nodes, layout.cluster.gpus_per_node
    found, free = sum(machine.gpus >= each for machine in machines), sum(machine.free >= each for machine in machines)
    if found < wanted:
        cure = f"on each machine that is missing: ray start --address=HEAD:6379 --num-gpus={each}"
        yield Fault(WHERE, f"{_asked(layout)}, and Ray has {found}", cure)
    elif free < wanted:
        yield Fault(WHERE, f"{_asked(layout)}, and of Ray's {found} only {free} are free: another run holds their GPUs", WAIT)


def _reference_faults(resource: str, marked: Sequence[Machine]) -> Iterator[Fault]:
    if not marked:
        yield Fault(REFERENCE, f"no Ray node has the resource {resource}", f"on the reference's machine: {_start(resource)}")
    elif not any(machine.gpus >= 1 for machine in marked):
        yield Fault(REFERENCE, f"the Ray node with the resource {resource} has no GPU", f"start it anew: {_start(resource)}")
    elif not any(machine.free >= 1 for machine in marked):
        yield Fault(REFERENCE, f"the GPU of the Ray node with the resource {resource} is taken: another run holds it", WAIT)
