"""Recording never waits, and what was acknowledged is there, whatever happens to the process, the disk or the database."""

from __future__ import annotations

import datetime as dt
import pickle
import random
import stat
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

import observability.ingest as ingest
from agent_rft.contracts.errors import InfraError, UserError
from agent_rft.contracts.messages import ToolCall
from agent_rft.contracts.rollouts import ToolResult
from observability.cards import count_cards, find_card
from observability.ingest import StoreRecorder, replay
from observability.records import RecordedCard, without_token_ids
from observability.store import migrate, open_store

HERE = Path(__file__).parent


def stored_ids(store):
    with store.reading() as connection:
        return set(connection.scalars(sa.text("SELECT rollout_id FROM job_cards")))


def test_what_flush_returned_from_is_stored(store, make_card):
    recorder = StoreRecorder(store)
    for number in range(120):  # more than two batches
        recorder.record(make_card(f"card-{number}"))
    recorder.flush()
    assert (recorder.acknowledged, count_cards(store)) == (120, 120)
    recorder.close()


def test_a_card_comes_back_as_it_went_in_but_for_the_token_ids(store, make_card):
    card = make_card()
    with StoreRecorder(store) as recorder:
        recorder.record(card)
    found = find_card(store, card.rollout_id)
    assert found.card == without_token_ids(card)
    assert [turn.sampled_ids for turn in found.card.rollout.turns] == [[], []]
    assert [turn.sampled_tokens for turn in found.card.rollout.turns] == [2, 3]


def awkward(make_card, text, arguments=None):
    """The sample card with this text as answer, arguments and tool output."""
    card = make_card()
    turn = card.rollout.turns[0]
    turn.calls = (ToolCall("call-1-1", "search", arguments or {"query": text}),)
    turn.results = {"call-1-1": ToolResult("call-1-1", text)}
    card.rollout.answer = text
    return card


@pytest.mark.parametrize("text", ["Größe: ±5 % — 数字 🧮", "x" * 3_000_000, "", "' OR 1=1 --\n\t\\"])
def test_any_text_survives(store, make_card, text):
    card = awkward(make_card, text)
    with StoreRecorder(store) as recorder:
        recorder.record(card)
    assert find_card(store, card.rollout_id).card == without_token_ids(card)


def test_what_no_database_can_hold_as_text_is_stored_in_a_shape_it_can(store, make_card):
    with StoreRecorder(store) as recorder:
        recorder.record(awkward(make_card, "a\0b\ud800c"))
    rollout = find_card(store, "card-1").card.rollout
    assert rollout.answer == "a\u2400b\ufffdc"
    assert rollout.turns[0].calls[0].arguments == {"query": "a\0b\ud800c"}  # JSON has escapes for both


def test_a_rollout_that_failed_from_infrastructure_has_no_grade(store, make_card):
    with StoreRecorder(store) as recorder:
        recorder.record(make_card(grade=None, step=None, advantage=None, reference_answer=None))
    found = find_card(store, "card-1")
    assert (found.card.grade, found.grades, found.card.reference_answer) == (None, (), None)


def test_a_card_recorded_twice_is_stored_once_and_the_first_stays(store, make_card):
    with StoreRecorder(store) as recorder:
        recorder.record(make_card(row_id="first"))
        recorder.record(make_card(row_id="second"))  # in the same batch
        recorder.flush()
        recorder.record(make_card(row_id="third"))  # and in a later one
    assert (recorder.acknowledged, count_cards(store)) == (3, 1)
    found = find_card(store, "card-1")
    assert (found.card.row_id, len(found.card.rollout.turns), len(found.grades)) == ("first", 2, 1)


def test_a_rollout_changed_after_it_was_recorded_is_stored_as_it_was(sqlite_store, make_card):
    card, as_recorded = make_card(), without_token_ids(make_card())
    with StoreRecorder(sqlite_store) as recorder:
        with sqlite_store.writing():  # so that it is written only after the change
            recorder.record(card)
            card.rollout.turns[0].results.clear()
            card.rollout.turns.pop()
    assert find_card(sqlite_store, "card-1").card == as_recorded


def test_a_card_that_the_store_refuses_holds_up_neither_other_cards_nor_checkpoints(store, tmp_path, make_card):
    recorder = StoreRecorder(rescuing_into(store, tmp_path))
    for number in range(10):
        recorder.record(make_card(f"card-{number}", metadata={"odd": object()} if number == 4 else {}))
    recorder.flush()  # what a checkpoint waits for
    recorder.close()
    assert (recorder.acknowledged, recorder.refused) == (9, 1)
    assert stored_ids(store) == {f"card-{number}" for number in range(10)} - {"card-4"}
    assert replay(store, recorder.rescue_file) == 1  # the file holds what could be said of it
    assert find_card(store, "card-4").card.metadata["odd"].startswith("<object object")


def test_cards_refused_for_one_reason_are_warned_about_once_and_counted_at_the_end(store, tmp_path, make_card):
    versions = msgspec.structs.replace(make_card().versions, seed=2**63)  # one bit more than the stores' integers have
    with capture_logs() as logs, StoreRecorder(rescuing_into(store, tmp_path)) as recorder:
        for number in range(3):
            recorder.record(make_card(f"card-{number}", versions=versions))
    refused, total = (entry for entry in logs if entry["log_level"] == "warning")
    assert (refused["event"], refused["rollout_id"]) == ("card refused", "card-0")
    assert (total["event"], total["refused"], total["of"]) == ("cards refused", 3, 3)
    assert total["saved_in"] == str(recorder.rescue_file)
    assert recorder.rescue_file.read_text().count("\n") == 3


def test_a_replayed_card_that_is_refused_again_is_named(store, tmp_path, make_card):
    versions = msgspec.structs.replace(make_card().versions, seed=2**63)
    with StoreRecorder(rescuing_into(store, tmp_path)) as recorder:
        recorder.record(make_card("too-large", versions=versions))
        recorder.record(make_card("odd", metadata={"odd": object()}))
    with pytest.raises(UserError, match=r"cards-unsaved.*: the store refuses card too-large: "):
        replay(store, recorder.rescue_file)


def test_the_largest_seed_is_stored(store, make_card):
    versions = msgspec.structs.replace(make_card().versions, seed=2**63 - 1)
    with StoreRecorder(store) as recorder:
        recorder.record(make_card(versions=versions))
    assert find_card(store, "card-1").card.versions.seed == 2**63 - 1


def rescuing_into(store, folder):
    """The store with its rescue file in a folder of the test's own."""
    return type(store)(store.engine, store.name, folder)


# --- the database is away ---------------------------------------------------------------------------------------------


def every_connection(store, pragma):
    sa.event.listen(store.engine, "connect", lambda connection, _: connection.execute(f"PRAGMA {pragma}"))
    store.engine.dispose()


def test_a_locked_database_delays_nothing_and_loses_nothing(sqlite_store, make_card):
    every_connection(sqlite_store, "busy_timeout=20")
    recorder = StoreRecorder(sqlite_store)
    cards = [make_card(f"card-{number}") for number in range(300)]
    with sqlite_store.writing():  # another process holds the write lock
        seconds = []
        for card in cards:
            before = time.perf_counter()
            recorder.record(card)
            seconds.append(time.perf_counter() - before)
        with pytest.raises(InfraError, match=r"300 of 300 cards are not durable after 0.2 s: database is locked"):
            recorder.flush(timeout=0.2)
        assert recorder.acknowledged == 0
    assert statistics.quantiles(seconds, n=20)[-1] < 0.001  # 95% within a millisecond; the rest is the machine's
    recorder.close()
    assert count_cards(sqlite_store) == 300


CUT_OTHERS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()"


def test_a_database_that_cuts_its_connections_loses_nothing(postgres, monkeypatch, make_card):
    url = postgres()
    migrate(url)
    store, cuts, seen = open_store(url), open_store(url), []
    stop = threading.Event()
    settle = ingest.Settler.settle

    def watched(self, batch, rescue_file):
        try:
            return settle(self, batch, rescue_file)
        except ingest.STORE_AWAY as error:
            seen.append(error)
            raise

    def cut_connections():
        with cuts.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            while not stop.wait(0.02):
                connection.execute(sa.text(CUT_OTHERS))

    monkeypatch.setattr(ingest.Settler, "settle", watched)
    cutter = threading.Thread(target=cut_connections)
    cutter.start()
    with StoreRecorder(store) as recorder:
        for number in range(400):
            recorder.record(make_card(f"card-{number}"))
            time.sleep(0.001)
        stop.set()
    cutter.join()
    assert seen  # it did hurt
    assert (recorder.acknowledged, count_cards(store)) == (400, 400)
    with store.reading() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM grades")) == 400


def test_a_full_disk_leaves_the_rest_in_a_file_that_can_be_replayed(sqlite_store, tmp_path, make_card):
    every_connection(sqlite_store, "max_page_count=240")
    recorder = StoreRecorder(sqlite_store)
    ids = {f"card-{number}" for number in range(400)}
    for number, rollout_id in enumerate(ids):
        recorder.record(make_card(rollout_id))
        if number == 50:
            recorder.flush()  # there is room for so many
    with pytest.raises(InfraError, match=r"cards are not durable after 0.8 s: database or disk is full. They are safe in .*cards-unsaved"):
        recorder.close(timeout=0.8)
    saved = {msgspec.json.decode(line)["card"]["rollout_id"] for line in recorder.rescue_file.read_text().splitlines()}
    assert 0 < len(saved) < 400
    assert stored_ids(sqlite_store) == ids - saved

    roomier = open_store(f"sqlite:///{tmp_path}/cards.db")
    assert replay(roomier, recorder.rescue_file) == len(saved)
    assert replay(roomier, recorder.rescue_file) == 0
    assert stored_ids(roomier) == ids
    assert find_card(roomier, "card-7").card == without_token_ids(make_card("card-7"))


def test_the_temporary_folder_takes_the_rest_where_the_stores_own_cannot(sqlite_store, tmp_path, monkeypatch, make_card):
    every_connection(sqlite_store, "busy_timeout=20")
    monkeypatch.setattr(ingest.tempfile, "gettempdir", lambda: str(tmp_path))
    recorder = StoreRecorder(rescuing_into(sqlite_store, tmp_path / "gone"))
    with sqlite_store.writing():
        recorder.record(make_card())
        with pytest.raises(InfraError, match=str(tmp_path)):
            recorder.close(timeout=0.1)
    assert recorder.rescue_file.parent == tmp_path
    assert recorder.rescue_file.read_text().count("\n") == 1


def test_nobody_else_reads_a_rescue_file_or_leads_it_elsewhere(tmp_path, monkeypatch, make_card):
    """A card that could not be redacted stands in it as it came."""
    card = RecordedCard(make_card(), dt.datetime.now(dt.UTC))
    saved = ingest.rescue([card], tmp_path / "cards-unsaved-1.jsonl")
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
    (elsewhere := tmp_path / "elsewhere").write_text("")
    (laid := tmp_path / "cards-unsaved-2.jsonl").symlink_to(elsewhere)
    (temporary := tmp_path / "temporary").mkdir()
    (temporary / "cards-unsaved-2.jsonl").symlink_to(elsewhere)
    monkeypatch.setattr(ingest.tempfile, "gettempdir", lambda: str(temporary))
    saved = ingest.rescue([card], laid)
    assert elsewhere.read_text() == ""
    assert saved.parent == temporary and saved.name != laid.name and stat.S_IMODE(saved.stat().st_mode) == 0o600
    assert [found.card.rollout_id for found in ingest._rescued(saved)] == ["card-1"]


def test_cards_that_no_disk_takes_are_said_to_be_lost(sqlite_store, tmp_path, monkeypatch, make_card):
    every_connection(sqlite_store, "busy_timeout=20")
    monkeypatch.setattr(ingest.tempfile, "gettempdir", lambda: str(tmp_path / "gone too"))
    recorder = StoreRecorder(rescuing_into(sqlite_store, tmp_path / "gone"))
    with sqlite_store.writing():
        recorder.record(make_card())
        with pytest.raises(InfraError, match=r"1 of 1 cards are not durable.* They are lost"):
            recorder.close(timeout=0.1)


def test_cards_of_a_program_that_forgets_to_close_are_stored_at_its_exit(tmp_path):
    code = (
        "import sys; from sample_cards import make_card\n"
        "from observability.ingest import StoreRecorder; from observability.store import open_store\n"
        "recorder = StoreRecorder(open_store(sys.argv[1]))\n"
        "for i in range(80): recorder.record(make_card(f'card-{i}'))"
    )
    url = f"sqlite:///{tmp_path}/cards.db"
    subprocess.run([sys.executable, "-c", code, url], cwd=HERE, check=True)
    assert count_cards(open_store(url)) == 80


def test_a_rescue_file_that_is_not_one_is_named_with_its_line(sqlite_store, tmp_path):
    (tmp_path / "wrong.jsonl").write_text('{"some": "thing"}\n')
    with pytest.raises(UserError, match=r"wrong.jsonl:1: not a saved card"):
        replay(sqlite_store, tmp_path / "wrong.jsonl")
    with pytest.raises(UserError, match="cannot be read"):
        replay(sqlite_store, tmp_path / "none.jsonl")


def test_a_growing_queue_is_told_of_once(sqlite_store, monkeypatch, make_card):
    monkeypatch.setattr(ingest, "WARN_WAITING", 5)
    with capture_logs() as logs:
        recorder = StoreRecorder(sqlite_store)
        with sqlite_store.writing():
            for number in range(20):
                recorder.record(make_card(f"card-{number}"))
        recorder.close()
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == ["job cards pile up in memory"]


def test_a_closed_recorder_takes_no_more(sqlite_store, make_card):
    with StoreRecorder(sqlite_store) as recorder:
        pass
    recorder.close()  # a second time does no harm
    with pytest.raises(RuntimeError, match="closed"):
        recorder.record(make_card())


# --- the process is killed --------------------------------------------------------------------------------------------


def test_no_acknowledged_card_is_lost_to_kill_9(url):

    migrate(url)
    acknowledged, chance = set(), random.Random(1)
    for round_number in range(3):
        child = subprocess.Popen(
            [sys.executable, str(HERE / "record_until_killed.py"), url, f"round-{round_number}"], stdout=subprocess.PIPE, text=True
        )
        first = child.stdout.readline()  # it is recording
        time.sleep(chance.uniform(0.0, 0.25))
        child.kill()
        lines = (first + child.communicate()[0]).split("\n")[:-1]  # what follows the last newline was cut
        assert lines
        acknowledged |= set(lines)
    store = open_store(url)
    assert acknowledged <= stored_ids(store)
    by_half = "SELECT rollout_id FROM job_cards c WHERE (SELECT count(*) FROM card_steps s WHERE s.rollout_id = c.rollout_id) <> 6"
    with store.reading() as connection:
        assert connection.scalars(sa.text(by_half)).all() == []
    store.close()


def test_an_advantage_known_later_is_added_to_the_card_and_nothing_else_changes(store, make_card):
    with StoreRecorder(store) as recorder:
        recorder.record(make_card(advantage=None, step=3))
        recorder.flush()
        recorder.record(make_card(advantage=-0.5, step=4))
    found = find_card(store, make_card().rollout_id)
    assert (found.card.advantage, found.card.step, len(found.grades)) == (-0.5, 3, 1)


def test_an_advantage_once_there_stays(store, make_card):
    with StoreRecorder(store) as recorder:
        for advantage in (0.25, None, 9.0):
            recorder.record(make_card(advantage=advantage))
            recorder.flush()
    assert find_card(store, make_card().rollout_id).card.advantage == 0.25


def test_a_recorder_sent_to_another_process_records_into_the_same_store(store, make_card, monkeypatch, tmp_path):
    with StoreRecorder(store) as recorder:
        sent = pickle.dumps(recorder)
    monkeypatch.chdir(tmp_path)  # a process of somebody else's folder
    with pickle.loads(sent) as there:
        there.record(make_card("card-there"))
    assert stored_ids(store) == {"card-there"}


def test_what_a_card_says_of_people_is_taken_out_before_it_is_stored_or_rescued(sqlite_store, make_card):
    card = make_card(reference_answer="ann@example.org", metadata={"task_type": "mail", "case": "C-123456"})
    with StoreRecorder(sqlite_store, patterns={"CASE": "C-[0-9]{6}"}) as recorder:
        recorder.record(card)
    stored = find_card(sqlite_store, "card-1")
    assert stored.card.reference_answer == "[EMAIL]" and stored.card.metadata["case"] == "[CASE]"
    assert stored.removed is not None
    assert {(one.kind, one.path) for one in stored.removed} == {("EMAIL", "/reference_answer"), ("CASE", "/metadata/case")}
    every_connection(sqlite_store, "busy_timeout=20")
    away = StoreRecorder(sqlite_store, patterns={"CASE": "C-[0-9]{6}"})
    with sqlite_store.writing():
        away.record(make_card("card-2", reference_answer="bob@example.org"))
        with pytest.raises(InfraError, match="safe in"):
            away.close(timeout=0.2)
    assert "bob@" not in away.rescue_file.read_text() and "[EMAIL]" in away.rescue_file.read_text()


def test_redaction_can_be_turned_off(sqlite_store, make_card):
    with StoreRecorder(sqlite_store, redacting=False) as recorder:
        recorder.record(make_card(reference_answer="ann@example.org"))
    stored = find_card(sqlite_store, "card-1")
    assert (stored.card.reference_answer, stored.removed) == ("ann@example.org", None)


def test_a_card_that_cannot_be_redacted_is_rescued_and_holds_up_no_other(sqlite_store, make_card, monkeypatch):
    def redact(card, detectors):
        if card.rollout_id == "unlucky":
            raise ZeroDivisionError("a detector's fault")
        return real(card, detectors)

    real = ingest.redact_card
    monkeypatch.setattr(ingest, "redact_card", redact)
    with StoreRecorder(sqlite_store) as recorder:
        for name in ("a", "unlucky", "b"):
            recorder.record(make_card(name))
        recorder.flush()
    assert (recorder.acknowledged, recorder.refused, stored_ids(sqlite_store)) == (2, 1, {"a", "b"})
    monkeypatch.undo()
    assert replay(sqlite_store, recorder.rescue_file) == 1
    assert find_card(sqlite_store, "unlucky").removed is not None
