"""How far a job has come: noted by whoever runs it until it answers, shown by its card's grades and reviews from then on, and sealed at
last by an approver. What is derived in `dossier.state_of` for one card stands here as SQL for all of them; change both together.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import sqlalchemy as sa

from agent_rft.contracts.errors import Fault, FaultsFound, UserError, did_you_mean
from observability.book import Book
from observability.dossier import BEFORE_THE_ANSWER, JUDGEMENTS, NotThere, Sealed, StateNote
from observability.halves import state_halves
from observability.records import Values
from observability.redaction.detectors import BUILT_IN_ONLY, Detectors
from observability.redaction.redact import redact
from observability.store import Store
from observability.tables import card_states, grades, job_cards, reviews
from observability.texts import storable

LONGEST_ID = 200
LONGEST_WORDS = 10_000
"""Characters of what a person writes about a card."""
AT_ONCE = 2000
SHOWN = 5
"""Sealed cards that an error names."""
Clause: TypeAlias = sa.ColumnElement[bool]


# --- as a question ------------------------------------------------------------------------------------------------------


def with_a_row(table: sa.Table, *holds: Clause) -> Clause:
    """True of cards that have such a row. For rows that few cards have: the database begins with those and not with the cards."""
    named = sa.select(table.c.rollout_id, table.c.tenant).where(table.c.rollout_id.is_not(None), *holds)
    return sa.tuple_(job_cards.c.rollout_id, job_cards.c.tenant).in_(named)


def has_a_row(table: sa.Table, *holds: Clause) -> Clause:
    """The same, looked up for each card: for rows that most cards have, and for cards that have none."""
    of_card = (table.c.rollout_id == job_cards.c.rollout_id, table.c.tenant == job_cards.c.tenant)
    return sa.select(sa.literal(1)).select_from(table).where(*of_card, *holds).correlate(job_cards).exists()


def none_newer(table: sa.Table, *holds: Any, same: Sequence[str] = ()) -> Clause:
    """True of a row of a card where no newer one of that card holds. `holds` are made from the alias of the newer one."""
    newer = table.alias()
    alike = [newer.c[name] == table.c[name] for name in ("rollout_id", "tenant", *same)]
    later = sa.select(sa.literal(1)).select_from(newer).where(*alike, newer.c.entry > table.c.entry, *(one(newer) for one in holds))
    return ~later.correlate(table).exists()


def _states() -> Mapping[str, Clause]:
    is_seal, judges = card_states.c.state == "sealed", reviews.c.verdict.in_(JUDGEMENTS)
    open_, unjudged = ~has_a_row(card_states, is_seal), ~has_a_row(reviews, judges)
    unanswered = sa.and_(job_cards.c.ending.is_(None), ~has_a_row(grades), unjudged, open_)
    noted: dict[str, Clause] = {
        state: sa.and_(with_a_row(card_states, card_states.c.state == state, none_newer(card_states)), unanswered)
        for state in BEFORE_THE_ANSWER
    }
    return noted | {
        "in_progress": sa.or_(noted["in_progress"], sa.and_(unanswered, ~has_a_row(card_states))),
        "submitted": sa.and_(job_cards.c.ending.is_not(None), ~has_a_row(grades), unjudged, open_),
        "graded": sa.and_(has_a_row(grades), unjudged, open_),
        "reviewed": sa.and_(with_a_row(reviews, judges), open_),
        "sealed": with_a_row(card_states, is_seal),
    }


STATES = _states()


# --- noting and sealing -------------------------------------------------------------------------------------------------


def notes_of(store: Store, tenant: str, rollout_id: str) -> tuple[StateNote, ...]:
    """Oldest first."""
    with store.reading() as connection:
        return notes_in(connection, tenant, rollout_id)


def notes_in(connection: sa.Connection, tenant: str, rollout_id: str) -> tuple[StateNote, ...]:
    columns = [card_states.c[name] for name in StateNote.__struct_fields__]
    mine = (card_states.c.rollout_id == rollout_id, card_states.c.tenant == tenant)
    return tuple(StateNote(**row) for row in connection.execute(sa.select(*columns).where(*mine).order_by(card_states.c.entry)).mappings())


def note(store: Store, by: str, tenant: str, rollout_id: str, state: str, why: str = "", detectors: Detectors = BUILT_IN_ONLY) -> bool:
    """What whoever runs a job says of it before it has an answer. A program's words: redacted as a card is. False where the newest
    note says the same: a client that did not hear our answer asks again."""
    faults = [*_faults_of_id(rollout_id), *faults_of_words("why", why)]
    if state not in BEFORE_THE_ANSWER:
        cure = f"one of {', '.join(BEFORE_THE_ANSWER)}; what follows shows in the card's grades and reviews, and `seal` seals it"
        faults.append(Fault("state", f"{state[:40]!r} is none that can be noted", cure))
    if faults:
        raise FaultsFound("the state cannot be noted:", faults, exit_code=2)
    why = redact(why, detectors.of(tenant)).text
    with store.writing() as connection:
        book = Book(connection, [tenant])
        refuse_sealed(connection, tenant, [rollout_id])
        mine = (job_cards.c.rollout_id == rollout_id, job_cards.c.tenant == tenant, job_cards.c.ending.is_not(None))
        if connection.scalar(sa.select(job_cards.c.ending).where(*mine)):
            raise UserError(f"{rollout_id} has answered already", "its state shows in its grades and reviews from now on")
        said = notes_in(connection, tenant, rollout_id)
        if said and (said[-1].state, said[-1].why) == (state, storable(why)):
            return False
        _enter(connection, book, {"tenant": tenant, "rollout_id": rollout_id, "state": state, "why": why, "by": by})
    return True


def seal(store: Store, by: str, tenant: str, rollout_id: str, why: str = "") -> None:
    """From now on nothing more is said of the card: no review, no label, no grade. Nothing takes a seal off."""
    if faults := [*faults_of_words("why", why)]:
        raise FaultsFound("the card cannot be sealed:", faults, exit_code=2)
    with store.writing() as connection:
        book = Book(connection, [tenant])
        require_card(connection, tenant, rollout_id)
        refuse_sealed(connection, tenant, [rollout_id])
        _enter(connection, book, {"tenant": tenant, "rollout_id": rollout_id, "state": "sealed", "why": why, "by": by})


def sealed_among(connection: sa.Connection, tenants: Sequence[str], rollout_ids: Sequence[str]) -> list[str]:
    if not rollout_ids:
        return []
    mine = (card_states.c.rollout_id.in_(rollout_ids), card_states.c.tenant.in_(tenants), card_states.c.state == "sealed")
    return list(connection.scalars(sa.select(card_states.c.rollout_id).where(*mine).distinct().order_by(card_states.c.rollout_id)))


def sealed_of(store: Store, rollout_ids: Sequence[str]) -> list[str]:
    """Which of many cards are sealed, whosever they are: ids that two tenants have are for the caller to tell apart."""
    sealed = sa.select(card_states.c.rollout_id).where(card_states.c.state == "sealed")
    with store.reading() as connection:
        found = set[str]()
        for first in range(0, len(rollout_ids), AT_ONCE):
            found.update(connection.scalars(sealed.where(card_states.c.rollout_id.in_(rollout_ids[first : first + AT_ONCE]))))
    return sorted(found)


def refuse_sealed(connection: sa.Connection, tenant: str, rollout_ids: Sequence[str]) -> None:
    """Asked while the tenant's ledger is ours: nobody seals between this answer and what is written next."""
    if found := sealed_among(connection, [tenant], rollout_ids):
        raise sealed_error(found)


def sealed_error(found: Sequence[str]) -> Sealed:
    shown = ", ".join(found[:SHOWN]) + (f" and {len(found) - SHOWN} more" if len(found) > SHOWN else "")
    verb = "is" if len(found) == 1 else "are"
    return Sealed(f"{shown} {verb} sealed: no review, label, grade or change request is added any more", "a seal stays for good")


def require_card(connection: sa.Connection, tenant: str, rollout_id: str) -> sa.Row[*tuple[Any, ...]]:
    """Its row_id and ending. Another tenant's card is not there."""
    select = sa.select(job_cards.c.row_id, job_cards.c.ending).where(
        job_cards.c.rollout_id == storable(rollout_id), job_cards.c.tenant == tenant
    )
    found = connection.execute(select).first()
    if found is None:
        raise NotThere(f"no card has the id {rollout_id[:LONGEST_ID]}", "`rft card list` and GET /v1/cards show those that are there")
    return found


def faults_of_words(where: str, words: str) -> list[Fault]:
    return [Fault(where, f"it has {len(words):,} characters", f"at most {LONGEST_WORDS:,}")] if len(words) > LONGEST_WORDS else []


def fault_of_choice(where: str, chosen: str, known: Sequence[str]) -> list[Fault]:
    return [] if chosen in known else [Fault(where, f"{chosen[:40]!r} is none of its values", did_you_mean(chosen[:40], known))]


def _faults_of_id(rollout_id: str) -> list[Fault]:
    if rollout_id and len(rollout_id) <= LONGEST_ID and rollout_id.isprintable():
        return []
    return [Fault("rollout_id", f"{rollout_id[:40]!r} is no id", f"1 to {LONGEST_ID} printable characters")]


def _enter(connection: sa.Connection, book: Book, values: Values) -> None:
    row: Values = values | {"at": dt.datetime.now(dt.UTC), "why": storable(values["why"])}
    book.enter("state", row["rollout_id"], row, state_halves(row))
    connection.execute(sa.insert(card_states), [row])
    book.close()
