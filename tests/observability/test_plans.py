"""The questions of the pages and the API are answered from indexes, by both databases, for one tenant and for all."""

from __future__ import annotations

import datetime as dt
import re
import runpy
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from observability.accesses import reading
from observability.book import Book
from observability.cards import cards_by_id
from observability.find import COUNTED, count, page
from observability.query import parse
from observability.search import Span, behind, newest_with
from observability.store import migrate, open_store, refresh_statistics
from observability.tables import access_cards, access_log, trace_parts, traces
from observability.traces import Arrival, Bundle, Part

BENCH = Path(__file__).parents[2] / "bench"
CARDS = 10_000
UNTIL = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
BIG = ("job_cards", "card_steps", "grades", "search_cards", "search_words", "ledger")
RARE, COMMON = "zebra26x", "margin"
ASKED = (
    "", "kind:production tool:search after:1d", "grade<0.5 after:1d", "run:run-3", "kind:eval", RARE, COMMON,
    f"{COMMON} kind:eval grade<0.5", f"{RARE} OR zebra36x", f"{COMMON} -goodwill", f"kind:eval OR {RARE}", f"-{RARE}",
)  # fmt: skip


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def store(request, tmp_path_factory):
    """So many cards that going through all of them is not the best that a database can do."""
    url = (
        request.getfixturevalue("postgres")() if request.param == "postgresql" else f"sqlite:///{tmp_path_factory.mktemp('plans')}/cards.db"
    )
    migrate(url)
    store = open_store(url)
    sys.path.insert(0, str(BENCH))
    try:
        runpy.run_path(str(BENCH / "_many.py"))["fill"](store, CARDS, UNTIL)
    finally:
        sys.path.remove(str(BENCH))
    refresh_statistics(store)
    yield store
    store.close()


@pytest.fixture(params=["all tenants", "one tenant"])
def seen(request, store):
    return store.of("gamma") if request.param == "one tenant" else store


def plans_of(store, ask) -> str:
    """Of every statement that is made for it, while it is answered."""
    engine = store.confined if store.tenant and store.confined else store.engine
    said: list[tuple[str, object]] = []

    def hear(_connection, _cursor, statement, parameters, *_) -> None:
        if statement.startswith("SELECT") and "set_config" not in statement:
            said.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", hear)
    try:
        answer = ask()
    finally:
        event.remove(engine, "before_cursor_execute", hear)
    assert answer and said
    explain = "EXPLAIN QUERY PLAN " if engine.dialect.name == "sqlite" else "EXPLAIN "
    with store.reading() as connection:
        return "\n".join(told(row) for one in said for row in connection.exec_driver_sql(explain + one[0], one[1]))


def told(row) -> str:
    """SQLite's rows are steps within steps: one that sorts all that was found stands at the top."""
    return str(row[-1]) if len(row) == 1 else f"{'TOP ' * (row[1] == 0)}{row[-1]}"


def full_scans(plan: str) -> list[str]:
    """Tables that are gone through: an index gone through in its order until there is enough is none, nor is a month without cards."""
    scanned = re.findall(r"^(?:TOP )?SCAN (?:main\.)?(\w+)(?! USING| VIRTUAL)\b", plan, re.MULTILINE) + re.findall(
        r"Seq Scan on (\w+)", plan
    )
    return [table for table in scanned if table.removesuffix(f"_{UNTIL:%Y_%m}") in BIG]


def test_a_scan_of_a_table_is_told_from_one_of_an_index(store):
    with store.reading() as connection:
        explain = "EXPLAIN QUERY PLAN " if store.engine.dialect.name == "sqlite" else "EXPLAIN "
        plan = "\n".join(str(row[-1]) for row in connection.exec_driver_sql(explain + "SELECT * FROM job_cards WHERE answer = 'x'"))
    assert full_scans(plan) in (["job_cards"], [f"job_cards_{UNTIL:%Y_%m}"])
    assert full_scans("SCAN job_cards USING INDEX ix_job_cards_started_at_rollout_id\nSCAN search_words VIRTUAL TABLE INDEX 0:M1") == []


@pytest.mark.parametrize("asked", ASKED)
def test_a_page_is_answered_from_indexes(seen, asked):
    plan = plans_of(seen, lambda: page(seen, parse(asked, UNTIL), 50))
    assert full_scans(plan) == [], plan


@pytest.mark.parametrize(("asked", "index"), [("", "tenant_started_at"), ("kind:eval", "tenant_kind_started_at")])
def test_the_newest_come_from_an_index_in_that_order(seen, asked, index):
    if seen.tenant is None:
        index = "started_at"
    plan = plans_of(seen, lambda: page(seen, parse(asked, UNTIL), 50))
    assert re.search(f"(ix_job_cards|job_cards_\\d+_\\d+)_{index}", plan), plan
    assert "Sort" not in plan.partition("Merge Append")[0] and "TOP USE TEMP B-TREE" not in plan, plan


@pytest.mark.parametrize("asked", ASKED)
def test_a_count_stops_where_more_says_enough(seen, asked):
    assert full_scans(plans_of(seen, lambda: count(seen, parse(asked, UNTIL), most=20))) == []
    assert count(seen, parse(asked, UNTIL), most=20) <= 20


def test_so_many_are_counted_and_no_more(store):
    assert count(store, parse("", UNTIL), most=COUNTED + 1) == COUNTED + 1
    assert count(store, parse("", UNTIL)) == CARDS
    assert count(store, parse(COMMON, UNTIL), most=COUNTED + 1) == COUNTED + 1


def test_a_run_is_found_by_its_name(seen):
    assert "run_id_" in plans_of(seen, lambda: page(seen, parse("run:run-3", UNTIL), 50))


def test_one_card_is_read_by_its_key(seen):
    (line,) = page(seen, parse("kind:eval", UNTIL), 1)
    assert full_scans(plans_of(seen, lambda: list(cards_by_id(seen, [line.rollout_id], line.tenant)))) == []


def test_who_read_a_card_is_found_by_the_card(store):
    """A tenant's log has many lines, and few of them name this card."""
    lines = [
        {
            "id": number,
            "tenant": "acme",
            "by": "ann",
            "at": UNTIL,
            "action": "read",
            "subject": "",
            "cards": 1,
            "cards_digest": "",
            "entry": number,
        }
        for number in range(1, 5001)
    ]
    named = [{"access": line["id"], "rollout_id": f"card-{line['id'] % 2500}", "tenant": "acme"} for line in lines]
    with store.writing() as connection:
        connection.execute(sa.insert(access_log), lines)
        connection.execute(sa.insert(access_cards), named)
        if store.engine.dialect.name == "postgresql":  # which does so by itself
            connection.execute(sa.text("ANALYZE access_log, access_cards"))
    plan = plans_of(store.of("acme"), lambda: reading(store, "acme", rollout_id="card-7"))
    assert [line.id for line in reading(store, "acme", rollout_id="card-7")] == [2507, 7]
    assert re.search(r"access_log USING INTEGER PRIMARY KEY|access_log_pkey|pk_access_log", plan), plan
    assert "access_cards_rollout_id_access" in plan and not re.search(r"Seq Scan|SCAN (main\.)?access_|ix_access_log", plan), plan


def test_what_is_not_indexed_yet_is_known_without_reading_the_ledger(store):
    with store.writing() as connection:
        connection.execute(sa.text("UPDATE search_marks SET seq = seq - 3 WHERE tenant = 'acme'"))
    assert full_scans(plans_of(store, lambda: behind(store))) == []
    assert behind(store) == {"acme": 3}
    with store.writing() as connection:
        connection.execute(sa.text("UPDATE search_marks SET seq = seq + 3 WHERE tenant = 'acme'"))


def test_postgresql_looks_up_a_rare_word_and_meets_a_common_one(seen):
    """What its functions do stands in no plan of the question, but in what the session has read. Planning looks at either end of
    the numbers too."""
    if seen.engine.dialect.name == "sqlite":
        return
    for word, looked_up in ((RARE, 1), (COMMON, 0)):
        with seen.reading() as connection:
            before = scans(connection)
            assert newest_with(seen, connection, parse(word, UNTIL), Span(), 50, None)
            after = scans(connection)
        assert after["search_words"] == before["search_words"]
        assert after["ix_search_words_words"] - before["ix_search_words_words"] == looked_up


def scans(connection) -> dict[str, int]:
    names = ("search_words", "ix_search_words_words")
    counts = ", ".join(f"pg_stat_get_xact_numscans('{name}'::regclass) AS {name}" for name in names)
    return dict(connection.execute(sa.text(f"SELECT {counts}")).mappings().one())


def test_what_comes_of_traces_meets_no_other_traces(store):
    """A trace's id alone is no key: each request would go through those of everybody."""
    count = 5000
    seen = [
        {"tenant": f"t{number % 3}", "trace_id": f"{number:032x}", "rollout_id": "x", "carded": True, "last_at": UNTIL}
        for number in range(count)
    ]
    came = [
        {name: row[name] for name in ("tenant", "trace_id", "rollout_id")}
        | {"hash": "h", "spans": 1, "body": b"", "late": False, "at": UNTIL, "entry": 1}
        for row in seen
    ]
    with store.writing() as connection:
        connection.execute(sa.insert(traces), seen)
        connection.execute(sa.insert(trace_parts), came)
    refresh_statistics(store)
    keys = {("t1", f"{1:032x}"), ("t2", f"{2:032x}")}

    def ask() -> list[object]:
        with store.reading() as connection:
            arrival = Arrival(connection, Book(connection, ()), UNTIL, ())
            bundles = [Bundle(*key, Part(()), "", "h", b"", "x", False, None) for key in sorted(keys)]
            return [arrival._known(keys), arrival._seen(bundles)]

    known, place = ask()
    assert (set(known), place) == (keys, {(*key, "h") for key in keys})
    plan = plans_of(store, ask)
    assert not re.search(r"Seq Scan|SCAN trace|ANY\(tenant\)", plan), plan  # the last: through the ids of one tenant after the other
