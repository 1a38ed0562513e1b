"""OpenAI's `python` grader: source that defines grade(sample, item), run in the sandbox."""

from __future__ import annotations

import math
import sys
from typing import Any

import msgspec

from agent_rft.contracts.errors import Fault, UserError
from agent_rft.contracts.grades import Grade
from agent_rft.graders import sandbox_worker
from agent_rft.graders.base import PASS_THRESHOLD, grader_ref
from agent_rft.graders.sandbox import DEFAULT_LIMITS, Outcome, Sandbox, SandboxLimits

VERSION = "1"
FUNCTION = "grade"
MOST_SOURCE_BYTES = 256 * 1024


class PythonGrader:
    """The function's number is the reward. Whatever else comes of it is a failed grader, never a 0."""

    waits = True

    def __init__(
        self,
        source: str,
        sandbox: Sandbox,
        name: str = "python",
        limits: SandboxLimits = DEFAULT_LIMITS,
        pass_threshold: float | None = None,
    ) -> None:
        size = len(source.encode(errors="surrogatepass"))
        if size >= MOST_SOURCE_BYTES:
            raise UserError(f"grader '{name}': its source has {size:,} bytes", f"less than {MOST_SOURCE_BYTES:,}")
        self._source, self._sandbox, self._limits = source, sandbox, limits
        self._pass_threshold = PASS_THRESHOLD if pass_threshold is None else pass_threshold
        parameters = {"source": source, "limits": msgspec.to_builtins(limits), "pass_threshold": self._pass_threshold}
        self.ref = grader_ref(name, VERSION, (sys.modules[__name__], sandbox_worker), parameters)

    def grade(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
        outcome = self._sandbox.run(self._source, FUNCTION, [sample, item], self._limits)
        if outcome.error:
            return Grade(self.ref, None, errors=failure_flags(outcome))
        score = _number(outcome.value)
        if score is None:
            return Grade(self.ref, None, errors={"other_error": f"{FUNCTION} returned {shown(outcome.value)}, which is not a number"})
        return Grade(self.ref, score, score >= self._pass_threshold)

    def faults(self, where: str) -> list[Fault]:
        """What is wrong with the source before anything is graded: it does not run, or defines no such function."""
        outcome = self._sandbox.run(self._source, FUNCTION, None, self._limits)
        if outcome.error in (None, "protocol"):  # the sandbox's own failure says nothing of the source
            return []
        return [Fault(where, outcome.what, f"define {FUNCTION}(sample, item), which returns a number")]


def failure_flags(outcome: Outcome) -> dict[str, str]:
    """OpenAI's flags for a run without a value: the source's own doing, the sandbox's, or of whoever waited no longer."""
    if outcome.error == "due":
        return {"unresponsive_reward_error": outcome.what}
    if outcome.error == "protocol":
        return {"python_grader_server_error": outcome.what, "python_grader_server_error_type": outcome.error}
    told = outcome.what if outcome.error == "crash" else f"{outcome.error}: {outcome.what}"
    return {"python_grader_runtime_error": told, "python_grader_runtime_error_details": outcome.details or told}


def shown(value: object) -> str:
    """The start of whatever code returned; some of it has no text at all, such as a list nested a thousand deep."""
    try:
        return repr(value)[:80]
    except (RecursionError, ValueError):
        return f"a {type(value).__name__}"


def _number(value: object) -> float | None:
    try:
        number = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
