"""How long words are kept: policies by kind and age. What is older is erased, unless a hold keeps it; facts and digests stay.

A card is as old as the store has had it, or as its start, or as the time in its id, whichever is the least: a clock that was wrong
takes no card too early, and one that is brought in late is not gone on arrival. The ids' time also tells PostgreSQL which months'
partitions it need not open. What is said of a card later is as old as the card: after an erasure it is due at once. A trace that is no
card is as old as its last span.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any, get_args

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from agent_rft.contracts.errors import Fault, FaultsFound, UserError, did_you_mean
from agent_rft.contracts.jobcards import Kind
from observability.cardless import Cardless, without_card
from observability.cursor import Cursor
from observability.erasure import BATCH, erase_some, has_any_words, wipe
from observability.filters import where
from observability.holds import faults_of_reason, held, live, query_of
from observability.partitions import AHEAD, earliest_id
from observability.query import all_of
from observability.search import catch_up, has_words
from observability.store import Store
from observability.tables import job_cards, retention_policies

NO_CARD = "no card"
"""What the plan calls traces of which no card was made. They are kept as production cards are."""
EVERY_OTHER = "*"
"""The kind of a policy for all kinds that have none of their own."""
KINDS = (*get_args(Kind), EVERY_OTHER)
LOGS_ARE_KEPT = 183
"""Days: the six months for which the EU AI Act, articles 19 and 26(6), has the logs of high-risk systems kept at least."""
MOST_DAYS = 36_500


class Policy(msgspec.Struct, frozen=True):
    kind: str
    days: int
    by: str
    at: dt.datetime


class Due(msgspec.Struct, frozen=True):
    """Cards of one kind and month that are older than their policy lets them be."""

    kind: str
    month: str
    cards: int
    held: int
    """Of these: they stay."""
    oldest: dt.datetime


class Applied(msgspec.Struct, frozen=True):
    erased: int
    held: int
    lingering: str
    """Where copies of the words may be that are not the store's tables; empty where there are none."""


def policies(store: Store, tenant: str) -> list[Policy]:
    columns = [retention_policies.c[name] for name in Policy.__struct_fields__]
    select = sa.select(*columns).where(retention_policies.c.tenant == tenant).order_by(retention_policies.c.kind)
    with store.reading() as connection:
        return [Policy(**row) for row in connection.execute(select).mappings()]


def set_policy(store: Store, tenant: str, kind: str, days: int, by: str) -> Policy:
    """Takes the place of the kind's policy, if it has one."""
    faults = [*_faults_of_kind(kind), *faults_of_reason("by", by)]
    if not 1 <= days <= MOST_DAYS:
        faults.append(Fault("days", f"{days} is no age", f"1 to {MOST_DAYS:,}"))
    if faults:
        raise FaultsFound("this policy cannot be set", faults, exit_code=2)
    policy = Policy(kind, days, by, dt.datetime.now(dt.UTC))
    insert = postgresql.insert if store.engine.dialect.name == "postgresql" else sqlite.insert
    new = insert(retention_policies).values(tenant=tenant, **msgspec.structs.asdict(policy))
    changed = {"days": policy.days, "by": policy.by, "at": policy.at}
    with store.writing() as connection:
        connection.execute(new.on_conflict_do_update(index_elements=["tenant", "kind"], set_=changed))
    return policy


def remove_policy(store: Store, tenant: str, kind: str) -> None:
    mine = (retention_policies.c.tenant == tenant, retention_policies.c.kind == kind)
    with store.writing() as connection:
        if not connection.execute(sa.delete(retention_policies).where(*mine)).rowcount:
            raise UserError(f"there is no policy for {kind[:50]!r} cards", "`rft retention list` shows those that there are")


def warning(policy: Policy) -> str:
    """What whoever sets it should know; empty where there is nothing."""
    if policy.kind not in ("production", EVERY_OTHER) or policy.days >= LOGS_ARE_KEPT:
        return ""
    law = f"the EU AI Act (articles 19 and 26(6)) has logs of a high-risk system kept for at least six months, {LOGS_ARE_KEPT} days"
    return f"{policy.days} days is less than {law}; facts and digests of the cards stay, their words do not"


def plan(store: Store, tenant: str, now: dt.datetime) -> list[Due]:
    """What `apply` would find now, by kind and month."""
    catch_up(store, tenant)
    standing = policies(store, tenant)
    with store.reading() as connection:
        holds = [where(query_of(hold), lambda texts: has_words(store, all_of(texts), tenant)) for hold in live(store, tenant)]
        stay = sa.func.sum(sa.case((sa.or_(sa.false(), *holds), 1), else_=0))
        month = _month(store)
        select = sa.select(job_cards.c.kind, month, sa.func.count(), stay, sa.func.min(job_cards.c.started_at))
        lines = [
            Due(*row[:4], oldest=row[4])
            for policy in standing
            for row in connection.execute(select.where(*due(tenant, policy, standing, now)).group_by(job_cards.c.kind, sa.text("month")))
        ]
    lines += _lines_without_card(store, tenant, _due_without_card(store, tenant, standing, now))
    return sorted(lines, key=lambda line: (line.kind, line.month))


def apply(store: Store, tenant: str, by: str, now: dt.datetime, step: Callable[[int], None] = lambda _: None) -> Applied:
    """Some cards at a time, a transaction each. One that was stopped goes on where it is called again."""
    if faults := faults_of_reason("by", by):
        raise FaultsFound("nothing was erased", faults, exit_code=2)
    erased, kept, standing = 0, 0, policies(store, tenant)
    for policy in standing:
        why = f"retention: {policy.kind} cards after {policy.days} days"
        after: Cursor | None = None
        while found := _next(store, due(tenant, policy, standing, now), after):
            done = erase_some(store, tenant, [one.rollout_id for one in found], by, why)
            erased, kept, after = erased + len(done.erased), kept + len(done.held), found[-1]
            step(len(found))
    spans = [one.rollout_id for one in _due_without_card(store, tenant, standing, now)]
    for first in range(0, len(spans), BATCH):
        done = erase_some(store, tenant, spans[first : first + BATCH], by, "retention: spans without a card, as production cards")
        erased, kept = erased + len(done.erased), kept + len(done.held)
        step(len(spans[first : first + BATCH]))
    return Applied(erased, kept, wipe(store))


def due(tenant: str, policy: Policy, standing: Sequence[Policy], now: dt.datetime) -> tuple[sa.ColumnElement[bool], ...]:
    """True of the cards that are older than the policy lets them be and still have words, their own or somebody's about them."""
    limit, card = now - dt.timedelta(days=policy.days), job_cards.c
    own = [one.kind for one in standing if one.kind != EVERY_OTHER]
    of_kind = card.kind.not_in(own) if policy.kind == EVERY_OTHER else card.kind == policy.kind
    without_a_time = card.rollout_id >= earliest_id(now + dt.timedelta(days=31 * (AHEAD + 1)))  # beyond every month that is prepared
    old_id = sa.or_(card.rollout_id < earliest_id(limit), without_a_time)
    return card.tenant == tenant, of_kind, card.started_at < limit, card.recorded_at < limit, old_id, has_any_words()


def _due_without_card(store: Store, tenant: str, standing: Sequence[Policy], now: dt.datetime) -> list[Cardless]:
    days = {policy.kind: policy.days for policy in standing}
    kept_for = days.get("production", days.get(EVERY_OTHER))
    if kept_for is None:
        return []
    with store.reading() as connection:
        return without_card(connection, tenant, now - dt.timedelta(days=kept_for))


def _lines_without_card(store: Store, tenant: str, due: Sequence[Cardless]) -> Iterator[Due]:
    stay = held(store, tenant, [one.rollout_id for one in due])
    for month, group in groupby(due, key=lambda one: f"{one.last_at.astimezone(dt.UTC):%Y-%m}"):
        of_month = list(group)
        yield Due(NO_CARD, month, len(of_month), sum(one.rollout_id in stay for one in of_month), of_month[0].last_at)


def _next(store: Store, conditions: Sequence[sa.ColumnElement[bool]], after: Cursor | None) -> list[Cursor]:
    """The oldest that are due, those after the last that was looked at: a held one is due for ever."""
    place = job_cards.c.started_at, job_cards.c.rollout_id
    select = sa.select(*place).where(*conditions).order_by(*place).limit(BATCH)
    if after is not None:
        shown = sa.literal(after.started_at, place[0].type), sa.literal(after.rollout_id, place[1].type)
        select = select.where(sa.tuple_(*place) > sa.tuple_(*shown))
    with store.reading() as connection:
        return [Cursor(*row) for row in connection.execute(select)]


def _month(store: Store) -> sa.ColumnElement[Any]:
    if store.engine.dialect.name == "sqlite":
        month = sa.func.substr(sa.type_coerce(job_cards.c.started_at, sa.Text), 1, 7)
    else:
        month = sa.func.to_char(sa.func.timezone("UTC", job_cards.c.started_at), "YYYY-MM")
    return month.label("month")


def _faults_of_kind(kind: str) -> list[Fault]:
    return [] if kind in KINDS else [Fault("kind", f"{kind[:50]!r} is no kind of card", did_you_mean(kind, KINDS))]
