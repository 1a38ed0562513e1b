"""Words go when they are as old as the policy says, never earlier, never where a hold stands; the plan says beforehand what goes."""

from __future__ import annotations

import datetime as dt

import pytest
import sqlalchemy as sa

from agent_rft.contracts.errors import FaultsFound, UserError
from observability import erasure, ledger, retention
from observability.cards import find_card
from observability.holds import place
from observability.ingest import insert_cards
from observability.partitions import earliest_id, is_partition
from observability.query import parse
from observability.records import RecordedCard
from observability.retention import Due, apply, due, plan, policies, remove_policy, set_policy, warning
from observability.store import open_store
from observability.tables import card_steps, job_cards

NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)


def id_at(moment: dt.datetime, number: int = 0) -> str:
    return f"{earliest_id(moment)}-7000-8000-{number:012x}"


@pytest.fixture
def record(store, make_card):
    def put(days: float, kind: str = "eval", *, brought: float | None = None, rollout_id: str | None = None, **more) -> str:
        """A card that started so many days ago, and came into the store then or later."""
        started = NOW - days * DAY
        rollout_id = rollout_id or id_at(started, len(given))
        given.append(rollout_id)
        card = make_card(rollout_id, kind=kind, started_at=started.isoformat(), **more)
        insert_cards(store, [RecordedCard(card, NOW - (days if brought is None else brought) * DAY)])
        return rollout_id

    given: list[str] = []
    return put


def erased(store, *rollout_ids) -> list[bool]:
    return [find_card(store, one).erased is not None for one in rollout_ids]


def test_words_go_by_kind_and_age_and_the_plan_says_so_before(store, record):
    old, older, young = record(40, "train"), record(70, "train"), record(29, "train")
    other_old, other_young = record(101, "shadow"), record(99, "production")
    set_policy(store, "local", "train", 30, "ops")
    set_policy(store, "local", "*", 100, "ops")
    place(store, "local", "case-7", parse(f"id:{older}", NOW), "suit", "ann")
    lines = plan(store, "local", NOW)
    assert lines == [  # 101 days before 21 November is 12 August, 70 is 12 September, 40 is 12 October
        Due("shadow", "2026-08", 1, 0, NOW - 101 * DAY),
        Due("train", "2026-09", 1, 1, NOW - 70 * DAY),
        Due("train", "2026-10", 1, 0, NOW - 40 * DAY),
    ]
    done = apply(store, "local", "ops", NOW)
    assert (done.erased, done.held) == (2, 1)
    assert erased(store, old, older, young, other_old, other_young) == [True, False, False, True, False]
    gone = find_card(store, old).erased
    assert gone and (gone.by, gone.why) == ("ops", "retention: train cards after 30 days")
    assert [(line.kind, line.cards, line.held) for line in plan(store, "local", NOW)] == [("train", 1, 1)]
    assert not list(ledger.verify(store, "local"))


def test_a_card_is_as_old_as_the_youngest_of_its_times(sqlite_store, make_card, request):
    store = sqlite_store

    def put(rollout_id: str, started: dt.datetime, recorded: dt.datetime) -> str:
        insert_cards(store, [RecordedCard(make_card(rollout_id, started_at=started.isoformat()), recorded)])
        return rollout_id

    old, fresh = NOW - 50 * DAY, NOW - DAY
    kept = [put(id_at(old, 1), old, fresh), put(id_at(old, 2), fresh, old), put(id_at(fresh, 3), old, old)]
    gone = [put(id_at(old, 4), old, old), put("card-of-mine", old, old), put("0001", old, old)]
    set_policy(store, "local", "eval", 30, "ops")
    assert apply(store, "local", "ops", NOW).erased == 3
    assert erased(store, *kept, *gone) == [False] * 3 + [True] * 3
    assert apply(store, "local", "ops", NOW + 40 * DAY).erased == 3


def test_it_goes_on_where_it_was_stopped_and_passes_held_cards_by(sqlite_store, make_card, monkeypatch):
    monkeypatch.setattr(retention, "BATCH", 2)
    started = NOW - 50 * DAY
    for number in range(7):
        card = make_card(id_at(started, number), started_at=started.isoformat(), row_id=f"row-{number}")
        insert_cards(sqlite_store, [RecordedCard(card, started)])
    set_policy(sqlite_store, "local", "eval", 30, "ops")
    place(sqlite_store, "local", "case-7", parse("row:row-0,row-1,row-2", NOW), "suit", "ann")

    class Stopped(Exception):
        pass

    def stop_at_four(_: int, seen: list[int] = []) -> None:  # noqa: B006
        seen.append(_)
        if sum(seen) >= 4:
            raise Stopped

    with pytest.raises(Stopped):
        apply(sqlite_store, "local", "ops", NOW, stop_at_four)
    assert erased(sqlite_store, *(id_at(started, number) for number in range(7))) == [False] * 3 + [True] + [False] * 3
    done = apply(sqlite_store, "local", "ops", NOW)
    assert (done.erased, done.held, done.lingering) == (3, 3, "")
    assert not list(ledger.verify(sqlite_store, "local"))


def test_policies_are_set_changed_removed_and_checked_all_at_once(store):
    set_policy(store, "local", "production", 90, "ops")
    assert set_policy(store, "local", "production", 400, "ann").days == 400
    set_policy(store, "other", "*", 10, "ops")
    assert [(one.kind, one.days, one.by) for one in policies(store.of("local"), "local")] == [("production", 400, "ann")]
    remove_policy(store.of("local"), "local", "production")
    assert policies(store, "local") == [] and len(policies(store, "other")) == 1
    with pytest.raises(UserError, match="no policy for 'production'"):
        remove_policy(store, "local", "production")
    with pytest.raises(FaultsFound) as told:
        set_policy(store, "local", "producton", 0, "")
    assert [fault.where for fault in told.value.faults] == ["kind", "by", "days"]
    assert told.value.faults[0].cure == "did you mean 'production'?"


def test_less_than_six_months_for_production_is_told_once_it_is_set(sqlite_store):
    told = {
        (kind, days): bool(warning(set_policy(sqlite_store, "local", kind, days, "ops")))
        for kind, days in (("production", 182), ("*", 182), ("production", 183), ("*", 183), ("train", 1))
    }
    assert list(told.values()) == [True, True, False, False, False]


# --- PostgreSQL's months --------------------------------------------------------------------------------------------------


@pytest.fixture
def months(postgres, monkeypatch):
    """A store with the partitions of the last year, as one has that is a year old."""
    from observability import partitions, store

    url = postgres()
    monkeypatch.setattr(store, "make_partitions", lambda connection, _: partitions.make_partitions(connection, id_at(NOW - 365 * DAY)))
    store.migrate(url)
    opened = open_store(url)
    yield opened
    opened.close()


def parts_opened(store, statement) -> set[str]:
    """The partitions that a plan for this statement reads."""
    text = str(statement.compile(store.engine, compile_kwargs={"literal_binds": True}))
    with store.reading() as connection:
        lines = connection.exec_driver_sql("EXPLAIN " + text.replace("%", "%%")).scalars().all()
    return {word for line in lines for word in line.split() if is_partition(word)}


def test_retention_and_erasure_open_the_partitions_of_their_months_only(months, make_card):
    old = NOW - 200 * DAY  # 5 May
    insert_cards(months, [RecordedCard(make_card(id_at(old), started_at=old.isoformat()), old)])
    insert_cards(months, [RecordedCard(make_card(id_at(NOW), started_at=NOW.isoformat()), NOW)])
    policy = set_policy(months, "local", "eval", 183, "ops")
    asked = sa.select(job_cards.c.rollout_id).where(*due("local", policy, [policy], NOW))
    limit = NOW - 183 * DAY  # 22 May
    opened = parts_opened(months, asked)
    assert "job_cards_2026_05" in opened and "job_cards_default" in opened
    assert {part for part in opened if part > f"job_cards_{limit:%Y_%m}"} == {"job_cards_default"}
    changed = sa.update(card_steps).where(card_steps.c.rollout_id.in_([id_at(old)])).values(said=None)
    assert parts_opened(months, changed) == {"card_steps_2026_05"}
    assert apply(months, "local", "ops", NOW).erased == 1
    assert not list(ledger.verify(months, "local"))


def test_cards_of_a_month_without_a_partition_are_kept_and_erased_like_others(store, url, make_card, request):
    if store.engine.dialect.name == "sqlite":
        pytest.skip("it has no partitions")
    far = dt.datetime(2035, 3, 5, tzinfo=dt.UTC)
    insert_cards(store, [RecordedCard(make_card(id_at(far), started_at=far.isoformat()), far)])
    with store.reading() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM job_cards_default")) == 1
    set_policy(store, "local", "eval", 30, "ops")
    assert apply(store, "local", "ops", far + 29 * DAY).erased == 0
    assert apply(store, "local", "ops", far + 31 * DAY).erased == 1
    assert erased(store, id_at(far)) == [True]


def test_what_stops_in_the_middle_of_a_batch_has_erased_nothing_of_it(sqlite_store, make_card, monkeypatch):
    insert_cards(sqlite_store, [RecordedCard(make_card(id_at(NOW, number)), NOW) for number in range(3)])

    def fails(*_: object) -> None:
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(erasure, "_write", fails)
    with pytest.raises(RuntimeError):
        erasure.erase(sqlite_store, "local", [id_at(NOW, 0), id_at(NOW, 1)], "dpo", "a request")
    assert erased(sqlite_store, id_at(NOW, 0), id_at(NOW, 1)) == [False, False]
    assert not list(ledger.verify(sqlite_store, "local"))
