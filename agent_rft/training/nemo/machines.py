"""What a layout's machines have, as Ray says or would say, before Ray is started for a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agent_rft.contracts.layouts import Layout


def nodes_of(layout: Layout) -> Sequence[Mapping[str, Any]]:
    """The named cluster's nodes, and what is free of each. Without a name this machine, on which Ray is to be started."""
    if layout.cluster.address:
        return _nodes_at(layout)
    import torch

    return [{"Alive": True, "Resources": {"GPU": torch.cuda.device_count()}}]


def _nodes_at(layout: Layout) -> Sequence[Mapping[str, Any]]:
    from agent_rft.training.nemo import find

    find.prepare()
    import ray
    from ray._private.state import available_resources_per_node

    from agent_rft.training.nemo.ray_session import ensure_ray

    ensure_ray(layout)
    free = available_resources_per_node()
    # of a node that has only just joined Ray does not know yet
    return [node | {"Available": free.get(node["NodeID"], node["Resources"])} for node in ray.nodes()]
