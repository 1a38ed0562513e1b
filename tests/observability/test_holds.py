"""A hold keeps the words of its cards, those to come too, from everything that would take them, whatever else happens meanwhile."""

from __future__ import annotations

import datetime as dt
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from agent_rft.contracts.errors import FaultsFound, UserError
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.messages import Message, ToolSpec
from agent_rft.contracts.rollouts import ToolResult
from observability import holds, ledger
from observability.cards import find_card
from observability.erasure import erase
from observability.graders import append_grades
from observability.holds import held, history, live, place, release
from observability.ingest import insert_cards
from observability.query import KEYS, parse
from observability.records import RecordedCard
from observability.store import open_store
from observability.tables import legal_holds
from observability.words import MOST_WORDS

NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
IDS = [f"0198c2{number:02d}-0000-7000-8000-000000000000" for number in range(4)]


def record(store, make_card, number: int, tenant: str = "local", said: str = "", **more):
    card = make_card(IDS[number], tenant=tenant, **more)
    if said:
        card.rollout.turns[0].results["call-1-1"] = ToolResult("call-1-1", said, None, 0.1)
    insert_cards(store, [RecordedCard(card, NOW)])


def test_a_hold_covers_cards_that_come_later_and_no_other_tenant_s(store, make_card):
    place(store, "local", "case-7", parse("row:a OR zanzibar", NOW), "suit 7", "ann")
    record(store, make_card, 0, row_id="a")
    record(store, make_card, 1, row_id="b", said="Zanzibar Shipping")  # nobody has indexed it
    record(store, make_card, 2, row_id="c")
    record(store, make_card, 0, tenant="other", row_id="a")
    assert held(store, "local", IDS) == {IDS[0]: ("case-7",), IDS[1]: ("case-7",)}
    assert held(store.of("local"), "local", IDS[:2]) == held(store, "local", IDS[:2])
    assert held(store, "other", IDS) == {} and held(store.of("other"), "local", IDS) == {}
    assert [hold.name for hold in live(store, "local")] == ["case-7"] and live(store, "other") == []


def test_words_hold_a_card_wherever_they_stand_even_where_the_index_has_ended(sqlite_store, make_card):
    record(sqlite_store, make_card, 0, said="filler " * MOST_WORDS + "the quick zanzibar fox")
    record(sqlite_store, make_card, 1, said="the quick brown zanzibar fox")
    place(sqlite_store, "local", "case-7", parse('"quick zanz"*', NOW), "suit 7", "ann")
    place(sqlite_store, "local", "case-8", parse("zanzibar -brown", NOW), "suit 8", "ann")
    assert held(sqlite_store, "local", IDS) == {IDS[0]: ("case-7", "case-8")}


def test_a_hold_looks_in_all_that_an_erasure_of_the_card_would_take(store, make_card):
    card = make_card(IDS[0], metadata={"Jane Doe": {"mail": 1}}, item={"customer": "Zanzibar"})
    card.rollout.tools = (ToolSpec("search", "Looks through Quixote's files.", {"type": "object", "required": ["parcel"]}),)
    card.rollout.opening = (Message("system", "You serve Wilhelmina."), Message("user", "Hello."))
    insert_cards(store, [RecordedCard(card, NOW)])
    for said in ('"jane doe"', "zanzibar", "customer", "quixote", "parcel", "wilhelmina"):
        place(store, "local", said.strip('"').replace(" ", "-"), parse(said, NOW), "suit 7", "ann")
    assert held(store, "local", IDS)[IDS[0]] == ("jane-doe", "zanzibar", "customer", "quixote", "parcel", "wilhelmina")


def test_times_do_not_slide(sqlite_store):
    hold = place(sqlite_store, "local", "case-7", parse("after:7d", NOW), "suit 7", "ann")
    assert hold.query == "started>=2026-11-14T12:00:00Z"
    assert holds.query_of(live(sqlite_store, "local")[0]) == parse("after:2026-11-14T12:00", NOW)


def test_no_card_slips_out_of_a_hold_since_it_cannot_ask_of_what_changes(sqlite_store):
    changing = {"state", "grade", "passed", "grader", "advantage", "review", "label", "queue", "change", "flag"}
    assert set(KEYS) - holds.STEADY <= changing
    asked = "grade<0.5 OR -label:fail OR review:reject meta.colour:red"
    with pytest.raises(FaultsFound) as told:
        place(sqlite_store, "local", "no name", parse(asked, NOW), "", "ann")
    assert [(fault.where, fault.what.split(" ")[1]) for fault in told.value.faults] == [
        ("name", "name'"), ("reason", "empty"), ("query", "grade"), ("query", "label"), ("query", "review")
    ]  # fmt: skip
    assert history(sqlite_store, "local") == []


def test_a_name_stands_once_is_released_once_and_both_are_in_the_ledger(store):
    query = parse("row:a", NOW)
    place(store, "local", "case-7", query, "suit 7", "ann")
    with pytest.raises(UserError, match="case-7 is placed already"):
        place(store, "local", "case-7", query, "again", "bob")
    with pytest.raises(UserError, match=r"no hold case-8 stands\n.*did you mean 'case-7'"):
        release(store, "local", "case-8", "settled", "bob")
    release(store, "local", "case-7", "settled", "bob")
    with pytest.raises(UserError, match=r"no hold case-7 stands\n.*none is placed"):
        release(store, "local", "case-7", "settled", "bob")
    place(store, "local", "case-7", query, "reopened", "ann")
    assert [(one.act, one.reason, one.by) for one in history(store, "local")] == [
        ("placed", "suit 7", "ann"), ("released", "settled", "bob"), ("placed", "reopened", "ann")
    ]  # fmt: skip
    assert not list(ledger.verify(store, "local")) and ledger.size(store, "local") == 3
    with store.writing() as connection:
        connection.execute(legal_holds.delete().where(legal_holds.c.act == "released"))
    assert [(one.what, one.kind, one.subject) for one in ledger.verify(store, "local")] == [("removed", "hold", "case-7")]


def test_a_regraded_card_stays_held(sqlite_store, make_card):
    record(sqlite_store, make_card, 0)
    place(sqlite_store, "local", "case-7", parse(f"id:{IDS[0]}", NOW), "suit 7", "ann")
    append_grades(sqlite_store, [(IDS[0], Grade(GraderRef("numeric", "2", "beef"), 0.0, False))])
    assert erase(sqlite_store, "local", [IDS[0]], "dpo", "a request").held == {IDS[0]: ("case-7",)}


def test_a_hold_and_an_erasure_that_run_at_once_take_turns(store, url, make_card):
    """Two connections of two threads, over and over: a card is either erased before the hold stands, or kept for good."""
    other = open_store(url)
    for number in range(8):
        card = make_card(one := f"0198c3{number:02d}-0000-7000-8000-000000000000", row_id=f"row-{number}")
        insert_cards(store, [RecordedCard(card, NOW)])
        start = threading.Barrier(2)

        def hold(number: int = number, start: threading.Barrier = start) -> bool:
            start.wait()
            place(other, "local", f"case-{number}", parse(f"row:row-{number}", NOW), "suit", "ann")
            return find_card(other, f"0198c3{number:02d}").erased is None  # as the hold found it

        def take(one: str = one, start: threading.Barrier = start) -> bool:
            start.wait()
            return not erase(store, "local", [one], "dpo", "a request").erased

        with ThreadPoolExecutor(2) as pool:
            whole_when_held, kept = pool.submit(hold), pool.submit(take)
            assert whole_when_held.result() == kept.result()
            assert (find_card(store, one).erased is None) == kept.result()
    other.close()
    assert not list(ledger.verify(store, "local"))


def test_an_erasure_waits_for_a_hold_that_is_being_placed(store, url, make_card):
    """The hold is written and its transaction still open when the erasure begins."""
    record(store, make_card, 0, row_id="a")
    other, open_, done = open_store(url), threading.Event(), threading.Event()

    def slowly(connection: sa.Connection, *_: object) -> None:
        open_.set()
        done.wait(0.5)

    sa.event.listen(other.engine, "commit", slowly)
    with ThreadPoolExecutor(2) as pool:
        placing = pool.submit(place, other, "local", "case-7", parse("row:a", NOW), "suit", "ann")
        assert open_.wait(10)
        erasing = pool.submit(erase, store, "local", [IDS[0]], "dpo", "a request")
        assert erasing.result().held == {IDS[0]: ("case-7",)} and placing.result().name == "case-7"
    other.close()
