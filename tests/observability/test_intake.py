"""What comes over the network: answered when it is durable, exactly once, and never more than there is room for."""

from __future__ import annotations

import datetime as dt
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from agent_rft.contracts.jobcards import JobCard, Versions
from observability import intake as module
from observability.intake import Away, Intake, Outcome, Refused, Shed, Word, write
from observability.ledger import verify
from observability.partitions import is_ahead, latest_id
from observability.records import RecordedCard
from observability.redaction.detector import Detector
from observability.redaction.detectors import Detectors, detectors_of
from observability.sources import Said, disclosed
from observability.store import Store, open_store
from observability.tables import job_cards, ledger

NOW = dt.datetime(2026, 11, 21, 5, tzinfo=dt.UTC)
DETECTORS = detectors_of(True)
MakeCard = Callable[..., JobCard]


@pytest.fixture
def intake(store: Store) -> Iterator[Intake]:
    intake = Intake(store, DETECTORS)
    yield intake
    intake.close()


@pytest.fixture
def card_of(make_card: MakeCard) -> Callable[..., RecordedCard]:
    return lambda name, **changed: RecordedCard(make_card(name, **({"tenant": "acme"} | changed)), NOW)


def stored(store: Store) -> list[str]:
    with store.reading() as connection:
        return sorted(connection.scalars(sa.select(job_cards.c.rollout_id)))


def locked(store: Store) -> ExitStack:
    """Another process writes, until this is closed."""
    held = ExitStack()
    held.enter_context(open_store(store.address).writing())
    return held


def test_who_is_answered_has_durable_cards_and_the_same_again_changes_nothing(store: Store, intake: Intake, card_of: Any):
    cards = [card_of("a"), card_of("b"), card_of("a")]  # one of them twice
    assert intake.submit("acme", cards) == Outcome(2, 1, ())
    assert intake.submit("acme", cards) == Outcome(0, 3, ())
    assert stored(store) == ["a", "b"]
    assert list(verify(store, "acme")) == []


def test_one_card_that_the_store_refuses_spoils_no_other(store: Store, intake: Intake, card_of: Any):
    beyond = Versions(code="1", checkpoint="c", seed=2**70)  # no 64 bits hold it
    outcome = intake.submit("acme", [card_of("a"), card_of("b", versions=beyond), card_of("c"), card_of("d")])
    assert (outcome.stored, outcome.known, [one.rollout_id for one in outcome.refused]) == (3, 0, ["b"])
    assert outcome.refused[0].why
    assert stored(store) == ["a", "c", "d"]
    assert list(verify(store, "acme")) == []


def test_a_card_whose_time_has_not_come_is_refused_since_it_would_keep_its_month_from_being(store: Store, intake: Intake, card_of: Any):
    def an_id(days: float) -> str:
        digits = f"{int((time.time() + days * 86400) * 1000):012x}"
        return f"{digits[:8]}-{digits[8:]}-7000-8000-000000000000"

    why = "the time in its rollout_id is more than a day ahead of the server's clock"
    near, far = an_id(0.9), an_id(1.1)
    assert intake.submit("acme", [card_of(near), card_of(far), card_of("no-time")]) == Outcome(2, 0, (Refused(far, why),))
    assert stored(store) == [near, "no-time"]


@given(
    st.integers(-2000, 2000), st.integers(0, 999_999), st.sampled_from(["7000-8000-000000000000", "7fff-bfff-ffffffffffff", "4000-8000-0"])
)
def test_an_id_is_ahead_from_the_next_millisecond_on(milliseconds: int, microseconds: int, rest: str):
    """The latest moment is a day after the clock's: to the microsecond, while an id tells whole milliseconds."""
    now = dt.datetime(2026, 11, 22, 12, 0, 0, microseconds, dt.UTC)
    latest = 1_795_435_200_000 + microseconds // 1000  # 23 November, 12:00: as `date -u -d 2026-11-23T12:00 +%s` says
    digits = f"{latest + milliseconds:012x}"
    assert is_ahead(f"{digits[:8]}-{digits[8:]}-{rest}", latest_id(now)) == (milliseconds > 0 and rest[0] == "7")


def test_a_card_of_another_tenant_is_refused_by_name(store: Store, intake: Intake, card_of: Any):
    why = "it says that it is of tenant 'evil'; the key it came with is of 'acme'"
    assert intake.submit("acme", [card_of("a"), card_of("b", tenant="evil")]) == Outcome(1, 0, (Refused("b", why),))
    assert stored(store) == ["a"]


def test_what_cannot_be_redacted_is_refused_and_never_stored(sqlite_store: Store, card_of: Any):
    def find(text: str) -> Any:
        if "unlucky" in text:
            raise ZeroDivisionError
        return ()

    intake = Intake(sqlite_store, Detectors((*DETECTORS.every, Detector(("X",), find))))
    outcome = intake.submit("acme", [card_of("a"), card_of("b", metadata={"note": "unlucky"})])
    intake.close()
    assert outcome == Outcome(1, 0, (Refused("b", "it cannot be redacted or read"),))
    assert stored(sqlite_store) == ["a"]


def test_what_was_removed_before_it_was_sent_stays_on_record(store: Store, intake: Intake, card_of: Any):
    from observability.cards import stored_cards
    from observability.redaction.redact import Removal

    before = Removal("EMAIL", 0, 11, "/metadata/to")
    sent = card_of("a", metadata={"to": "[EMAIL]", "phone": "+1 415 555 2671"})
    intake.submit("acme", [RecordedCard(sent.card, NOW, (before,))])
    with store.reading() as connection:
        found = stored_cards(connection, ["a"])[0]
    assert found.removed == (before, Removal("PHONE", 0, 15, "/metadata/phone"))


def test_requests_that_wait_together_share_a_transaction(sqlite_store: Store, card_of: Any):
    intake, held = Intake(sqlite_store, DETECTORS), locked(sqlite_store)
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(intake.submit, "acme", [card_of("first")])
        while not intake._requests:  # pyright: ignore[reportPrivateUsage]
            pass
        others = [pool.submit(intake.submit, "acme", [card_of(f"other-{number}"), card_of("both")]) for number in range(8)]
        while len(intake._requests) < 9:  # pyright: ignore[reportPrivateUsage]
            pass
        held.close()
        assert first.result() == Outcome(1, 0, ())
        assert sum(other.result().stored for other in others) == 9  # 8 of their own, and the one that all of them sent
    intake.close()
    with sqlite_store.reading() as connection:
        moments = connection.scalar(sa.select(sa.func.count(ledger.c.at.distinct())))
    assert moments <= 2  # the first, which was being tried, and one for all others
    assert len(stored(sqlite_store)) == 10


def test_who_comes_when_there_is_no_room_is_told_to_come_back(sqlite_store: Store):
    intake = Intake(sqlite_store, DETECTORS, most_bytes=1000)
    with intake.room(5000, "acme"):  # alone, whatever its size
        with pytest.raises(Shed), intake.room(1, "other"):
            pass
    with intake.room(500, "acme"), intake.room(500, "other"), pytest.raises(Shed), intake.room(1, "third"):
        pass
    with intake.room(1000, "acme"):
        pass
    intake.close()


def test_no_tenant_takes_more_than_half_of_the_room(sqlite_store: Store):
    intake = Intake(sqlite_store, DETECTORS, most_bytes=1000)
    with intake.room(300, "greedy"), intake.room(200, "greedy"):
        with pytest.raises(Shed), intake.room(1, "greedy"):
            pass
        with intake.room(500, "modest"):
            pass
    intake.close()


def test_who_sends_much_delays_himself_and_nobody_else(sqlite_store: Store, card_of: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MOST_AT_ONCE", 4)
    intake, held = Intake(sqlite_store, DETECTORS), locked(sqlite_store)
    with ThreadPoolExecutor(2) as pool:
        greedy = pool.submit(intake.submit, "acme", [card_of(f"many-{number}") for number in range(20)])
        while not intake._requests:  # pyright: ignore[reportPrivateUsage]
            pass
        modest = pool.submit(intake.submit, "other", [card_of("one", tenant="other")])
        while len(intake._requests) < 2:  # pyright: ignore[reportPrivateUsage]
            pass
        held.close()
        assert (greedy.result().stored, modest.result().stored) == (20, 1)
    intake.close()
    with sqlite_store.reading() as connection:
        moments = list(connection.scalars(sa.select(ledger.c.at).distinct().order_by(ledger.c.at)))
        mine = connection.scalar(sa.select(ledger.c.at).where(ledger.c.subject == "one", ledger.c.kind == "card"))
    assert mine in moments[:2]  # with the first four, or the four after them; of six portions


@pytest.mark.parametrize("beyond", ["names of 9,000 characters", "a name that a guard missed"])
def test_a_name_that_no_index_holds_is_its_cards_own_fault(store: Store, card_of: Any, monkeypatch: pytest.MonkeyPatch, beyond: str):
    """PostgreSQL's driver calls it an operational error, as it calls a full disk."""
    if beyond.startswith("a name"):
        monkeypatch.setattr(module, "unfit", lambda card: "")  # pyright: ignore[reportUnknownLambdaType]
    long = "".join(hashlib.sha256(str(number).encode()).hexdigest() for number in range(300))  # none that could be made short
    intake = Intake(store, DETECTORS, patience=5.0)
    outcome = intake.submit("acme", [card_of("a"), card_of("b", run_id=long), card_of("c")])
    intake.close()
    if store.engine.dialect.name == "sqlite" and beyond.startswith("a name"):
        assert outcome.stored == 3  # whose indexes hold it
        return
    assert (outcome.stored, [one.rollout_id for one in outcome.refused]) == (2, ["b"])
    assert ("its run_id is 19200 bytes long, more than 1000" if beyond.startswith("names") else "index row") in outcome.refused[0].why
    assert stored(store) == ["a", "c"]


@pytest.mark.parametrize("name", ["run_id", "row_id"])
def test_a_name_with_a_nul_is_refused_at_the_door(store: Store, intake: Intake, card_of: Any, name: str):
    outcome = intake.submit("acme", [card_of("a"), card_of("b", **{name: "a\0b"})])
    assert outcome == Outcome(1, 0, (Refused("b", f"its {name} holds a NUL or half a character"),))


def test_names_as_long_as_they_may_be_are_stored(store: Store, intake: Intake, card_of: Any):
    digests = "".join(hashlib.sha256(str(number).encode()).hexdigest() for number in range(16))
    rollout_id, name = digests[:200], digests[:1000]
    versions = Versions(code=name, checkpoint=name, dataset=name, tool_set=name, grader=name)
    assert intake.submit("acme", [card_of(rollout_id, run_id=name, row_id=name, versions=versions)]) == Outcome(1, 0, ())
    assert intake.submit("acme", [card_of(digests[:201])]).refused == (
        Refused(digests[:201], "its rollout_id is 201 bytes long, more than 200"),
    )


def test_a_store_that_is_away_is_waited_for(sqlite_store: Store, card_of: Any):
    intake, held = Intake(sqlite_store, DETECTORS), locked(sqlite_store)
    threading.Timer(0.3, held.close).start()
    assert intake.submit("acme", [card_of("a")]) == Outcome(1, 0, ())
    intake.close()


def test_a_store_that_stays_away_is_told_and_what_comes_again_is_stored_once(sqlite_store: Store, card_of: Any):
    intake, held = Intake(sqlite_store, DETECTORS, patience=0.2), locked(sqlite_store)
    with pytest.raises(Away, match=r"did not take it within 0\.2 s"):
        intake.submit("acme", [card_of("a")])
    held.close()
    intake.close()  # what was being tried may have come in
    again = Intake(sqlite_store, DETECTORS)
    outcome = again.submit("acme", [card_of("a")])
    again.close()
    assert outcome.stored + outcome.known == 1
    assert stored(sqlite_store) == ["a"]


def test_closing_writes_what_waits_and_takes_nothing_more(sqlite_store: Store, card_of: Any):
    intake, held = Intake(sqlite_store, DETECTORS), locked(sqlite_store)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(intake.submit, "acme", [card_of("a")])
        while not intake._requests:  # pyright: ignore[reportPrivateUsage]
            pass
        threading.Timer(0.1, held.close).start()
        intake.close()
        assert waiting.result() == Outcome(1, 0, ())
    with pytest.raises(Shed), intake.room(1, "acme"):
        pass
    with pytest.raises(Away):
        intake.submit("acme", [card_of("b")])


def test_what_a_source_says_comes_with_its_cards(store: Store, intake: Intake, make_card: MakeCard):
    cards = [RecordedCard(make_card(f"card-{number}", tenant="acme"), NOW, source="agent", number=number) for number in (1, 2, 4)]
    intake.submit("acme", cards, Said(tenant="acme", source="agent", announced=5, sample_rate=0.5))
    intake.submit("acme", [], Said(tenant="acme", source="agent"))
    (source,) = disclosed(store, "acme")
    assert (source.name, source.came, source.missing, source.tail, source.sample_rate) == ("agent", 3, ((3, 3),), 1, 0.5)


def test_what_one_source_says_in_two_requests_of_one_transaction_counts_together(store: Store):
    told = [Said(tenant="acme", source="agent", **each) for each in ({"announced": 5, "sample_rate": 0.5}, {"sample_rate": 0.75}, {})]
    write(store, [Word(said) for said in told], DETECTORS)
    (source,) = disclosed(store, "acme")
    assert (source.announced, source.sample_rate) == (5, 0.5)
