"""What stops an update before it does harm, and what is known to go badly. What watches a whole run is in agent_rft/guards/."""

from __future__ import annotations

import math

from agent_rft.contracts.errors import Diverged

SMALLEST_GROUP = 4


def check_finite(loss: float, grad_norm: float) -> None:
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        raise Diverged(
            f"the update is not a number (loss {loss}, gradient norm {grad_norm}); its weights are not kept",
            "take a smaller algorithm.learning_rate",
        )


def group_size_warning(group_size: int) -> str | None:
    """Below four rollouts a prompt the group's mean is mostly noise."""
    if group_size >= SMALLEST_GROUP:
        return None
    return f"algorithm.group_size is {group_size}: below {SMALLEST_GROUP} the baseline of a group is mostly noise; use 8"
