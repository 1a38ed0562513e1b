"""The access log: complete, in order, kept by tenant, and whatever is done to it behind the store's back is named."""

from __future__ import annotations

import hashlib
import sqlite3

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from observability import accesses, ledger
from observability.access import Caller, person_at_the_machine
from observability.accesses import note, readers_of, reading
from observability.store import Store
from observability.tables import access_cards, access_log

ANN = Caller("acme", "ann", "reviewer", frozenset({"read"}), "k1")
EVE = Caller("other", "ann", "reviewer", frozenset({"read"}), "k2")
BOB = person_at_the_machine("acme", "bob")
CARDS = ["card-1", "card-2", "card-3"]


@pytest.fixture
def noted(peoples_store: Store) -> Store:
    """Three readings, one of them another tenant's of a card of the same id, and a search."""
    note(peoples_store, ANN, "read", "card-1", ["card-1"])
    note(peoples_store, BOB, "export", "kind:eval", ["card-3", "card-1", "card-3", "card-2"])
    note(peoples_store, EVE, "read", "card-1", ["card-1"])
    note(peoples_store, ANN, "search", "a word")
    return peoples_store


def lines(store: Store, *chosen: object, **how: object) -> list[tuple[str, str, str, int]]:
    found = reading(store, *chosen, **how)  # pyright: ignore[reportArgumentType]
    return [(line.by, line.action, line.subject, line.cards) for line in found]


def test_the_log_is_read_newest_first_by_card_by_person_and_in_pages(noted):
    search, export, read = ("ann", "search", "a word", 0), ("bob@cli", "export", "kind:eval", 3), ("ann", "read", "card-1", 1)
    assert lines(noted, "acme") == [search, export, read]
    assert lines(noted, "acme", "card-1") == [export, read] and lines(noted, "acme", "card-2") == [export]
    assert lines(noted, "acme", by="ann") == [search, read]
    first = reading(noted, "acme", limit=2)
    assert [line.entry for line in first] == [3, 2] and lines(noted, "acme", after=first[-1].id) == [read]
    assert lines(noted, "other") == [("ann", "read", "card-1", 1)] and lines(noted, "nobody") == []


def test_the_digest_of_a_line_is_over_its_cards_in_their_order(noted):
    with noted.reading() as connection:
        digest = connection.scalar(sa.select(access_log.c.cards_digest).where(access_log.c.action == "export"))
    assert digest == hashlib.sha256(b'["card-1","card-2","card-3"]').hexdigest()  # none twice


def test_who_read_some_cards_is_told_line_by_line_and_no_other_tenants(noted):
    told = [(line["entry"], line["rollout_id"], line["by"], line["action"]) for line in readers_of(noted, "acme", ["card-1", "card-3"])]
    assert told == [(1, "card-1", "ann", "read"), (2, "card-1", "bob@cli", "export"), (2, "card-3", "bob@cli", "export")]
    assert [line["by"] for line in readers_of(noted, "other", CARDS)] == ["ann"]


def test_more_cards_than_fit_a_statement_are_all_named(peoples_store):
    many = [f"card-{number}" for number in range(accesses.AT_ONCE * 2 + 1)]
    note(peoples_store, ANN, "export", "", many)
    assert len(readers_of(peoples_store, "acme", many)) == len(many) and list(ledger.verify(peoples_store, "acme")) == []


def changed(store: Store, *statements: sa.Executable) -> list[tuple[int, str, str]]:
    with store.writing() as connection:
        for statement in statements:
            connection.execute(statement)
    return [(finding.seq, finding.what, finding.subject) for finding in ledger.verify(store, "acme")]


EXPORT, SEARCH = access_log.c.action == "export", access_log.c.action == "search"
OF_EXPORT = access_cards.c.access == sa.select(access_log.c.id).where(EXPORT).scalar_subquery()
SECOND = access_cards.c.rollout_id == "card-2"


def put_in(tenant: str) -> sa.Executable:
    row = sa.select(access_log.c.id, sa.literal("card-9"), sa.literal(tenant)).where(SEARCH)
    return sa.insert(access_cards).from_select(["access", "rollout_id", "tenant"], row)


AS_IF = {"cards": 2, "cards_digest": accesses.digest_of_cards(["card-1", "card-3"])}
TAMPERED = {
    "a card taken out": ([access_cards.delete().where(OF_EXPORT, SECOND)], (2, "removed", "export")),
    "all taken out": ([access_cards.delete().where(OF_EXPORT)], (2, "removed", "export")),
    "a card put in": ([put_in("acme")], (3, "inserted", "search")),
    "another tenant's card put in": ([put_in("other")], (3, "inserted", "search")),
    "a card exchanged": ([access_cards.update().where(OF_EXPORT, SECOND).values(rollout_id="card-9")], (2, "edited", "export")),
    "a card given away": ([access_cards.update().where(OF_EXPORT, SECOND).values(tenant="other")], (2, "edited", "export")),
    "the reader changed": ([access_log.update().where(EXPORT).values(by="eve")], (2, "edited", "export")),
    "the digest changed too": (
        [access_cards.delete().where(OF_EXPORT, SECOND), access_log.update().where(EXPORT).values(**AS_IF)],
        (2, "edited", "export"),
    ),
    "the line deleted": ([access_log.delete().where(EXPORT)], (2, "removed", "export")),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_what_is_done_to_the_log_behind_its_back_is_named(noted, case):
    statements, finding = TAMPERED[case]
    assert changed(noted) == []
    assert changed(noted, *statements) == [finding]


def test_cards_of_a_line_that_was_never_there_are_named(sqlite_store):
    note(sqlite_store, ANN, "read", "card-1", ["card-1"])
    with sqlite3.connect(sqlite_store.engine.url.database or "") as crude:  # which minds no foreign keys
        crude.execute("INSERT INTO access_cards (access, rollout_id, tenant) VALUES (99, 'card-7', 'acme')")
    assert changed(sqlite_store) == [(0, "inserted", "card-7")]


def test_what_cannot_be_a_number_is_a_finding_and_no_stack_trace(sqlite_store):
    note(sqlite_store, ANN, "read", "card-1", ["card-1"])
    with sqlite_store.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE access_log SET cards = 'many', cards_digest = x'00'")
    assert {what for _, what, _ in changed(sqlite_store)} <= {"edited", "inserted"} and changed(sqlite_store)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(told=st.lists(st.tuples(st.text(max_size=8), st.lists(st.sampled_from(CARDS), max_size=4)), max_size=4))
def test_whatever_is_noted_is_read_back_and_verifies(sqlite_store, told):
    before = len(reading(sqlite_store, "acme", limit=1000))
    for subject, ids in told:
        note(sqlite_store, ANN, "read", subject, ids)
    found = reading(sqlite_store, "acme", limit=1000)
    assert len(found) == before + len(told) and [line.cards for line in reversed(found[: len(told)])] == [len(set(ids)) for _, ids in told]
    assert list(ledger.verify(sqlite_store, "acme")) == []
