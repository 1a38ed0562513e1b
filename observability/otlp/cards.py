"""Traces as job cards.

A trace is one card: its agent is the topmost span that says it is one, else the topmost that holds others together, else
the root. What the model spans under it said are the turns, what tool spans returned are the results. A model or tool span
inside another one (two libraries that both watch one call; the inner work of a tool) tells nothing new about the agent and
adds no turn. All of it stays beside the card, span by span.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast, get_args

import msgspec

from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.jobcards import Cost, JobCard, Kind, Versions
from agent_rft.contracts.messages import Message, ToolSpec
from agent_rft.contracts.rollouts import Ending, Limits, Rollout, Turn
from observability.otlp import messages, names
from observability.otlp.ids import is_uuid7, rollout_id_of, started_ns
from observability.otlp.spans import Received, Rejected, Span, merge, why_not
from observability.otlp.trace import Trace, turns_of
from observability.records import DatedGrade, fitting

NS = 1_000_000_000
AHEAD_NS = 24 * 3600 * NS  # a sender's clock may be this far ahead of ours
UNTOLD = Limits(0, 0, 0, 0, 0.0)
"""Another system's trace does not say what it was allowed to spend."""
KINDS: tuple[str, ...] = get_args(Kind)
PASSED = {"pass": True, "passed": True, "true": True, "correct": True, "fail": False, "failed": False, "false": False, "incorrect": False}
UNTOLD_VERSION = "untold"


class TraceCard(msgspec.Struct, frozen=True):
    """A trace as a card, and all that it was read from."""

    trace_id: str
    card: JobCard
    """Its grade is the newest one."""
    grades: tuple[DatedGrade, ...]
    """Every evaluation in the trace, oldest first."""
    spans: tuple[Span, ...]
    whole: bool
    """Whether the agent's span has come and ended, and all above it: what comes now comes late."""


class Cards(msgspec.Struct, frozen=True):
    cards: tuple[TraceCard, ...]
    rejected: tuple[Rejected, ...]


NOTHING_KNOWN: dict[str, str] = {}


def cards_of(received: Received, tenant: str, now: dt.datetime, known: Mapping[str, str] = NOTHING_KNOWN) -> Cards:
    """One card a trace. `known` holds the rollout ids of traces that have a card already, for a span that comes late may have
    started before all others and must not make a second card."""
    traces, rejected = traces_of(received, now)
    return Cards(tuple(card_of(spans, tenant, known.get(trace_id)) for trace_id, spans in traces.items()), rejected)


def traces_of(received: Received, now: dt.datetime) -> tuple[dict[str, tuple[Span, ...]], tuple[Rejected, ...]]:
    """The spans by the trace they belong to, merged, and those that cannot be stored."""
    latest = nanoseconds(now) + AHEAD_NS
    rejected = list(received.rejected)
    traces: dict[str, list[Span]] = {}
    for span in received.spans:
        if why := why_not(span, latest):
            rejected.append(Rejected(f"span {span.span_id or '(no id)'} of trace {span.trace_id or '(no id)'}", why))
        else:
            traces.setdefault(span.trace_id, []).append(span)
    return {trace_id: merge(spans) for trace_id, spans in traces.items()}, tuple(rejected)


def card_of(spans: Sequence[Span], tenant: str, rollout_id: str | None = None) -> TraceCard:
    """The card of one trace from all spans of it that are there, merged. `rollout_id`: what the card is called already."""
    trace = Trace(spans)
    own = Own(trace.main.attributes)
    rollout_id = rollout_id or sent_id(spans) or rollout_id_of(tenant, trace.main.trace_id, spans[0].start_ns)
    turns = turns_of(trace)
    grades = tuple(sorted(_grades(spans), key=lambda dated: dated.graded_at))
    rollout = _rollout(rollout_id, trace, turns, own)
    card = JobCard(
        rollout_id=rollout_id,
        kind=own.kind(),
        tenant=tenant,
        run_id=fitting(own.text("run_id", names.words(trace.main.resource, ("service.name",)) or "otlp")),
        step=own.whole("step"),
        row_id=fitting(own.text("row_id")),
        sample_index=own.whole("sample_index") or 0,
        started_at=rollout.started_at,
        rollout=rollout,
        reference_answer=own.json("reference_answer"),
        metadata=_metadata(trace) if (sent_metadata := own.object("metadata")) is None else sent_metadata,
        item=own.object("item"),
        grade=grades[-1].grade if grades and rollout.ending is not Ending.INFRA_FAILED else None,
        advantage=own.number("advantage"),
        cost=_cost(trace, rollout, own),
        versions=_versions(trace, own),
    )
    return TraceCard(trace.main.trace_id, card, grades, tuple(spans), trace.is_whole)


def sent_id(spans: Sequence[Span]) -> str:
    """The card that its sender says the trace is; empty where it says nothing."""
    return next(filter(None, (Own(span.attributes).rollout_id(span) for span in spans)), "")


class Own:
    """Our own attributes, for those who send them. One of a wrong type is as if it were not there: it stays in the raw span."""

    def __init__(self, attributes: names.Attributes) -> None:
        self._attributes = attributes

    def text(self, name: str, otherwise: str = "") -> str:
        value = self._attributes.get(names.OURS + name)
        return value if isinstance(value, str) else otherwise

    def whole(self, name: str) -> int | None:
        value = self._attributes.get(names.OURS + name)
        return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= names.MOST else None

    def number(self, name: str) -> float | None:
        value = self._attributes.get(names.OURS + name)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

    def json(self, name: str) -> Any:
        try:
            return msgspec.json.decode(self.text(name) or "null")
        except (ValueError, RecursionError):
            return None

    def object(self, name: str) -> dict[str, Any] | None:
        value = self.json(name)
        return cast(dict[str, Any], value) if isinstance(value, dict) else None

    def record(self, name: str, kind: type[msgspec.Struct]) -> Any:
        """None where there is none, or it is something else."""
        try:
            return msgspec.json.decode(self.text(name), type=kind)
        except (ValueError, RecursionError):
            return None

    def kind(self) -> Kind:
        kind = self.text("kind")
        return cast(Kind, kind) if kind in KINDS else "production"

    def seed(self, name: str) -> int | None:
        value = self.json(name)
        return value if isinstance(value, int) and -(2**63) <= value < 2**63 else None

    def rollout_id(self, span: Span) -> str:
        """Only one that is a UUIDv7 not much later than the span: the store keeps cards in order by it."""
        sent = self.text("rollout_id")
        return sent if is_uuid7(sent) and started_ns(sent) <= span.start_ns + AHEAD_NS else ""


# --- what happened ------------------------------------------------------------------------------------------------------


def _rollout(rollout_id: str, trace: Trace, turns: list[Turn], own: Own) -> Rollout:
    main = trace.main
    ending, reason = _ending(trace, own)
    seconds = own.number("seconds")
    return Rollout(
        rollout_id,
        _opening(trace),
        _tools(trace),
        own.record("limits", Limits) or UNTOLD,
        own.seed("rollout_seed") or 0,
        turns=turns,
        ending=ending,
        reason=own.text("reason", reason),
        failed_part=fitting(own.text("failed_part", "agent" if ending is Ending.INFRA_FAILED else "")),
        answer=_answer(trace, turns) if ending is Ending.ANSWERED else "",
        started_at=moment(main.start_ns).isoformat(),
        seconds=max(0, main.end_ns - main.start_ns) / NS if seconds is None else seconds,
    )


def _ending(trace: Trace, own: Own) -> tuple[Ending | None, str]:
    main = trace.main
    if (sent := own.text("ending")) in list(Ending):
        return Ending(sent), ""
    if not trace.main_has_come:
        return None, "the span that holds the others has not come yet"
    if not main.end_ns:
        return None, "its end has not come yet"
    if main.failed:
        return Ending.INFRA_FAILED, main.message or names.words(main.attributes, (names.ERROR,)) or "the trace says it failed"
    if trace.models and "length" in _finish_reasons(trace.models[-1]):
        return Ending.OUT_OF_BUDGET, "tokens: length"
    return Ending.ANSWERED, "the trace ended without an error"


def _finish_reasons(span: Span) -> list[str]:
    told = messages.structured(span.attributes.get(names.FINISHED))
    listed = cast(list[Any], told) if isinstance(told, list) else [told, span.attributes.get(names.FLAT_FINISHED)]
    return [messages.plain(each) for each in listed]


def _opening(trace: Trace) -> tuple[Message, ...]:
    """What stood before the agent when its model first spoke."""
    for span in (*trace.models[:1], trace.main):
        if heard := messages.heard(span.attributes):
            return tuple(message for said in heard for message in said.as_messages())
    asked = messages.plain(trace.main.attributes.get(names.PLAIN_INPUT))
    return (Message("user", asked),) if asked else ()


def _tools(trace: Trace) -> tuple[ToolSpec, ...]:
    for span in (*trace.models[:1], trace.main):
        if tools := messages.tools_of(span.attributes):
            return tools
    return ()


def _answer(trace: Trace, turns: list[Turn]) -> str:
    """The agent's own last words, else its model's, else what its span says came out."""
    if said := messages.spoken(trace.main.attributes):
        return said[-1].text
    if turns and turns[-1].text and not turns[-1].calls:
        return turns[-1].text
    return messages.plain(trace.main.attributes.get(names.PLAIN_OUTPUT))


# --- what it cost, what made it -------------------------------------------------------------------------------------------


def _cost(trace: Trace, rollout: Rollout, own: Own) -> Cost:
    """Of another system's trace the tokens are those that each call read, the history included: what was paid for."""
    sent = own.record("cost", Cost)
    if sent is not None and max(sent.context_tokens, sent.sampled_tokens, sent.tool_calls) <= names.MOST:
        return sent
    read = sum(turn.context_tokens for turn in rollout.turns) or names.count(trace.main.attributes, names.TOKENS_READ)
    written = rollout.sampled_tokens or names.count(trace.main.attributes, names.TOKENS_WRITTEN)
    return Cost(
        context_tokens=min(read, names.MOST),
        sampled_tokens=min(written, names.MOST),
        tool_calls=rollout.tool_calls,
        seconds=rollout.seconds,
        tool_seconds=sum(result.seconds for turn in rollout.turns for result in turn.results.values()),
    )


def _versions(trace: Trace, own: Own) -> Versions:
    spoke = dict.fromkeys(filter(None, (_weights(span) for span in trace.models or (trace.main,))))
    return Versions(
        code=fitting(own.text("code", _release(trace.main))),
        checkpoint=fitting(own.text("checkpoint", "+".join(spoke))),
        dataset=fitting(own.text("dataset")),
        tool_set=fitting(own.text("tool_set")),
        grader=fitting(own.text("grader")),
        seed=own.seed("seed"),
    )


def _weights(span: Span) -> str:
    """Provider and model, as much of it as was told."""
    return "/".join(filter(None, (names.words(span.attributes, spellings) for spellings in (names.PROVIDER, names.MODEL))))


def _release(span: Span) -> str:
    return names.words(span.attributes, ("gen_ai.agent.version",)) or names.words(span.resource, ("service.version",))


def _metadata(trace: Trace) -> dict[str, Any]:
    every, metadata = (trace.main, *trace.models[:1]), dict[str, Any]()
    for key, spellings in (("conversation_id", names.CONVERSATION), ("agent", names.AGENT_NAME)):
        if told := next(filter(None, (names.words(span.attributes, spellings) for span in every)), ""):
            metadata[key] = told
    if service := names.words(trace.main.resource, ("service.name",)):
        metadata["service"] = service
    return metadata


# --- grades -------------------------------------------------------------------------------------------------------------


def _grades(spans: Sequence[Span]) -> Iterator[DatedGrade]:
    """Evaluations stand in events, or in the attributes of a span."""
    for span in spans:
        if span.attributes.get(names.EVALUATION_NAME):
            yield DatedGrade(_grade(span.attributes), moment(span.end_ns or span.start_ns))
        for event in span.events:
            if event.attributes.get(names.EVALUATION_NAME):
                yield DatedGrade(_grade(event.attributes), moment(event.at_ns or span.end_ns or span.start_ns))


def _grade(attributes: names.Attributes) -> Grade:
    """A score that is none of 0 to 1 is kept in the parts and is no reward: nobody says what its scale was."""
    own = Own(attributes)
    score, label = attributes.get(names.SCORE), names.words(attributes, (names.LABEL,))
    reward = float(score) if isinstance(score, int | float) and 0 <= score <= 1 else None
    parts = own.object("grade.parts")
    if parts is None:
        told = {"score": score, "label": label, "explanation": attributes.get(names.EXPLANATION)}
        parts = {name: value for name, value in told.items() if value not in (None, "")}
    errors = own.object("grade.errors") or ({names.ERROR: attributes[names.ERROR]} if names.ERROR in attributes else {})
    if score is not None and reward is None:
        errors = errors | {"not_0_to_1": score}
    name = messages.plain(attributes[names.EVALUATION_NAME])
    grader = GraderRef(fitting(name), fitting(own.text("grader.version", UNTOLD_VERSION)), fitting(own.text("grader.hash")))
    return Grade(grader, reward, PASSED.get(label.lower()), parts, errors)


# --- times --------------------------------------------------------------------------------------------------------------


def moment(at_ns: int) -> dt.datetime:
    """To the microsecond, which is what the store keeps."""
    return dt.datetime.fromtimestamp(0, dt.UTC) + dt.timedelta(microseconds=at_ns // 1000)


def nanoseconds(moment: dt.datetime) -> int:
    return (moment - dt.datetime.fromtimestamp(0, dt.UTC)) // dt.timedelta(microseconds=1) * 1000
