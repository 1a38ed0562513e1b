"""Graders by name: the one place that names the classes."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from agent_rft.contracts.errors import UserError, did_you_mean
from agent_rft.contracts.ports import Grader
from agent_rft.graders.numeric import NumericGrader

GRADERS: dict[str, Callable[..., Grader]] = {"numeric": NumericGrader}


def load_grader(name: str, **options: object) -> Grader:
    make = GRADERS.get(name)
    if make is None:
        raise UserError(f"no grader named '{name}'", did_you_mean(name, GRADERS))
    known = inspect.signature(make).parameters
    for option in options:
        if option not in known:
            raise UserError(f"grader '{name}' has no option '{option}'", did_you_mean(option, known) if known else "it takes none")
    return make(**options)
