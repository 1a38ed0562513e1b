"""What a tenant's users got: how many runs, in time or not, failed or not, and what they cost. By the cards, so that it can be checked."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from agent_rft.contracts.rollouts import Ending
from observability.release_tables import release_turns
from observability.store import Store
from observability.tables import job_cards

SPANS = {"hour": dt.timedelta(hours=1), "day": dt.timedelta(days=1), "week": dt.timedelta(days=7)}


class Level(msgspec.Struct, frozen=True, kw_only=True):
    """Of one service, over one span of time."""

    service: str
    """Empty: all of them."""
    span: str
    turns: int
    failed: int
    """The user got no answer, or an error."""
    in_time: int
    """Answered, within the promised seconds."""
    tokens: int
    """Written by models."""
    mean_seconds: float
    longest_seconds: float


def levels(store: Store, tenant: str, seconds: float, now: dt.datetime) -> list[Level]:
    """Of the last hour, day and week: all services together, then each."""
    found: list[Level] = []
    with store.reading() as connection:
        for span, length in SPANS.items():
            rows = [_level(span, row) for row in connection.execute(_select(tenant, seconds, now - length))]
            found += [_together(span, rows), *rows]
    return found


def tokens_since(store: Store, tenant: str, since: dt.datetime) -> int:
    return int(_one(store, sa.func.sum(job_cards.c.sampled_tokens), tenant, since))


def turns_since(store: Store, tenant: str, since: dt.datetime) -> int:
    return _one(store, sa.func.count(), tenant, since)


def _one(store: Store, figure: sa.ColumnElement[int], tenant: str, since: dt.datetime) -> int:
    mine = (job_cards.c.tenant == tenant, job_cards.c.kind == "production", job_cards.c.started_at >= since)
    with store.reading() as connection:
        return connection.scalar(sa.select(figure).select_from(job_cards).where(*mine)) or 0


def _select(tenant: str, seconds: float, since: dt.datetime) -> sa.Select[*tuple[Any, ...]]:
    card = job_cards.c
    lost = card.ending == Ending.INFRA_FAILED.value
    failed, in_time = (sa.func.sum(sa.case((which, 1), else_=0)) for which in (lost, sa.and_(~lost, card.seconds <= seconds)))
    figures = (sa.func.count(), failed, in_time, sa.func.sum(card.sampled_tokens), sa.func.avg(card.seconds), sa.func.max(card.seconds))
    mine = (card.tenant == tenant, card.kind == "production", card.started_at >= since)
    return sa.select(card.run_id, *figures).where(*mine).group_by(card.run_id).order_by(card.run_id)


def _level(span: str, row: Sequence[Any]) -> Level:
    service, turns, failed, in_time, tokens, mean, longest = row
    return Level(
        service=service,
        span=span,
        turns=turns,
        failed=int(failed),
        in_time=int(in_time),
        tokens=int(tokens),
        mean_seconds=float(mean),
        longest_seconds=float(longest),
    )


def _together(span: str, each: list[Level]) -> Level:
    turns = sum(one.turns for one in each)
    return Level(
        service="",
        span=span,
        turns=turns,
        failed=sum(one.failed for one in each),
        in_time=sum(one.in_time for one in each),
        tokens=sum(one.tokens for one in each),
        mean_seconds=sum(one.turns * one.mean_seconds for one in each) / max(turns, 1),
        longest_seconds=max((one.longest_seconds for one in each), default=0.0),
    )


class ArmTotal(msgspec.Struct, frozen=True, kw_only=True):
    """Of one arm of a release: every turn that is known, counted or not."""

    arm: str
    shadow: bool
    sessions: int
    turns: int
    failed: int
    tokens: int
    mean_seconds: float
    graded: int


def arms_of(store: Store, tenant: str, release: int) -> list[ArmTotal]:
    turns = release_turns.c
    figures = (
        sa.func.count(turns.session.distinct()),
        sa.func.count(),
        sa.func.sum(sa.case((turns.failed.is_(True), 1), else_=0)),
        sa.func.sum(turns.tokens),
        sa.func.avg(turns.seconds),
        sa.func.count(turns.reward),
    )
    mine = (turns.tenant == tenant, turns.release == release)
    select = sa.select(turns.arm, turns.shadow, *figures).where(*mine).group_by(turns.arm, turns.shadow).order_by(turns.shadow, turns.arm)
    with store.reading() as connection:
        return [_arm(row) for row in connection.execute(select)]


def _arm(row: Sequence[Any]) -> ArmTotal:
    arm, shadow, sessions, turns, failed, tokens, mean, graded = row
    return ArmTotal(
        arm=arm,
        shadow=shadow,
        sessions=sessions,
        turns=turns,
        failed=int(failed),
        tokens=int(tokens),
        mean_seconds=float(mean),
        graded=graded,
    )
