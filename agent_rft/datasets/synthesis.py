"""New rows from a stronger model: it proposes a question about a document, then has to answer it again and again.

A proposal becomes a row only if every one of several independent solves, made without the proposed answer in sight, agrees with it
under the grader. Nothing here talks to a model: a trial yields what to ask and is sent the reply, `run_trial` joins it to any `ask`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from typing import Any, Literal, cast

import msgspec

from agent_rft.contracts.errors import InfraError
from agent_rft.contracts.grades import Grade
from agent_rft.contracts.messages import Message, ToolSpec
from agent_rft.contracts.ports import Grader
from agent_rft.contracts.rows import Expected, Row

PROPOSE = """You write questions for an exam in research. Whoever takes it has not seen the document below, only tools to find it.
Write one question that the document answers, with one short, checkable answer: a number with its unit, or a name.
Say in the question what it is about (whom, which period), so that it can be understood without the document.
Reply with JSON alone: {"question": "...", "answer": "..."}"""
SOLVE = """Answer the question from the document alone. Reply with the answer alone, a number with its unit or a name, without a sentence.
If the document does not answer it, reply: unknown"""
LONGEST_QUESTION = 600


class Source(msgspec.Struct, frozen=True):
    """A document to ask about."""

    path: str
    text: str


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    solves: int = 3
    pass_at: float = 1.0
    """From which reward on a solve agrees."""
    temperature: float = 1.0
    seed: int = 0
    task_type: str = "numerical_qa"
    tools: tuple[ToolSpec, ...] = ()
    """What the rows' agents will have."""


class Ask(msgspec.Struct, frozen=True):
    purpose: Literal["propose", "solve"]
    messages: tuple[Message, ...]
    temperature: float
    seed: int
    """Another one for every ask: solves are independent."""


class Outcome(msgspec.Struct, frozen=True):
    """What became of one document."""

    source: str
    ending: Literal["accepted", "rejected", "infra_failed"]
    why: str
    """Short where it is counted: the same words for the same reason."""
    row: Row | None = None
    detail: str = ""


Trial = Generator[Ask, str, Outcome]


def trial(source: Source, number: int, grader: Grader, plan: Plan) -> Trial:
    seed = plan.seed + number * (plan.solves + 1)
    asked = (Message("system", PROPOSE), Message("user", f"The document, {source.path}:\n\n{source.text}"))
    reply = yield Ask("propose", asked, plan.temperature, seed)
    proposed = read_proposal(reply)
    if isinstance(proposed, str):
        return Outcome(source.path, "rejected", proposed, detail=reply[:200])
    row = _row(source, number, proposed, plan)
    own = grader.grade(row.item(), {"output_text": str(row.reference_answer)})
    if "invalid_variable_error" in own.errors or (own.reward is not None and own.reward < plan.pass_at):
        why = "the grader cannot use its answer"
        return Outcome(source.path, "rejected", why, detail=str(own.errors.get("invalid_variable_error", row.reference_answer)))
    if own.reward is None:
        return _grader_failed(source, own)
    for solve in range(1, plan.solves + 1):
        question = Message("user", f"The document, {source.path}:\n\n{source.text}\n\nThe question: {row.prompt}")
        answer = yield Ask("solve", (Message("system", SOLVE), question), plan.temperature, seed + solve)
        grade = grader.grade(row.item(), {"output_text": answer.strip()})
        if grade.reward is None:
            return _grader_failed(source, grade)
        if grade.reward < plan.pass_at:
            told = f"{row.prompt} proposed {row.reference_answer!r}, solved {answer.strip()[:100]!r}"
            return Outcome(source.path, "rejected", "a solve disagrees", detail=told)
    return Outcome(source.path, "accepted", f"{plan.solves} solves agree", row)


def run_trial(source: Source, number: int, grader: Grader, plan: Plan, ask: Callable[[Ask], str]) -> Outcome:
    """`ask` gives the model's reply, or raises InfraError: then nothing is known of this document, and nothing said against it."""
    going = trial(source, number, grader, plan)
    try:
        wanted = next(going)
        while True:
            wanted = going.send(ask(wanted))
    except StopIteration as ended:
        return cast(Outcome, ended.value)
    except InfraError as error:
        return Outcome(source.path, "infra_failed", error.part, detail=error.what)


def read_proposal(reply: str) -> tuple[str, str] | str:
    """(question, answer), or why it is none. Words around the JSON, a code fence say, are looked past."""
    begin, end = reply.find("{"), reply.rfind("}")
    try:
        value = json.loads(reply[begin : end + 1])
    except (ValueError, RecursionError):
        return "its proposal is no JSON"
    held = cast(dict[str, Any], value) if isinstance(value, dict) else {}
    question, answer = held.get("question"), held.get("answer")
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = json.dumps(answer)
    if not isinstance(question, str) or not isinstance(answer, str) or not question.strip() or not answer.strip():
        return "its proposal lacks question or answer"
    return (question.strip(), answer.strip()) if len(question) <= LONGEST_QUESTION else "its question is too long"


def accepted(outcomes: Sequence[Outcome]) -> list[Row]:
    return [outcome.row for outcome in outcomes if outcome.row]


def _row(source: Source, number: int, proposed: tuple[str, str], plan: Plan) -> Row:
    return Row(
        id=f"synthetic-{number:05d}",
        prompt=proposed[0],
        reference_answer=proposed[1],
        expected=Expected(evidence_path=source.path),
        tools=plan.tools,
        metadata={"task_type": plan.task_type, "synthetic": True, "agreeing_solves": plan.solves},
    )


def _grader_failed(source: Source, grade: Grade) -> Outcome:
    return Outcome(source.path, "infra_failed", f"grader:{grade.grader.name}", detail=str(grade.errors))
