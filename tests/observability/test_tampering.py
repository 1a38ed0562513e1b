"""Whatever is done behind the store's back to a row that the ledger vouches for is found, and the finding names what the row is about.

Every table and column is either vouched for or named here with the reason why not, so whoever adds one decides."""

from __future__ import annotations

import datetime as dt
import itertools
import runpy
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from observability import ledger
from observability.chain import Finding, facts_digest, next_entry, payload_digest
from observability.store import Store, migrate, open_store
from observability.tables import Instant, Scalar, metadata
from observability.texts import packed, to_json

HERE = Path(__file__).parent
SAMPLE, LEDGERS = (runpy.run_path(str(HERE / f"sample_{name}.py")) for name in ("records", "ledger"))
TENANT = SAMPLE["TENANT"]
Rows = list[dict[str, Any]]

ORDER = "nothing is asked by it: what is newest is told by the entry's number"
UNVOUCHED_COLUMNS = {
    **dict.fromkeys((f"{given.table.name}.id" for given in ledger.GIVEN if "id" in given.table.c), ORDER),
    "trace_parts.hash": "only tells whether the same part came before; its text is covered by the salted digest",
}
NAMED_BY_ID = ("access_log", "approvals", "change_requests", "releases")
"""Other rows name these by their id, which is in no digest and has a test of its own."""
UNVOUCHED_TABLES = {
    **dict.fromkeys(("search_cards", "search_marks"), "the index: a card that is missing in it is found, and it can be made again"),
    "review_queue": "drawn again from the ledger, and what was taken out is told",
    "queue_fills": "by which rule: no record, as the documentation says",
    "ledger_roots": "signed, and kept outside the store besides",
    **dict.fromkeys(("grader_versions", "grader_states", "grader_reports", "grader_approvals"), "each grade has its grader's hash"),
    **dict.fromkeys(("users", "api_keys", "saved_views", "retention_policies"), "settings: changing one leaves a line in the access log"),
    "sources": "counts what came and what never did, which is no record",
    "traces": "which card a trace became: each part has its card among its facts",
    "artifacts": "what a run said of its lineage; the hashes stand in the card, and an agent's id is its hash",
    **dict.fromkeys(("release_turns", "release_sessions", "release_tests"), "derived from cards"),
    **dict.fromkeys(("agent_runs", "leases", "tool_results"), "work in hand"),
    **dict.fromkeys(("outbox", "alarms", "monitor_states"), "what was told to people, derived from records"),
}
KINDS: dict[str, set[str]] = {
    "job_cards": {"card", "credit"},
    "card_steps": {"card"},
    "blobs": {"card"},
    "access_cards": {"access"},
    **{given.table.name: {given.kind} for given in ledger.GIVEN},
}
VOUCHED = sorted(KINDS)
UNSEEN_ACTS = {("blobs", "insert"): "nothing names it, so nobody reads it"}


class Forger:
    """A store full of records, what stood in its tables at first, and somebody who can write all of it."""

    def __init__(self, store: Store) -> None:
        self.store, url = store, store.engine.url
        self.postgres = store.engine.dialect.name == "postgresql"
        self.engine = sa.create_engine(url, json_serializer=to_json)  # on SQLite without foreign keys, and in no hurry to the disk
        names = [*VOUCHED, "ledger"]
        with store.reading() as connection:
            self.first: dict[str, Rows] = {
                name: [dict(row) for row in connection.execute(sa.select(metadata.tables[name])).mappings()] for name in names
            }
            self.root = LEDGERS["make_root"](ledger.entries_after(connection, TENANT, 0, 10_000), TENANT)
        self.cards = {row["rollout_id"]: row for row in self.first["job_cards"]}
        self.lines = {row["id"]: row for row in self.first["access_log"]}

    def put(self, tables: Mapping[str, Rows]) -> None:
        with self.engine.begin() as connection:
            connection.execute(sa.text("SET LOCAL session_replication_role = replica" if self.postgres else "PRAGMA synchronous = OFF"))
            for name, rows in tables.items():
                connection.execute(metadata.tables[name].delete())
                if rows:
                    connection.execute(metadata.tables[name].insert(), rows)

    def found_after(self, tables: Mapping[str, Rows], *, rooted: bool = False) -> list[Finding]:
        try:
            self.put(tables)
        except sa.exc.IntegrityError:
            assume(False)  # not even this database lets it in
        try:
            return list(ledger.verify(self.store, TENANT, [self.root] if rooted else []))
        finally:
            self.put({name: self.first[name] for name in tables})

    def about(self, name: str, row: Mapping[str, Any]) -> set[tuple[str, int]]:
        """The subject of the row's entry, and which entry that is: of a text every card's that names it."""
        if name == "blobs":
            steps = [step for step in self.first["card_steps"] if step["output_blob"] == row["hash"]]
            naming = [card for card in self.cards.values() if row["hash"] in (card["opening"], card["tools"])]
            return {(one["rollout_id"], self.cards[one["rollout_id"]]["entry"]) for one in (*steps, *naming)}
        if name == "card_steps":
            return {(row["rollout_id"], self.cards[row["rollout_id"]]["entry"])}
        if name == "access_cards":
            return {(self.lines[row["access"]]["action"], self.lines[row["access"]]["entry"])}
        return {(subject_of(name, row), row["entry"])}


def subject_of(name: str, row: Mapping[str, Any]) -> str:
    known = {"legal_holds": "name", "access_log": "action", "releases": "service", "release_events": "release"}
    known |= {"approval_decisions": "approval", "approval_uses": "approval", "agent_reports": "agent"}
    return str(row[known.get(name, "rollout_id")] or row["row_id"])


def is_named(found: Iterable[Finding], name: str, subject: str, seq: int, credit: int | None = None) -> bool:
    return any(one.kind in KINDS[name] and one.subject == subject and one.seq in (seq, credit, 0) for one in found)


def unnamed(forger: Forger, found: list[Finding], name: str, rows: Rows) -> list[tuple[str, int]]:
    """What these rows were about and no finding is."""
    about = {(subject, seq, row.get("credit_entry")) for row in rows for subject, seq in forger.about(name, row)}
    return sorted((subject, seq) for subject, seq, credit in about if not is_named(found, name, subject, seq, credit))


@pytest.fixture(scope="module")
def forger(tmp_path_factory, make_card):
    yield from filled(f"sqlite:///{tmp_path_factory.mktemp('store')}/cards.db", make_card)


@pytest.fixture(scope="module")
def forger_on_postgresql(postgres, make_card):
    yield from filled(postgres(), make_card)


def filled(url: str, make_card: Any):
    migrate(url)
    store = open_store(url)
    SAMPLE["fill"](store, make_card)
    forger = Forger(store)
    yield forger
    forger.engine.dispose()
    store.close()


# --- what is vouched for ------------------------------------------------------------------------------------------------------


def test_of_every_table_and_column_somebody_decided_whether_the_ledger_vouches_for_it(forger):
    assert set(metadata.tables) == {*VOUCHED, "ledger", *UNVOUCHED_TABLES}
    assert set(UNVOUCHED_COLUMNS) <= {f"{name}.{column.name}" for name in VOUCHED for column in metadata.tables[name].c}
    assert {name for name in VOUCHED if len(forger.first[name]) < 2} == set(), "nothing to tamper with"
    assert list(ledger.verify(forger.store, TENANT, [forger.root])) == []


def vouched_columns(name: str) -> list[sa.Column[Any]]:
    return [column for column in metadata.tables[name].c if f"{name}.{column.name}" not in UNVOUCHED_COLUMNS]


def another(column: sa.Column[Any], value: Any) -> Any:
    """Some other value of the column's type."""
    if isinstance(column.type, sa.JSON | Scalar):
        return {"made": "up"}
    if isinstance(column.type, Instant):
        return (value or SAMPLE["NOW"]) + dt.timedelta(seconds=1)
    if isinstance(column.type, sa.Boolean):
        return not value
    if isinstance(column.type, sa.LargeBinary):
        return packed('"made up"') if column.name == "body" else b"x" * 16
    if isinstance(column.type, sa.Integer | sa.Double):
        return (value or 0) + 1000
    return (value or "") + "x"


def rounds(forger: Forger, name: str) -> Iterator[set[int]]:
    """The rows' places, so that no two of a round are about the same: what is found of one would hide another."""
    left = dict(enumerate(forger.first[name]))
    while left:
        told, chosen = set[tuple[str, int]](), set[int]()
        for place, row in left.items():
            if not told & (about := forger.about(name, row)):
                told |= about
                chosen.add(place)
        left = {place: row for place, row in left.items() if place not in chosen}
        yield chosen


ALONE = ("job_cards", "card_steps", "blobs", "erasures")
"""What is found of one of these could stand for another, or excuse it."""


@pytest.mark.parametrize("names", [*((name,) for name in ALONE), tuple(name for name in VOUCHED if name not in ALONE)])
def test_each_column_edited_in_each_row_names_what_the_row_is_about(forger, names):
    cells = {name: itertools.product(vouched_columns(name), [*rounds(forger, name)]) for name in names}
    for at_once in itertools.zip_longest(*cells.values()):
        edits = {name: cell for name, cell in zip(names, at_once, strict=True) if cell}
        found = forger.found_after({name: edited(forger.first[name], *cell) for name, cell in edits.items()})
        for name, (column, places) in edits.items():
            assert unnamed(forger, found, name, [forger.first[name][place] for place in places]) == [], f"{name}.{column.name}"


def edited(rows: Rows, column: sa.Column[Any], places: set[int]) -> Rows:
    return [row | {column.name: another(column, row[column.name])} if at in places else row for at, row in enumerate(rows)]


# --- whatever is done -----------------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=0x3000), max_size=12)
JSON_TREES = st.lists(TEXT | st.integers(-9, 9), max_size=2) | st.dictionaries(TEXT, TEXT | st.booleans() | st.none(), max_size=2)


def values_of(column: sa.Column[Any], value: Any) -> st.SearchStrategy[Any]:
    """Any value that the column takes but the one that it has."""
    if isinstance(column.type, Scalar):
        made: st.SearchStrategy[Any] = JSON_TREES | TEXT | st.integers(-9, 9) | st.booleans()
    elif isinstance(column.type, sa.JSON):
        made = JSON_TREES
    elif isinstance(column.type, Instant):
        made = st.datetimes(dt.datetime(2000, 1, 1), dt.datetime(2100, 1, 1), timezones=st.just(dt.UTC))
    elif isinstance(column.type, sa.Boolean):
        made = st.booleans()
    elif isinstance(column.type, sa.LargeBinary):
        made = st.binary(max_size=20) | TEXT.map(packed)
    elif isinstance(column.type, sa.Double):
        made = st.floats(-1e6, 1e6, allow_subnormal=False)
    elif isinstance(column.type, sa.Integer):
        made = st.integers(0, 99) | st.integers(-(2**31), 2**31 - 1)
    else:
        made = TEXT
    made = made | st.none() if column.nullable else made
    as_text = isinstance(column.type, sa.JSON | Scalar)
    return made.filter(lambda other: (to_json(other) != to_json(value)) if as_text else other != value)


KEPT = {"id", "entry", "credit_entry"}
"""A swap leaves each row its place, or it would only be another order of the same rows."""
NEW_KEYS = {"job_cards": "rollout_id", "card_steps": "position", "access_cards": "rollout_id", "trace_parts": "hash", "blobs": "hash"}


def edit(draw: Any, name: str, rows: Rows, place: int) -> tuple[Rows, Rows]:
    column = draw(st.sampled_from(vouched_columns(name)))
    value = draw(values_of(column, rows[place][column.name]))
    return [*rows[:place], rows[place] | {column.name: value}, *rows[place + 1 :]], [rows[place]]


def delete(draw: Any, name: str, rows: Rows, place: int) -> tuple[Rows, Rows]:
    return [*rows[:place], *rows[place + 1 :]], [rows[place]]


def insert(draw: Any, name: str, rows: Rows, place: int) -> tuple[Rows, Rows]:
    key = NEW_KEYS.get(name, "id")
    copy = rows[place] | {key: draw(st.integers(100, 999)) if key in ("id", "position") else f"{draw(TEXT)} made up"}
    if "entry" in copy and draw(st.booleans()):
        copy["entry"] = draw(st.integers(-1, 99))
    return [*rows, copy], [copy if name == "job_cards" else rows[place]]


def swap(draw: Any, name: str, rows: Rows, place: int) -> tuple[Rows, Rows]:
    other = draw(st.integers(0, len(rows) - 1))
    keys = {column.name for column in metadata.tables[name].primary_key} - ({"rollout_id"} if name == "access_cards" else set())
    one, two = ({key: value for key, value in rows[at].items() if key not in keys | KEPT} for at in (place, other))
    changed = {place: rows[place] | two, other: rows[other] | one}
    made = [changed.get(at, row) for at, row in enumerate(rows)]
    assume(sorted(map(repr, made)) != sorted(map(repr, rows)))
    return made, [rows[place], rows[other]]


ACTS = {act.__name__: act for act in (edit, delete, insert, swap)}


def tamper(forger: Forger, data: st.DataObject, name: str) -> None:
    rows = forger.first[name]
    act = data.draw(st.sampled_from([act for act in ACTS if (name, act) not in UNSEEN_ACTS]))
    made, touched = ACTS[act](data.draw, name, rows, data.draw(st.integers(0, len(rows) - 1)))
    assert unnamed(forger, forger.found_after({name: made}), name, touched) == []


@pytest.mark.parametrize("name", VOUCHED)
@settings(max_examples=8)
@given(data=st.data())
def test_whatever_is_done_to_a_row_is_found_and_named(forger, name, data):
    tamper(forger, data, name)


@settings(max_examples=25)
@given(data=st.data(), name=st.sampled_from(VOUCHED))
def test_whatever_is_done_to_a_row_on_postgresql_is_found_and_named(forger_on_postgresql, data, name):
    tamper(forger_on_postgresql, data, name)


@pytest.mark.parametrize("name", NAMED_BY_ID)
def test_ids_that_other_rows_name_cannot_be_exchanged_nor_changed_unseen(forger, name):
    one, two, *more = forger.first[name]
    exchanged = [one | {"id": two["id"]}, two | {"id": one["id"]}, *more]
    changed = [one, two | {"id": 999}, *more]
    for made in (exchanged, changed):
        assert [finding for finding in forger.found_after({name: made}) if finding.kind != "review queue"]


# --- and to the ledger itself -------------------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(data=st.data())
def test_whatever_is_done_to_an_entry_is_found(forger, data):
    rows = forger.first["ledger"]
    act = data.draw(st.sampled_from([edit, delete, swap]))
    made, _ = act(data.draw, "ledger", rows, data.draw(st.integers(0, len(rows) - 1)))
    assert forger.found_after({"ledger": made})


def of_chain(found: Iterable[Finding]) -> list[str]:
    return [one.what for one in found if not one.kind]


@settings(max_examples=10)
@given(data=st.data())
def test_a_tail_cut_off_with_all_its_rows_is_told_by_the_root_outside(forger, data):
    """And by nothing else in the ledger."""
    last = data.draw(st.integers(0, len(forger.first["ledger"]) - 1))
    left = {name: [row for row in rows if row.get("entry", 0) <= last] for name, rows in forger.first.items()}
    left["ledger"] = [row for row in forger.first["ledger"] if row["seq"] <= last]
    uncredited = {"advantage": None, "credit_entry": None}
    left["job_cards"] = [row | (uncredited if (row["credit_entry"] or 0) > last else {}) for row in left["job_cards"]]
    assert of_chain(forger.found_after(left)) == []
    assert of_chain(forger.found_after(left, rooted=True)) == ["tail cut"]


def written_anew(forger: Forger) -> Rows:
    """A ledger that vouches for whatever stands in the tables, with every entry where it was."""
    anew: list[Any] = []
    with forger.store.reading() as connection:
        for one in ledger.records_of(connection, ledger.entries_after(connection, TENANT, 0, 10_000)):
            entry = one.entry
            assume(one.facts is not None)
            payload = payload_digest(one.payload, one.salt) if one.payload is not None and one.salt is not None else entry.payload
            told = {"tenant": TENANT, "at": entry.at, "kind": entry.kind, "subject": entry.subject}
            anew.append(next_entry(anew[-1] if anew else None, **told, facts=facts_digest(one.facts), payload=payload))
    return [{name: getattr(entry, name) for name in entry.__struct_fields__} for entry in anew]


CHANGEABLE = [
    (name, column)
    for name in VOUCHED
    for column in vouched_columns(name)
    if not column.primary_key and column.name not in {"tenant", "salt", "body", "output_blob", "opening", "tools", "advantage"} | KEPT
]


@settings(max_examples=15)
@given(data=st.data(), where=st.sampled_from(CHANGEABLE))
def test_a_whole_chain_written_anew_over_an_edit_is_told_by_the_root_outside(forger, data, where):
    name, column = where
    rows, place = forger.first[name], data.draw(st.integers(0, len(forger.first[name]) - 1))
    other = rows[place] | {column.name: data.draw(values_of(column, rows[place][column.name]))}
    changed = {name: [*rows[:place], other, *rows[place + 1 :]]}
    try:
        forger.put(changed)
        changed["ledger"] = written_anew(forger)
    except sa.exc.IntegrityError:
        assume(False)  # not even this database lets it in
    finally:
        forger.put({name: rows})
    assume([row["hash"] for row in changed["ledger"]] != [row["hash"] for row in forger.first["ledger"]])
    assert of_chain(forger.found_after(changed)) == []
    assert "chain replaced" in of_chain(forger.found_after(changed, rooted=True))
