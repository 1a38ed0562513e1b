"""What is left of an agent's run: its job card, and what it adds to its release's figures. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

import msgspec

from agent_rft.contracts.agents import Agent, Arm
from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.jobcards import JobCard, Kind, Versions
from agent_rft.contracts.messages import Message, ToolSpec
from agent_rft.contracts.releases import Turn
from agent_rft.contracts.rollouts import Ending, Rollout
from agent_rft.contracts.rows import Expected, Row
from agent_rft.release.assignment import position_of
from agent_rft.release.violations import Watch, violations_of
from agent_rft.rollouts.cards import asked_in, card_of
from observability.records import fitting
from observability.redaction.numbers import IBANS, LETTERED_IDS, NUMBERS
from observability.redaction.redact import screen_of
from observability.redaction.secrets import SECRETS

GIVEN_AWAY = screen_of((SECRETS, NUMBERS, IBANS, LETTERED_IDS))
HARMLESS = frozenset({"PHONE"})
"""What these find that any document may hold: no secret."""
OURS_ALONE = frozenset({"release", "given_up"})
"""Keys of a card's metadata that a caller could set where nothing is to be said, and that evidence goes by."""
ROWS_OWN = ("id", "prompt", "reference_answer", "metadata")


class ToolSet(msgspec.Struct, frozen=True):
    """The tools that agents are told of."""

    specs: tuple[ToolSpec, ...]
    version: str
    changing: frozenset[str] = frozenset()
    """Names of those that change something outside: what called one of them is not begun again by another agent."""


class Ran(msgspec.Struct, frozen=True, kw_only=True):
    """An agent's run that is over, and on whose behalf it was."""

    tenant: str
    service: str
    session: str
    run_id: str
    """By which its caller knows it: its first rollout's id, whoever answered at last."""
    agent: Agent
    agent_id: str
    arm: Arm
    release: int
    """0: it counts for none."""
    caller: str
    said: tuple[Message, ...]
    """By the caller, before any agent's own prompt."""
    rollout: Rollout
    item: Mapping[str, Any]
    metadata: Mapping[str, Any]
    asked_for: tuple[str, ...] = ()
    given_up: str = ""


def leaks_in(rollout: Rollout) -> tuple[str, ...]:
    """Kinds of secrets in the answer that were not in what the agent was told by its caller."""
    answer = rollout.answer
    found = [one for detector in GIVEN_AWAY.suspects(answer) for one in detector.find(answer) if one.kind not in HARMLESS]
    told = "\n".join(message.content for message in rollout.opening) if found else ""
    return tuple(dict.fromkeys(one.kind for one in found if answer[one.start : one.end] not in told))


def job_card(ran: Ran, kind: Kind, code: str, tool_set: str) -> JobCard:
    about = {"service": ran.service, "session": ran.session, "arm": ran.arm, "agent": ran.agent_id, "run": ran.run_id, "caller": ran.caller}
    about |= {"release": ran.release} if ran.release else {}
    about |= {"given_up": ran.given_up} if ran.given_up else {}
    row = _row(ran)
    told = {name: value for name, value in {**row.metadata, **ran.metadata}.items() if name not in OURS_ALONE}
    row = msgspec.structs.replace(row, metadata=told | about)
    versions = Versions(code=code, checkpoint=fitting(ran.agent.checkpoint), tool_set=fitting(tool_set), seed=ran.rollout.seed)
    graded = GradedRollout(row, 0, ran.rollout, None)
    return card_of(graded, kind=kind, run_id=fitting(ran.service), versions=versions, tenant=ran.tenant)


def _row(ran: Ran) -> Row:
    """What the caller sent beside the question for graders to see, as a row of a dataset: a card is graded as one."""
    item = dict(ran.item)
    metadata = item.pop("metadata", None)
    try:
        expected = msgspec.convert(item.get("expected", {}), Expected)
        item.pop("expected", None)
    except msgspec.ValidationError:  # a key of the caller's own by that name
        expected = Expected()
    return Row(
        id=fitting(str(item.get("id") or ran.session)),
        prompt=asked_in(ran.rollout),
        reference_answer=item.get("reference_answer"),
        expected=expected,
        metadata=metadata if isinstance(metadata, dict) else {},
        extra={key: value for key, value in item.items() if key not in ROWS_OWN},
    )


def release_turn(ran: Ran, at: dt.datetime, *, shadow: bool, graded_share: float, watch: Watch) -> Turn:
    rollout = ran.rollout
    results = [result for turn in rollout.turns for result in turn.results.values()]
    broken = rollout.ending is Ending.INFRA_FAILED and rollout.failed_part.startswith("tool:")
    gradable = rollout.ending is not None and rollout.ending.graded and bool(ran.item)
    return Turn(
        tenant=ran.tenant,
        release=ran.release,
        rollout_id=rollout.rollout_id,
        session=ran.session,
        arm=ran.arm,
        shadow=shadow,
        at=at,
        seconds=rollout.seconds,
        failed=rollout.ending is not Ending.ANSWERED,
        tool_calls=rollout.tool_calls,
        tool_failures=sum(result.error == "model_error" for result in results) + broken,
        violations=violations_of(rollout, leaks_in(rollout), ran.asked_for, watch),
        tokens=rollout.total_tokens,
        to_grade=gradable and is_graded(ran.tenant, ran.service, ran.session, graded_share),
    )


def is_graded(tenant: str, service: str, session: str, share: float) -> bool:
    """The same for both arms, for all turns of a session, and at every gateway; and nothing to do with the arm."""
    return share >= 1 or position_of(tenant, f"{service}\0graded", session) < share
