"""How the agent went about it, read from `sample.trajectory`: the calls of each turn and what came of them.

    tools        the share of the required tools that were called
    evidence     the share of the row's evidence that was read before the answer
    budget       1 within max_calls, else max_calls over calls
    redundancy   1 up to max_redundant repeated calls, else less by the share of calls beyond it
    parallelism  mean calls of the turns that call, over min_parallelism, 1 at most
    stop         1 with at most max_calls_after_evidence calls in turns after the one that completed the evidence, else 0

Without a call, budget, redundancy and parallelism are 1 and the others 0. The reward is the weighted mean of those that are
set. tools, evidence and stop do not count for a row that names none; where nothing else is set, that row is at fault.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from agent_rft.contracts.grades import Grade
from agent_rft.graders.base import PASS_THRESHOLD, grader_ref

VERSION = "1"


class Call(msgspec.Struct):
    """One call as a grader is shown it."""

    name: str
    arguments: dict[str, Any]
    output: str | None = None
    error: str | None = None


class Turn(msgspec.Struct):
    calls: list[Call] = msgspec.field(default_factory=list[Call])


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """None leaves a criterion out, but for `required_tools`: there the row's own are asked for."""

    required_tools: tuple[str, ...] | None = None
    evidence: bool = True
    evidence_tool: str = "read"
    evidence_argument: str = "path"
    max_calls: int | None = None
    max_redundant: int | None = None
    min_parallelism: float | None = None
    max_calls_after_evidence: int | None = None
    weights: Mapping[str, float] = {}
    pass_threshold: float = PASS_THRESHOLD


class TrajectoryGrader:
    def __init__(self, options: Options, name: str = "trajectory") -> None:
        self._options = options
        self.ref = grader_ref(name, VERSION, (sys.modules[__name__],), msgspec.to_builtins(options))

    def grade(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
        try:
            turns = msgspec.convert(sample.get("trajectory"), list[Turn])
        except msgspec.ValidationError as error:
            return Grade(self.ref, None, errors={"sample_parse_error": f"sample.trajectory: {error}"})
        expected = item.get("expected")
        try:
            asked = msgspec.convert(expected if isinstance(expected, Mapping) else {}, _Expected)
        except msgspec.ValidationError as error:
            return Grade(self.ref, None, errors={"invalid_variable_error": f"item.expected: {error}"})
        scores = {key: score for key, score in criteria_scores(turns, asked.tools, asked.paths, self._options).items() if score is not None}
        if not scores:
            return Grade(self.ref, None, errors={"invalid_variable_error": "item.expected names neither evidence_path nor must_use_tools"})
        weights = {key: self._options.weights.get(key, 1.0) for key in scores}
        reward = math.fsum(weights[key] * score for key, score in scores.items()) / math.fsum(weights.values())
        return Grade(self.ref, reward, reward >= self._options.pass_threshold, {"criteria": scores})


class _Expected(msgspec.Struct):
    evidence_path: str | list[str] | None = None
    must_use_tools: list[str] = []

    @property
    def tools(self) -> tuple[str, ...]:
        return tuple(self.must_use_tools)

    @property
    def paths(self) -> tuple[str, ...]:
        path = self.evidence_path
        return () if not path else (path,) if isinstance(path, str) else tuple(path)


def criteria_scores(turns: Sequence[Turn], row_tools: Sequence[str], paths: Sequence[str], options: Options) -> dict[str, float | None]:
    """Each from 0 to 1; None where it is not set or has nothing to say."""
    calls = [call for turn in turns for call in turn.calls]
    tools = row_tools if options.required_tools is None else options.required_tools
    return {
        "tools": _share(set(tools), {call.name for call in calls}),
        "evidence": _share(set(paths), _read(calls, options)) if options.evidence else None,
        "budget": _budget(len(calls), options.max_calls),
        "redundancy": _redundancy(calls, options.max_redundant),
        "parallelism": _parallelism(turns, options.min_parallelism),
        "stop": _stop(turns, set(paths), options),
    }


def _share(wanted: set[str], found: set[str]) -> float | None:
    return len(wanted & found) / len(wanted) if wanted else None


def _read(calls: Sequence[Call], options: Options) -> set[str]:
    """Paths that were asked for and came back. Listing a path, or failing to read it, is not reading it."""
    came = [call for call in calls if call.name == options.evidence_tool and call.output is not None and call.error is None]
    return {path for call in came if isinstance(path := call.arguments.get(options.evidence_argument), str)}


def _budget(calls: int, most: int | None) -> float | None:
    return None if most is None else 1.0 if calls <= most else most / calls


def _redundancy(calls: Sequence[Call], most: int | None) -> float | None:
    if most is None:
        return None
    different = {(call.name, json.dumps(call.arguments, sort_keys=True)) for call in calls}
    beyond = len(calls) - len(different) - most
    return 1.0 if beyond <= 0 else 1 - beyond / len(calls)


def _parallelism(turns: Sequence[Turn], least: float | None) -> float | None:
    calling = [len(turn.calls) for turn in turns if turn.calls]
    return None if least is None else min(1.0, sum(calling) / len(calling) / least) if calling else 1.0


def _stop(turns: Sequence[Turn], paths: set[str], options: Options) -> float | None:
    """Calls that went out beside the last piece of evidence could not know of it: they count for nothing."""
    most = options.max_calls_after_evidence
    if most is None or not paths:
        return None
    for at in range(len(turns)):
        if paths <= _read([call for turn in turns[: at + 1] for call in turn.calls], options):
            return 1.0 if sum(len(turn.calls) for turn in turns[at + 1 :]) <= most else 0.0
    return 0.0
