"""What works behind the server: words come into the index and quiet traces become cards, whatever happens in between."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable

import pytest
import sqlalchemy as sa
from sqlalchemy import exc

from agent_rft.contracts.jobcards import JobCard
from observability import follower as module
from observability import search
from observability.follower import Follower
from observability.ingest import insert_cards
from observability.intake import Intake
from observability.otlp.spans import Received, Span
from observability.records import RecordedCard
from observability.redaction.detectors import detectors_of
from observability.search import behind
from observability.store import Store, migrate, open_store
from observability.tables import job_cards

NOW = dt.datetime(2026, 11, 21, 5, tzinfo=dt.UTC)
DETECTORS = detectors_of(True)


def until(holds: Callable[[], bool], seconds: float = 30) -> bool:
    give_up = time.monotonic() + seconds
    while not holds() and time.monotonic() < give_up:
        time.sleep(0.01)
    return holds()


def cards(store: Store) -> int:
    with store.reading() as connection:
        return connection.scalar(sa.select(sa.func.count()).select_from(job_cards)) or 0


def test_it_indexes_what_comes_and_makes_cards_of_quiet_traces(
    store: Store, monkeypatch: pytest.MonkeyPatch, make_card: Callable[..., JobCard]
):
    monkeypatch.setattr(module, "EVERY", 0.02)
    span = Span(trace_id="a" * 32, span_id="b" * 16, parent_id="c" * 16, start_ns=1_795_233_612_250_000_000)
    intake = Intake(store, DETECTORS)
    assert intake.submit_spans("acme", Received((span,), ())) == ()
    intake.close()
    assert cards(store) == 0
    follower = Follower(store, DETECTORS, quiet=0.0)
    assert until(lambda: cards(store) == 1)
    insert_cards(store, [RecordedCard(make_card(f"card-{number}"), NOW) for number in range(3)])
    assert until(lambda: behind(store) == {})
    follower.close()
    insert_cards(store, [RecordedCard(make_card("after"), NOW)])
    time.sleep(0.1)
    assert behind(store) == {"local": 3}  # a card's entries: its own, its grade's, its advantage's


def test_what_fails_once_is_tried_again(sqlite_store: Store, monkeypatch: pytest.MonkeyPatch, make_card: Callable[..., JobCard]):
    def fails(store: Store) -> dict[str, int]:
        if len(tried) < 2:
            tried.append("fails")
            raise [OSError("the disk is gone"), RuntimeError("a fault of ours")][len(tried) - 1]
        return behind(store)

    tried = list[str]()
    monkeypatch.setattr(module, "EVERY", 0.02)
    monkeypatch.setattr(module, "behind", fails)
    insert_cards(sqlite_store, [RecordedCard(make_card("a"), NOW)])
    follower = Follower(sqlite_store, DETECTORS)
    assert until(lambda: behind(sqlite_store) == {})
    follower.close()
    assert tried == ["fails", "fails"]


def recorded(store: Store, make_card: Callable[..., JobCard], tenant: str, *names: str) -> None:
    insert_cards(store, [RecordedCard(make_card(name, tenant=tenant), NOW) for name in names])


def test_who_keeps_sending_keeps_no_other_tenant_out_of_the_index(
    store: Store, monkeypatch: pytest.MonkeyPatch, make_card: Callable[..., JobCard]
):
    """After each look at its cards there is one more of the greedy tenant."""

    def next_and_one_more(of: Store, tenant: str) -> search.Indexed | None:
        done = really(of, tenant)
        if tenant == "greedy":
            sent.append(f"g{len(sent)}")
            recorded(of, make_card, "greedy", sent[-1])
        return done

    really, sent = search._next, list[str]()
    monkeypatch.setattr(module, "EVERY", 0.02)
    monkeypatch.setattr(search, "_next", next_and_one_more)
    recorded(store, make_card, "greedy", "first")
    recorded(store, make_card, "modest", "only")
    follower = Follower(store, DETECTORS)
    assert until(lambda: "modest" not in behind(store), 5)
    follower.close()


def test_neither_a_tenant_s_words_nor_a_trace_stop_what_is_done_beside_them(
    store: Store, monkeypatch: pytest.MonkeyPatch, make_card: Callable[..., JobCard]
):
    def spoiled(of: Store, tenant: str) -> search.Indexed | None:
        if tenant == "evil":
            raise exc.OperationalError("INSERT", {}, RuntimeError("string is too long"))
        return really(of, tenant)

    def unsettled(*_: object) -> int:
        raise RuntimeError("a trace that makes no card")

    really = search._next
    monkeypatch.setattr(module, "EVERY", 0.02)
    monkeypatch.setattr(search, "_next", spoiled)
    monkeypatch.setattr(module, "settle_quiet", unsettled)
    recorded(store, make_card, "evil", "a")
    recorded(store, make_card, "good", "b")
    follower = Follower(store, DETECTORS)
    assert until(lambda: set(behind(store)) == {"evil"}, 5)
    follower.close()


def test_postgresql_s_months_are_prepared_while_a_server_runs(postgres: Callable[[], str]):
    migrate(url := postgres())
    store = open_store(url)
    with store.writing() as connection:
        last = max(one for one in sa.inspect(connection).get_table_names() if one.startswith("card_steps_2"))
        connection.execute(sa.text(f"DROP TABLE {last}"))
    follower = Follower(store, DETECTORS)

    def there() -> bool:
        with store.reading() as connection:
            return last in sa.inspect(connection).get_table_names()

    assert until(there, 5)
    follower.close()
    store.close()


def test_it_stands_back_while_cards_come_and_not_for_longer(
    store: Store, monkeypatch: pytest.MonkeyPatch, make_card: Callable[..., JobCard]
):
    monkeypatch.setattr(module, "EVERY", 0.02)
    monkeypatch.setattr(module, "STANDS_BACK", 0.6)
    insert_cards(store, [RecordedCard(make_card(), NOW)])
    follower = Follower(store, DETECTORS, busy=lambda: True)
    time.sleep(0.3)
    assert behind(store) == {"local": 3}
    assert until(lambda: behind(store) == {})
    follower.close()
