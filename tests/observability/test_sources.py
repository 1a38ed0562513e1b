"""What never came shows, and what cannot be known is said to be unknown."""

from __future__ import annotations

import datetime as dt
import itertools

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import observability.ingest as ingest
from agent_rft.contracts.errors import InfraError
from observability.ingest import StoreRecorder, insert_cards, replay
from observability.records import RecordedCard
from observability.sources import Said, disclosed, note, told

NOON = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
NAMES = itertools.count()


def noted(store, *numbers, source="agent", tenant="local", at=NOON, **said):
    with store.writing() as connection:
        note(connection, tenant, source, numbers, at, **said)


def the_source(store, tenant="local"):
    (source,) = disclosed(store, tenant)
    return source


def test_gaps_and_a_tail_that_never_came_are_named(store):
    noted(store, *range(1, 501))
    noted(store, *range(502, 511))
    noted(store, announced=512)
    source = the_source(store)
    assert (source.came, source.missing, source.announced, source.tail) == (509, ((501, 501),), 512, 2)
    assert told(source) == "agent: 509 came of the 512 it announced; number 501 never came; nor the last 2"
    assert source.lacks and not source.complete
    noted(store, 501, 511, 512)
    assert the_source(store).complete


def test_one_that_leaves_gap_after_gap_is_followed_so_far_and_not_called_complete(store):
    noted(store, *range(1, 4000, 2), announced=3)  # 2,000 numbers, and none beside another
    once = the_source(store)
    assert (once.came, once.cut, once.missing, once.tail) == (1000, True, (), 0)
    assert not once.complete and not once.lacks
    assert "at least 1000 came" in told(once)
    assert "it left more gaps than the 1000 that are kept, so which numbers never came is not known" in told(once)
    noted(store, *range(2, 4000, 2))  # that it fills them later is not followed: what came meanwhile is forgotten
    assert (the_source(store).came, the_source(store).cut, the_source(store).complete) == (1000, True, False)
    noted(store, 1, 3, source="another")
    assert [source.cut for source in disclosed(store, "local")] == [True, False]


def test_a_source_that_has_not_said_how_many_there_are_is_not_called_complete(store):
    noted(store, 1, 2, 3)
    source = the_source(store)
    assert not source.complete and not source.lacks
    assert told(source).endswith("it has not said how many there are, so whether more were recorded is not known")


def test_one_without_numbers_is_never_known_to_be_complete(store):
    noted(store, source="opentelemetry", sample_rate=1.0)
    source = the_source(store)
    assert (source.numbered, source.complete) == (False, False)
    assert told(source) == (
        "opentelemetry: it does not number what it sends, so whether everything came is not known; it records every run"
    )


def test_of_several_rates_the_lowest_counts_and_a_clock_that_steps_back_widens_the_time(store):
    noted(store, 1, announced=2, sample_rate=0.5)
    noted(store, 2, sample_rate=0.125, at=NOON - dt.timedelta(hours=3))
    noted(store, sample_rate=1.0, at=NOON + dt.timedelta(hours=1))
    source = the_source(store)
    assert (source.sample_rate, source.complete, source.lacks) == (0.125, False, True)
    assert told(source) == "agent: 2 came of the 2 it announced; it records 0.125 of its runs and leaves out the others"
    assert (source.first_at, source.last_at) == (NOON - dt.timedelta(hours=3), NOON + dt.timedelta(hours=1))


def test_a_tenant_sees_its_own_sources_only(store):
    noted(store, 1, tenant="local")
    noted(store, 1, 3, tenant="other")
    assert [source.came for source in disclosed(store.of("local"), "local")] == [1]
    assert disclosed(store.of("local"), "other") == []


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(1, 40), max_size=5), max_size=6))
def test_batches_in_any_order_and_twice_come_to_the_same(sqlite_store, batches):
    source = f"source {next(NAMES)}"
    for batch in batches:
        noted(sqlite_store, *batch, source=source)
    found = {one.name: one for one in disclosed(sqlite_store, "local")}
    came = {number for batch in batches for number in batch}
    if batches:
        missing = {number for first, last in found[source].missing for number in range(first, last + 1)}
        assert (found[source].came, missing) == (len(came), set(range(1, max(came, default=0) + 1)) - came)


# --- in the transaction of the cards ------------------------------------------------------------------------------------


def recorded(make_card, number, **changed):
    return RecordedCard(make_card(f"card-{number}", **changed), NOON, source="agent", number=number)


def test_a_number_is_there_exactly_when_its_card_is(store, make_card, monkeypatch):
    insert_cards(store, [recorded(make_card, 1), recorded(make_card, 2)], [Said(tenant="local", source="agent", sample_rate=0.5)])

    def too_late(*_):
        raise RuntimeError("after the numbers, before the end of the transaction")

    with monkeypatch.context() as patched:
        patched.setattr(ingest.Book, "close", too_late)
        with pytest.raises(RuntimeError):
            insert_cards(store, [recorded(make_card, 3)])
    assert (the_source(store).came, the_source(store).sample_rate) == (2, 0.5)
    assert insert_cards(store, [recorded(make_card, 3), recorded(make_card, 2)]) == 1
    assert the_source(store).came == 3


def test_a_recorder_numbers_its_cards_by_tenant_and_announces_them(store, make_card):
    with StoreRecorder(store, part="train run-7") as recorder:
        for number in range(70):
            recorder.record(make_card(f"card-{number}", tenant="local" if number % 7 else "other"))
        recorder.flush()
        assert the_source(store).announced is None
    assert the_source(store).name.startswith("train run-7 on ")
    assert [(one.came, one.announced, one.complete) for tenant in ("local", "other") for one in disclosed(store, tenant)] == [
        (60, 60, True),
        (10, 10, True),
    ]


def test_a_card_that_the_store_refused_is_a_gap_until_it_is_replayed(store, make_card, monkeypatch):
    real = ingest.insert_cards

    def refusing(store, batch, said=()):
        if any(recorded.number == 4 for recorded in batch):
            raise ValueError("this card is odd")
        return real(store, batch, said)

    with monkeypatch.context() as patched:
        patched.setattr(ingest, "insert_cards", refusing)
        with StoreRecorder(store) as recorder:
            for number in range(1, 11):
                recorder.record(make_card(f"card-{number}"))
    assert the_source(store).missing == ((4, 4),)
    assert replay(store, recorder.rescue_file) == 1
    recorder.rescue_file.unlink()
    assert the_source(store).complete


def test_what_a_store_that_is_away_never_got_is_not_called_complete(sqlite_store, make_card):
    recorder = StoreRecorder(sqlite_store)
    recorder.record(make_card("card-1"))
    recorder.flush()
    with sqlite_store.writing():
        recorder.record(make_card("card-2"))
        with pytest.raises(InfraError, match="They are safe in"):
            recorder.close(timeout=0.2)
    assert told(the_source(sqlite_store)).count("is not known") == 1
    assert replay(sqlite_store, recorder.rescue_file) <= 1  # the writer may have had it under way
    source = the_source(sqlite_store)
    assert (source.came, source.missing, source.announced) == (2, (), None)


def test_cards_of_before_and_names_that_no_database_can_hold_do_no_harm(store, make_card):
    insert_cards(store, [RecordedCard(make_card("old"), NOON)])
    assert disclosed(store, "local") == []
    insert_cards(store, [msgspec.structs.replace(recorded(make_card, 1), source="a\0b\ud800")])
    assert the_source(store).name == "a\u2400b\ufffd"
    with store.reading() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM sources")) == 1
