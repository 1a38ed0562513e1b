"""Reads job cards back."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from agent_rft.contracts.errors import UserError, did_you_mean
from agent_rft.contracts.grades import Grade
from observability.records import Erased, StoredCard, Values, card_of, grade_of
from observability.store import Store
from observability.tables import blobs, card_steps, erasures, grades, job_cards
from observability.texts import unpacked

BEYOND = "\U0010ffff"  # sorts after anything an id holds
SHOWN = 5  # ids named in an error
FETCHED = 200  # cards read in one go


class CardLine(msgspec.Struct, frozen=True):
    """A card in a list."""

    rollout_id: str
    kind: str
    tenant: str
    run_id: str
    step: int | None
    row_id: str
    started_at: dt.datetime
    ending: str | None
    reward: float | None
    """The newest grade's."""
    tool_calls: int


class RunCard(msgspec.Struct, frozen=True):
    """As much of a card as tells which part of its run it is of."""

    rollout_id: str
    kind: str
    step: int | None
    checkpoint: str


def find_card(store: Store, id_or_prefix: str) -> StoredCard:
    """The one card with this rollout id, or the one whose id begins so."""
    return next(cards_by_id(store, [whole_id(store, id_or_prefix)]))


def card_ids(store: Store, run_id: str, kind: str | None = None) -> list[str]:
    """Of one run, in the order in which it started them."""
    select = _narrowed(sa.select(job_cards.c.rollout_id), run_id, kind).order_by(job_cards.c.started_at, job_cards.c.rollout_id)
    with store.reading() as connection:
        return list(connection.scalars(select))


def cards_of_run(store: Store, run_id: str) -> list[RunCard]:
    """In the order in which the run started them."""
    columns = [job_cards.c[name] for name in RunCard.__struct_fields__]
    select = _narrowed(sa.select(*columns), run_id, None).order_by(job_cards.c.started_at, job_cards.c.rollout_id)
    with store.reading() as connection:
        return [RunCard(**row) for row in connection.execute(select).mappings()]


def state_of_run(store: Store, run_id: str) -> tuple[int, int, int]:
    """How many cards it has, the ledger's entry of their newest grade, and of how many the words were erased: while these are the same,
    so is all that its cards say."""
    of_run = (job_cards.c.run_id == run_id,)
    graded = grades.join(job_cards, sa.and_(grades.c.rollout_id == job_cards.c.rollout_id, grades.c.tenant == job_cards.c.tenant))
    erased = sa.func.sum(sa.case((job_cards.c.salt.is_(None), 1), else_=0))
    with store.reading() as connection:
        cards, gone = connection.execute(sa.select(sa.func.count(), erased).where(*of_run)).one()
        newest = connection.scalar(sa.select(sa.func.max(grades.c.entry)).select_from(graded).where(*of_run))
    return cards, newest or 0, gone or 0


def of_one_tenant(store: Store, expected: str, run_id: str | None = None, ids: Sequence[str] = ()) -> Store:
    """The store as one tenant sees it: the expected one where it has cards of the run or by these ids (beginnings will do), else the only
    other that has; where nobody has, as it is. Whoever may send cards may send them under the name of another's run, and they are none
    of it. With neither run nor ids it is asked of all cards."""
    key = job_cards.c.rollout_id
    named = [sa.and_(key >= one, key < one + BEYOND) for one in ids] + ([] if run_id is None else [job_cards.c.run_id == run_id])
    select = sa.select(job_cards.c.tenant).distinct()
    with store.reading() as connection:
        owners = sorted(connection.scalars(select.where(sa.or_(*named)) if named else select))
    if len(owners) > 1 and expected not in owners:
        about = f"cards of run {run_id}" if run_id is not None else "such cards"
        more = ", ..." if len(owners) > SHOWN else ""
        cure = "name whose are meant: --tenant NAME, or store.tenant=NAME where settings are taken"
        raise UserError(f"several tenants have {about}: {', '.join(owners[:SHOWN])}{more}", cure)
    return store.of(expected if expected in owners else owners[0]) if owners else store


def whole_id(store: Store, id_or_prefix: str) -> str:
    with store.reading() as connection:
        return _only_id(connection, id_or_prefix)


def cards_by_id(store: Store, rollout_ids: Sequence[str], tenant: str | None = None) -> Iterator[StoredCard]:
    """In the order of the ids, a batch in memory at a time."""
    for first in range(0, len(rollout_ids), FETCHED):
        with store.reading() as connection:
            found = stored_cards(connection, rollout_ids[first : first + FETCHED], tenant)
        yield from found


def grades_by_id(store: Store, rollout_ids: Sequence[str]) -> dict[str, list[Grade]]:
    """All that each was ever given, oldest first, without the cards, which are a hundred times as much."""
    found: dict[str, list[Grade]] = {}
    for first in range(0, len(rollout_ids), FETCHED):
        with store.reading() as connection:
            for row in _all_of(connection, grades, "entry", rollout_ids[first : first + FETCHED], None):
                found.setdefault(row["rollout_id"], []).append(grade_of(row))
    return found


def stored_cards(connection: sa.Connection, rollout_ids: Sequence[str], tenant: str | None = None) -> list[StoredCard]:
    """Those that are there, in the order of the ids: of the tenant, or of every one that has a card by such an id."""
    cards = _by_key(_all_of(connection, job_cards, "rollout_id", rollout_ids, tenant))
    steps = _by_key(_all_of(connection, card_steps, "position", rollout_ids, tenant))
    given = _by_key(_all_of(connection, grades, "entry", rollout_ids, tenant))
    texts = {
        whose: texts_of(connection, whose, (row for key, rows in (*cards.items(), *steps.items()) if key[1] == whose for row in rows))
        for whose in {whose for _, whose in cards}
    }
    place = {rollout_id: number for number, rollout_id in enumerate(rollout_ids)}
    keys = sorted(cards, key=lambda key: (place[key[0]], key[1]))
    gone = _erasures_of(connection, [key[0] for key in keys if cards[key][0]["salt"] is None])
    return [card_of(cards[key][0], steps.get(key, []), given.get(key, []), texts[key[1]], gone.get(key)) for key in keys]


def _erasures_of(connection: sa.Connection, rollout_ids: Sequence[str]) -> dict[tuple[str, str], Erased]:
    """Of cards that have no words any more: when these went, which is what the first erasure says."""
    if not rollout_ids:
        return {}
    select = sa.select(erasures).where(erasures.c.rollout_id.in_(rollout_ids)).order_by(erasures.c.entry.desc())
    rows = connection.execute(select).mappings()
    return {(row["rollout_id"], row["tenant"]): Erased(row["at"], row["by"], row["why"]) for row in rows}


def count_cards(store: Store, run_id: str | None = None, kind: str | None = None) -> int:
    with store.reading() as connection:
        return connection.scalar(_narrowed(sa.select(sa.func.count()).select_from(job_cards), run_id, kind)) or 0


def recent_cards(store: Store, limit: int = 20, run_id: str | None = None, kind: str | None = None) -> list[CardLine]:
    """The newest cards first."""
    select = _narrowed(sa.select(*line_columns()), run_id, kind)
    listed = select.order_by(job_cards.c.started_at.desc(), job_cards.c.rollout_id).limit(limit)
    with store.reading() as connection:
        return [CardLine(**row) for row in connection.execute(listed).mappings()]


def line_columns() -> list[sa.ColumnElement[Any]]:
    """What a list shows of a card."""
    newest_grade = (
        sa.select(grades.c.reward)
        .where(grades.c.rollout_id == job_cards.c.rollout_id, grades.c.tenant == job_cards.c.tenant)
        .order_by(grades.c.entry.desc())  # which the ledger vouches for, and for no id
        .limit(1)
        .scalar_subquery()
        .label("reward")
    )
    return [newest_grade if name == "reward" else job_cards.c[name] for name in CardLine.__struct_fields__]


def _narrowed(select: sa.Select[Any], run_id: str | None, kind: str | None) -> sa.Select[Any]:
    if run_id is not None:
        select = select.where(job_cards.c.run_id == run_id)
    return select if kind is None else select.where(job_cards.c.kind == kind)


def _all_of(connection: sa.Connection, table: sa.Table, order: str, rollout_ids: Sequence[str], tenant: str | None) -> list[Values]:
    select = sa.select(table).where(table.c.rollout_id.in_(rollout_ids)).order_by(table.c[order])
    if tenant is not None:
        select = select.where(table.c.tenant == tenant)
    return [dict(zip(table.c.keys(), row, strict=True)) for row in connection.execute(select)]


def texts_of(connection: sa.Connection, tenant: str, rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Of the tenant's blobs that its cards and steps name, by hash."""
    named = {row[name] for row in rows for name in ("opening", "tools", "output_blob") if row.get(name)}
    select = sa.select(blobs.c.hash, blobs.c.body).where(blobs.c.tenant == tenant, blobs.c.hash.in_(named))
    return {key: unpacked(body) for key, body in connection.execute(select)}


def _by_key(rows: Sequence[Values]) -> dict[tuple[str, str], list[Values]]:
    found: dict[tuple[str, str], list[Values]] = {}
    for row in rows:
        found.setdefault((row["rollout_id"], row["tenant"]), []).append(row)
    return found


def _only_id(connection: sa.Connection, wanted: str) -> str:
    found = _beginning_with(connection, wanted)
    if wanted in found or len(found) == 1:
        return found[0]  # an exact id sorts before all that it begins
    if not found:
        raise UserError(f"no card's id begins with '{wanted}'", _nearest(connection, wanted))
    shown = ", ".join(found[:SHOWN]) + (", ..." if len(found) > SHOWN else "")
    raise UserError(f"several cards' ids begin with '{wanted}': {shown}", "give more of the id")


def _beginning_with(connection: sa.Connection, prefix: str) -> list[str]:
    key = job_cards.c.rollout_id
    select = sa.select(key).where(key >= prefix, key < prefix + BEYOND).order_by(key).limit(SHOWN + 1)
    return list(connection.scalars(select))


def _nearest(connection: sa.Connection, wanted: str) -> str:
    """Ids that begin as the wanted one does, for as far as any does."""
    for length in range(len(wanted) - 1, -1, -1):
        if near := _beginning_with(connection, wanted[:length]):
            return did_you_mean(wanted, near)
    return "the store holds no card yet"
