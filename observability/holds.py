"""Legal holds: cards whose words nothing takes, no retention and no person's right, until the hold is released.

A hold is a query and covers cards that come later too. It asks only of what never changes about a card, or a new grade could let
one slip out of it. Words are looked for in the cards themselves and not in the index, which may be behind and ends after so many
words. Placing one and erasing take turns: both write in the tenant's ledger.
A trace that is no card is held where nobody can say that the hold is not about it.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence
from functools import cache
from typing import Literal

import msgspec
import sqlalchemy as sa

from agent_rft.contracts.errors import Fault, FaultsFound, UserError, did_you_mean
from observability.book import Book
from observability.cardless import may_be_asked_for
from observability.cards import stored_cards
from observability.filters import where
from observability.halves import hold_halves
from observability.query import META, Query, Text, keys_of, parse
from observability.records import Values
from observability.store import Store
from observability.tables import job_cards, legal_holds
from observability.words import every_word, stands_in

STEADY = frozenset(
    "id kind run row step sample task difficulty started recorded ending failed tool error calls tokens seconds tool_seconds checkpoint"
    " dataset tool_set code seed".split()
)
"""Keys that say of a card tomorrow what they say today."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
LONGEST_REASON = 1000
AT_ONCE = 200
Act = Literal["placed", "released"]
Held = dict[str, tuple[str, ...]]
"""Of cards that are held, the names of the holds."""


class Hold(msgspec.Struct, frozen=True):
    """What was done about one, and when."""

    name: str
    act: Act
    query: str
    """With absolute times: what `after:7d` meant when it was placed."""
    reason: str
    by: str
    at: dt.datetime


def place(store: Store, tenant: str, name: str, query: Query, reason: str, by: str) -> Hold:
    """Every card that the query asks for, now or later, is held from the moment this returns."""
    faults = [*_faults(name, reason, by), *(_changes(key) for key in sorted(keys_of(query) - STEADY) if not key.startswith(META))]
    if faults:
        raise FaultsFound("this hold cannot be placed", faults, exit_code=2)
    with store.writing() as connection:
        book = Book(connection, [tenant])
        if any(hold.name == name for hold in _live(connection, tenant)):
            raise UserError(f"a hold {name} is placed already", "give another name, or release that one first")
        return _write(connection, book, tenant, Hold(name, "placed", str(query), reason, by, _now()))


def release(store: Store, tenant: str, name: str, reason: str, by: str) -> Hold:
    if faults := [*_faults(name, reason, by)]:
        raise FaultsFound("no hold was released", faults, exit_code=2)
    with store.writing() as connection:
        book = Book(connection, [tenant])
        standing = {hold.name: hold for hold in _live(connection, tenant)}
        if name not in standing:
            cure = did_you_mean(name, standing) if standing else "none is placed"
            raise UserError(f"no hold {name} stands", cure)
        return _write(connection, book, tenant, Hold(name, "released", standing[name].query, reason, by, _now()))


def live(store: Store, tenant: str) -> list[Hold]:
    """Those that stand, oldest first."""
    with store.reading() as connection:
        return _live(connection, tenant)


def history(store: Store, tenant: str) -> list[Hold]:
    """Everything that was placed and released, oldest first."""
    with store.reading() as connection:
        return _acts(connection, tenant)


def held(store: Store, tenant: str, rollout_ids: Sequence[str]) -> Held:
    """Which of these cards are held, and by what."""
    found: Held = {}
    for first in range(0, len(rollout_ids), AT_ONCE):
        with store.reading() as connection:
            found |= held_among(connection, tenant, rollout_ids[first : first + AT_ONCE])
    return found


def held_among(connection: sa.Connection, tenant: str, rollout_ids: Sequence[str]) -> Held:
    """Of so few that their words fit into memory."""

    @cache
    def words() -> dict[str, list[str]]:
        return {stored.card.rollout_id: [*every_word(stored.card)] for stored in stored_cards(connection, rollout_ids, tenant)}

    def having(texts: Sequence[Text]) -> sa.ColumnElement[bool]:
        these = [one for one, said in words().items() if all(stands_in(text, said) for text in texts)]
        return job_cards.c.rollout_id.in_(these)

    found: Held = {}
    for hold in _live(connection, tenant):
        mine = (job_cards.c.tenant == tenant, job_cards.c.rollout_id.in_(rollout_ids))
        for one in connection.scalars(sa.select(job_cards.c.rollout_id).where(*mine, where(query_of(hold), having))):
            found[one] = (*found.get(one, ()), hold.name)
        for one in may_be_asked_for(connection, tenant, rollout_ids, query_of(hold)):
            found[one] = (*found.get(one, ()), hold.name)
    return found


def query_of(hold: Hold) -> Query:
    return parse(hold.query, hold.at)


def _acts(connection: sa.Connection, tenant: str) -> list[Hold]:
    columns = [legal_holds.c[name] for name in Hold.__struct_fields__]
    select = sa.select(*columns).where(legal_holds.c.tenant == tenant).order_by(legal_holds.c.entry)
    return [Hold(**row) for row in connection.execute(select).mappings()]


def _live(connection: sa.Connection, tenant: str) -> list[Hold]:
    newest = {hold.name: hold for hold in _acts(connection, tenant)}
    return [hold for hold in newest.values() if hold.act == "placed"]


def _write(connection: sa.Connection, book: Book, tenant: str, hold: Hold) -> Hold:
    row: Values = msgspec.structs.asdict(hold) | {"tenant": tenant}
    book.enter("hold", hold.name, row, hold_halves(row))
    connection.execute(sa.insert(legal_holds), [row])
    book.close()
    return hold


def _faults(name: str, reason: str, by: str) -> list[Fault]:
    wrong: list[Fault] = []
    if not NAME.fullmatch(name):
        wrong.append(Fault("name", f"{name[:120]!r} is no name of a hold", "letters, digits, dots, dashes and underscores, at most 100"))
    return [*wrong, *faults_of_reason("reason", reason), *faults_of_reason("by", by)]


def faults_of_reason(where_: str, text: str) -> list[Fault]:
    """Of what somebody has to say for the record."""
    if not text.strip():
        return [Fault(where_, "is empty", "the record says who and why")]
    return [Fault(where_, f"has {len(text):,} characters", f"at most {LONGEST_REASON:,}")] if len(text) > LONGEST_REASON else []


def _changes(key: str) -> Fault:
    cure = f"ask for words, meta.NAME, {', '.join(sorted(STEADY))}"
    return Fault("query", f"what {key} says of a card can change, and it would slip out of the hold", cure)


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
