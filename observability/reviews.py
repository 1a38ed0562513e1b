"""What reviewers say of cards, what they want changed because of them, and what came of that. Rows are only added.

A reviewer's words are kept to the letter, unlike a card's: nobody's data came into them by accident, their writer answers for them, and
a verdict whose reasons were rewritten would be no evidence. They have a salt, so a person's right to erasure reaches them all the same.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa

from agent_rft.contracts.errors import Fault, FaultsFound
from observability.book import Book
from observability.dossier import OUTCOMES, TARGETS, VERDICTS, Change, NotThere, Outcome, Review, Target
from observability.halves import change_halves, outcome_halves, review_halves
from observability.states import fault_of_choice, faults_of_words, refuse_sealed, require_card
from observability.store import Store
from observability.tables import card_steps, change_outcomes, change_requests, reviews
from observability.texts import storable

MUST_SAY = ("coach", "note")
"""Without words these say nothing."""


def add(store: Store, by: str, tenant: str, rollout_id: str, verdict: str, note: str = "", position: int | None = None) -> Review:
    """About the whole card, or about the step at `position`."""
    _refuse("the review", _faults_of_review(verdict, note))
    with store.writing() as connection:
        book = Book(connection, [tenant])
        added = _add(connection, book, by, tenant, rollout_id, verdict, note, position)
        book.close()
    return added


def add_with_change(
    store: Store, by: str, tenant: str, rollout_id: str, verdict: str, note: str, position: int | None, target: str
) -> tuple[Review, Change]:  # fmt: skip
    """A verdict whose note is what is wanted of the data-set row or the prompt as well: both or neither."""
    _refuse("the review", [*_faults_of_review(verdict, note), *_faults_of_change(target, note)])
    with store.writing() as connection:
        book = Book(connection, [tenant])
        added = _add(connection, book, by, tenant, rollout_id, verdict, note, position)
        asked = _request_change(connection, book, by, tenant, rollout_id, target, note)
        book.close()
    return added, asked


def request_change(store: Store, by: str, tenant: str, rollout_id: str, target: str, wanted: str) -> Change:
    """Of the data-set row that the card tried, or of the prompt."""
    _refuse("the change request", [*_faults_of_change(target, wanted), *faults_of_words("wanted", wanted)])
    with store.writing() as connection:
        book = Book(connection, [tenant])
        asked = _request_change(connection, book, by, tenant, rollout_id, target, wanted)
        book.close()
    return asked


def settle(store: Store, by: str, tenant: str, request: int, outcome: str, how: str = "") -> Change:
    """Done or declined, and how. Of several outcomes the newest counts. A sealed card's requests can still be settled: what is done
    about a finding comes after it."""
    faults = [*fault_of_choice("outcome", outcome, OUTCOMES), *faults_of_words("how", how)]
    if outcome == "declined" and not how.strip():
        faults.append(Fault("how", "a request is declined without a reason", "write why"))
    _refuse("the outcome", faults)
    with store.writing() as connection:
        book = Book(connection, [tenant])
        found = _changes(connection, change_requests.c.tenant == tenant, change_requests.c.id == _as_id(request))
        if not found:
            raise NotThere(f"there is no change request {request}", "`rft change list` and GET /v1/changes show those that are there")
        about = {"tenant": tenant, "request": request, "rollout_id": found[0].rollout_id}
        row = _signed(by, about | {"outcome": outcome, "how": storable(how)})
        book.enter("outcome", row["rollout_id"], row, outcome_halves(row))
        connection.execute(sa.insert(change_outcomes), [row])
        book.close()
        return _changes(connection, change_requests.c.tenant == tenant, change_requests.c.id == request)[0]


def _add(
    connection: sa.Connection, book: Book, by: str, tenant: str, rollout_id: str, verdict: str, note: str, position: int | None
) -> Review:  # fmt: skip
    require_card(connection, tenant, rollout_id)
    refuse_sealed(connection, tenant, [rollout_id])
    if position is not None:
        _require_step(connection, tenant, rollout_id, position)
    row = _signed(by, {"tenant": tenant, "rollout_id": rollout_id, "position": position, "verdict": verdict, "note": storable(note)})
    book.enter("review", rollout_id, row, review_halves(row))
    row["id"] = connection.scalar(sa.insert(reviews).returning(reviews.c.id), row)
    return Review(**{name: row[name] for name in Review.__struct_fields__})


def _request_change(connection: sa.Connection, book: Book, by: str, tenant: str, rollout_id: str, target: str, wanted: str) -> Change:
    row_id = require_card(connection, tenant, rollout_id).row_id
    refuse_sealed(connection, tenant, [rollout_id])
    row = _signed(by, {"tenant": tenant, "rollout_id": rollout_id, "target": target, "row_id": row_id, "wanted": storable(wanted)})
    book.enter("change", rollout_id, row, change_halves(row))
    row["id"] = connection.scalar(sa.insert(change_requests).returning(change_requests.c.id), row)
    return Change(**{name: row[name] for name in Change.__struct_fields__ if name != "outcome"}, outcome=None)


# --- reading ------------------------------------------------------------------------------------------------------------


def reviews_of(store: Store, tenant: str, rollout_id: str) -> tuple[Review, ...]:
    """Oldest first."""
    return tuple(reviews_of_each(store, tenant, [rollout_id]))


def reviews_of_each(store: Store, tenant: str, rollout_ids: Sequence[str]) -> list[Review]:
    """Of all of these cards, each card's oldest first; a page of cards is one question to the store."""
    select = sa.select(*(reviews.c[name] for name in Review.__struct_fields__)).order_by(reviews.c.entry)
    with store.reading() as connection:
        parts = (rollout_ids[first : first + 500] for first in range(0, len(rollout_ids), 500))
        mine = (select.where(reviews.c.rollout_id.in_(part), reviews.c.tenant == tenant) for part in parts)
        return [Review(**row) for one in mine for row in connection.execute(one).mappings()]


def changes_of(store: Store, tenant: str, rollout_id: str) -> tuple[Change, ...]:
    with store.reading() as connection:
        return tuple(_changes(connection, change_requests.c.tenant == tenant, change_requests.c.rollout_id == rollout_id))


def changes(
    store: Store, tenant: str, *, target: Target | None = None, open_only: bool = False, after: int = 0, limit: int = 1000
) -> list[Change]:
    """Oldest first; `after` is the id of the last one seen."""
    mine = [change_requests.c.tenant == tenant, change_requests.c.id > _as_id(after)]
    if target is not None:
        mine.append(change_requests.c.target == target)
    if open_only:
        mine.append(~sa.exists().where(change_outcomes.c.request == change_requests.c.id))
    with store.reading() as connection:
        return _changes(connection, *mine, limit=limit)


def _changes(connection: sa.Connection, *mine: sa.ColumnElement[bool], limit: int | None = None) -> list[Change]:
    columns = [change_requests.c[name] for name in Change.__struct_fields__ if name != "outcome"]
    found = connection.execute(sa.select(*columns).where(*mine).order_by(change_requests.c.id).limit(limit)).mappings().all()
    came = _outcomes(connection, [row["id"] for row in found])
    return [Change(**row, outcome=came.get(row["id"])) for row in found]


def _outcomes(connection: sa.Connection, requests: Sequence[int]) -> dict[int, Outcome]:
    """The newest of each."""
    came: dict[int, Outcome] = {}
    for first in range(0, len(requests), 500):
        select = sa.select(change_outcomes).where(change_outcomes.c.request.in_(requests[first : first + 500]))
        for row in connection.execute(select.order_by(change_outcomes.c.entry)).mappings():
            came[row["request"]] = Outcome(outcome=row["outcome"], how=row["how"], by=row["by"], at=row["at"])
    return came


# --- what is asked before ---------------------------------------------------------------------------------------------------


def _faults_of_review(verdict: str, note: str) -> Iterable[Fault]:
    yield from (*fault_of_choice("verdict", verdict, VERDICTS), *faults_of_words("note", note))
    if verdict in MUST_SAY and not note.strip():
        yield Fault("note", f"{verdict!r} without words helps nobody", "write what should have been done")


def _faults_of_change(target: str, wanted: str) -> Iterable[Fault]:
    yield from fault_of_choice("target", target, TARGETS)
    if not wanted.strip():
        yield Fault("wanted", "nothing is asked for", "write what should be changed, and how")


def _refuse(what: str, faults: Iterable[Fault]) -> None:
    if found := [*faults]:
        raise FaultsFound(f"{what} cannot be taken:", found, exit_code=2)


def _require_step(connection: sa.Connection, tenant: str, rollout_id: str, position: int) -> None:
    mine = (card_steps.c.rollout_id == rollout_id, card_steps.c.tenant == tenant)
    last = connection.scalar(sa.select(sa.func.max(card_steps.c.position)).where(*mine))
    if last is None or not 0 <= position <= last:
        cure = "leave the position out: the card has no steps" if last is None else f"0 to {last}"
        raise FaultsFound("the review cannot be taken:", [Fault("position", f"the card has no step {position}", cure)], exit_code=2)


def _as_id(number: int) -> int:
    """What no column holds is no request's id, and no error of the database's."""
    return number if 0 <= number < 2**63 else -1


def _signed(by: str, row: dict[str, Any]) -> dict[str, Any]:
    return row | {"by": storable(by), "at": dt.datetime.now(dt.UTC)}
