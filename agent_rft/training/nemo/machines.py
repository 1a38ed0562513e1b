"""What a layout's machines have, as Ray says or would say, before Ray is started for a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agent_rft.contracts.layouts import Layout


def nodes_of(layout: Layout) -> Sequence[Mapping[str, Any]]:
    """The named cluster's nodes. Of this machine, where Ray is to be started here, what it will be started with."""
    if layout.cluster.address:
        return _nodes_at(layout)
    import torch

    found = torch.cuda.device_count()
    here: dict[str, float] = {"GPU": found}
    if not layout.reference.dedicated:
        return [{"Alive": True, "Resources": here}]
    # one machine may do for both, if a GPU is left: Ray then has the reference's resource on that same node
    alone = layout.cluster.gpus + 1
    beside = {layout.reference.resource: 1.0, "GPU": 1.0} if found >= alone else {}
    return [{"Alive": True, "Resources": {"GPU": max(0, found - 1)} if beside else here}, {"Alive": bool(beside), "Resources": beside}]


def _nodes_at(layout: Layout) -> Sequence[Mapping[str, Any]]:
    from agent_rft.training.nemo import find

    find.prepare()
    import ray

    from agent_rft.training.nemo.ray_session import ensure_ray

    ensure_ray(layout)
    return ray.nodes()
