"""A judge whose every word stands in a file: for tests, demos, and a first try of a grader without a model.

    {"seed": 7, "rules": [
      {"status": 503, "rate": 0.2},
      {"when": "(?i)as an ai", "in": "graded", "refusal": "I will not grade this."},
      {"when": "13\\\\.4%", "in": "graded", "score": 1, "steps": [["the margin", "it is right"]]},
      {"score": 0}
    ]}

The first rule counts that fits and, where it has a rate, is drawn. `in` says where `when` is looked for: in the graded texts, in
the rubric around them, or (as a gullible judge would) anywhere. Without a rule that fits it answers 400: silence is no score.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

import msgspec

from agent_rft.contracts.errors import Fault, FaultsFound
from agent_rft.graders.fence import outside_and_inside

SHAPE = '{"seed": 0, "rules": [{"when": "pattern", "in": "graded", "score": 1}, ...]}'
OUTCOMES = ("score", "label", "refusal", "garbage", "cut_off", "status")


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"where": "in"}):
    """What is said, and when."""

    when: str = ""
    """A regular expression. Empty: always."""
    where: Literal["graded", "rubric", "all"] = "graded"
    rate: float = 1.0
    """The share of the questions it fits that it is drawn for."""
    score: float | tuple[float, ...] | None = None
    """Several: one after another, by the seed that the question brings (the first without one)."""
    label: str | None = None
    refusal: str | None = None
    garbage: str | None = None
    """A content that is no verdict."""
    cut_off: str | None = None
    """The beginning of one, where the judge came to its limit of tokens."""
    status: int | None = None
    """An HTTP failure."""
    retry_after: int | None = None
    """Seconds that the failure asks to wait."""
    delay: float = 0.0
    """Seconds before any of these."""
    steps: tuple[tuple[str, str], ...] = ()
    """Description and conclusion of each."""

    def outcomes(self) -> list[str]:
        return [name for name in OUTCOMES if getattr(self, name) is not None]


class Script(msgspec.Struct, frozen=True):
    rules: tuple[Rule, ...]
    seed: int = 0


class Said(msgspec.Struct, frozen=True):
    """What goes out: after a delay, a status and a body."""

    status: int
    body: dict[str, Any]
    delay: float = 0.0
    retry_after: int | None = None


def read_script(text: str, source: str = "script") -> Script:
    """Every fault at once."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise FaultsFound(f"{source} is no script of a judge", [Fault(source, f"broken JSON: {error}")], SHAPE) from error
    if not isinstance(value, dict) or not isinstance(value.get("rules"), list):
        raise FaultsFound(f"{source} is no script of a judge", [Fault(source, "has no list of rules")], SHAPE)
    held = cast(dict[str, Any], value)
    faults = [Fault(f"{source}: {key}", "is no key of a script") for key in held if key not in ("rules", "seed")]
    if not isinstance(held.get("seed", 0), int):
        faults.append(Fault(f"{source}: seed", "is not a whole number"))
    rules: list[Rule] = []
    for at, each in enumerate(held["rules"]):
        try:
            rule = msgspec.convert(each, Rule)
            faults += _faults_of(rule, f"{source}: rules[{at}]")
            rules.append(rule)
        except msgspec.ValidationError as error:
            faults.append(Fault(f"{source}: rules[{at}]", str(error)))
    if faults:
        raise FaultsFound(f"{source} is no script of a judge", faults, SHAPE)
    return Script(tuple(rules), held.get("seed", 0))


def _faults_of(rule: Rule, where: str) -> list[Fault]:
    faults: list[Fault] = []
    if len(rule.outcomes()) != 1:
        faults.append(Fault(where, f"has {' and '.join(rule.outcomes()) or 'no outcome'}", f"exactly one of {', '.join(OUTCOMES)}"))
    if rule.score == ():
        faults.append(Fault(f"{where}.score", "is empty"))
    if rule.status is not None and not 300 <= rule.status <= 599:
        faults.append(Fault(f"{where}.status", f"{rule.status} is no failure", "from 300 to 599"))
    if not 0 <= rule.rate <= 1:
        faults.append(Fault(f"{where}.rate", f"{rule.rate:g} is not from 0 to 1"))
    try:
        re.compile(rule.when)
    except re.error as error:
        faults.append(Fault(f"{where}.when", f"is no regular expression: {error}"))
    return faults


class ScriptedJudge:
    """Answers as its script says: chat completions, and what an endpoint grader asks. The draws are the same for the same
    script and order of questions."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._draws = random.Random(script.seed)
        self.asked = 0

    def complete(self, request: Mapping[str, Any]) -> Said:
        """A chat completion."""
        heard = _heard_in_messages(request.get("messages"))
        return self._answer(heard, lambda rule, heard: _completion(rule, request, heard["all"]))

    def score(self, request: Mapping[str, Any]) -> Said:
        """{"score"} for {sample, item, trace_id}, the item in the rubric's place. What is no score is said as it is."""
        return self._answer(_heard_in_sample(request), lambda rule, _: _scored(rule))

    def _answer(self, heard: dict[str, str] | None, say: Callable[[Rule, dict[str, str]], dict[str, Any]]) -> Said:
        self.asked += 1
        if heard is None:
            return _failure(400, "nothing to grade came with the question")
        for rule in self._script.rules:
            if re.search(rule.when, heard[rule.where]) and self._draws.random() < rule.rate:
                if rule.status is not None:
                    said = _failure(rule.status, "as the script says")
                    return msgspec.structs.replace(said, delay=rule.delay, retry_after=rule.retry_after)
                return Said(200, say(rule, heard), rule.delay)
        return _failure(400, "no rule of the judge's script fits")


def _heard_in_messages(messages: Any) -> dict[str, str] | None:
    """The question as each `in` sees it."""
    if not isinstance(messages, list):
        return None
    outside: list[str] = []
    inside: list[str] = []
    for message in cast(Sequence[Any], messages):
        content = cast(dict[str, Any], message).get("content") if isinstance(message, dict) else None
        if not isinstance(content, str):
            return None
        rubric, graded = outside_and_inside(content)
        outside.append(rubric)
        inside += graded
    return {"graded": "\n".join(inside), "rubric": "\n".join(outside), "all": "\n".join([*outside, *inside])}


def _heard_in_sample(request: Mapping[str, Any]) -> dict[str, str] | None:
    sample = request.get("sample")
    text = cast(dict[str, Any], sample).get("output_text") if isinstance(sample, dict) else None
    if not isinstance(text, str):
        return None
    item = json.dumps(request.get("item"), ensure_ascii=False)
    return {"graded": text, "rubric": item, "all": f"{item}\n{text}"}


def _completion(rule: Rule, request: Mapping[str, Any], heard: str) -> dict[str, Any]:
    content = rule.garbage or rule.cut_off
    if rule.score is not None or rule.label is not None:
        steps = [{"description": description, "conclusion": conclusion} for description, conclusion in rule.steps]
        content = json.dumps({"steps": steps, "result": rule.label if rule.score is None else _score(rule.score, request.get("seed"))})
    prompt, completion = len(heard.split()), len((content or rule.refusal or "").split())
    message = {"role": "assistant", "content": content, "refusal": rule.refusal}
    return {
        "id": "chatcmpl-scripted",
        "object": "chat.completion",
        "created": 0,
        "model": str(request.get("model", "scripted")),
        "choices": [{"index": 0, "message": message, "finish_reason": "stop" if rule.cut_off is None else "length"}],
        # words stand for tokens here
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
    }


def _scored(rule: Rule) -> dict[str, Any]:
    if rule.score is not None:
        return {"score": _score(rule.score, None)}
    return {outcome: getattr(rule, outcome) for outcome in rule.outcomes()}


def _score(score: float | tuple[float, ...], seed: object) -> float:
    if not isinstance(score, tuple):
        return score
    return score[seed % len(score) if isinstance(seed, int) else 0]


def _failure(status: int, what: str) -> Said:
    return Said(status, {"error": {"message": what, "type": "scripted"}})
