"""A grader tried on cases before it is trusted: {"item", "sample"} in, {"reward", "parts", "grader"} out, a line each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import msgspec

from agent_rft.contracts.errors import Fault, FaultsFound
from agent_rft.contracts.ports import Grader
from agent_rft.graders.apply import checked
from agent_rft.graders.spec_reading import shown

SHAPE = '{"item": {"reference_answer": ...}, "sample": {"output_text": "..."}}'
Case = tuple[dict[str, Any], dict[str, Any]]
CLOSE = 1e-6
"""As near as a reward must come to the one that a case was worked out to have."""


def grade_cases(lines: Iterable[str], grader: Grader, source: str = "cases") -> list[str]:
    """One JSON line a case, or every fault of the file at once. `errors` is there only where the grader gave no reward."""
    cases: list[Case] = []
    faults: list[Fault] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        case = _case(line, f"{source}:{number}")
        cases.append(case) if isinstance(case, tuple) else faults.extend(case)
    if faults:
        raise FaultsFound(f"{source} holds no usable cases", faults, f"one case a line: {SHAPE}")
    return [_graded(item, sample, grader) for item, sample in cases]


def _case(line: str, where: str) -> Case | list[Fault]:
    try:
        value = json.loads(line.removeprefix("\ufeff"))
    except json.JSONDecodeError as error:
        return [Fault(where, f"column {error.colno}: broken JSON: {error.msg}")]
    except (ValueError, RecursionError) as error:
        return [Fault(where, f"not usable as JSON: {error}")]
    if not isinstance(value, dict):
        return [Fault(where, "not an object")]
    case = cast(dict[str, Any], value)
    wrong = [key for key in ("item", "sample") if not isinstance(case.get(key), dict)]
    faults = [Fault(where, f"{key} is {'no object' if key in case else 'missing'}") for key in wrong]
    return [*faults, *_unusable(case, where)] or (case["item"], case["sample"])


def _unusable(case: dict[str, Any], where: str) -> Iterator[Fault]:
    """What a case says that it should get, where no grade could ever be that."""
    reward, errors = case.get("reward"), case.get("errors")
    if "errors" in case and not (isinstance(errors, list) and errors and all(isinstance(flag, str) for flag in cast(list[Any], errors))):
        yield Fault(where, "errors is no list of flags", '["invalid_variable_error"]')
    elif "errors" in case and reward is not None:
        yield Fault(where, "says both reward and errors", "leave one out: a grader that failed gives no reward")
    elif "reward" in case and "errors" not in case and not _is_reward(reward):
        yield Fault(where, f"reward {shown(reward)} is no number from 0 to 1", "where no score is right, leave it out and name its errors")


def _is_reward(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _graded(item: dict[str, Any], sample: dict[str, Any], grader: Grader) -> str:
    grade = checked(grader.grade(item, sample))
    told: dict[str, Any] = {"reward": grade.reward, "parts": grade.parts, "grader": msgspec.to_builtins(grade.grader)}
    line = json.dumps({**told, "errors": grade.errors} if grade.errors else told, ensure_ascii=False)
    return line.encode(errors="backslashreplace").decode()  # half a surrogate pair as JSON's own escape: UTF-8 has none


def worked_out(lines: Sequence[str], graded: Sequence[str], source: str) -> tuple[list[int], list[int], list[str]]:
    """The lines of the cases that say what they should get, of those that do not, and how grades differ from the former.
    `graded`: what grade_cases answers."""
    said = [(number, json.loads(line.removeprefix("\ufeff"))) for number, line in enumerate(lines, start=1) if line.strip()]
    held, bare, wrong = list[int](), list[int](), list[str]()
    for (number, case), got in zip(said, graded, strict=True):
        if "reward" not in case and "errors" not in case:
            bare.append(number)
            continue
        held.append(number)
        wrong += [what] if (what := _unlike(case, json.loads(got), f"{source}:{number}")) else []
    return held, bare, wrong


def _unlike(case: dict[str, Any], got: dict[str, Any], where: str) -> str | None:
    """How a grade differs from what its case was worked out to have: `reward`, or `errors`, a list of flags."""
    reward, flags = got["reward"], sorted(got.get("errors", {}))
    if "errors" in case:
        return None if reward is None and flags == sorted(case["errors"]) else f"{where}: wanted {case['errors']}, got {flags or reward}"
    if isinstance(reward, int | float) and abs(reward - case["reward"]) <= CLOSE:
        return None
    return f"{where}: wanted {case['reward']}, got {flags or reward}"
