"""Erasing takes every word of a card out of the store and its files, and leaves the facts and the proofs. A held card stays whole."""

from __future__ import annotations

import csv
import datetime as dt
import hashlib
import io
import json
from pathlib import Path

import pytest
import sqlalchemy as sa

from agent_rft.contracts.errors import FaultsFound, UserError
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.messages import Message
from agent_rft.contracts.rollouts import ToolResult
from observability import ledger, queue, retention, states, verify_evidence
from observability import reviews as reviews_of
from observability.access import person_at_the_machine
from observability.book import Book
from observability.bundles import evidence_of
from observability.cards import find_card, stored_cards
from observability.dossiers import dossier_of
from observability.erasure import SALTED, Outcome, erase
from observability.exports import EXPORTS, read_cards
from observability.find import count, whole_cards
from observability.graders import add_label, append_grades, rollouts_to_label
from observability.halves import change_halves, review_halves, spans_halves, state_halves
from observability.holds import held, place, release
from observability.ingest import add_cards, insert_cards, redacted
from observability.intake import write
from observability.otlp.spans import Received, Span
from observability.proofs import to_be_erased
from observability.query import EVERY_CARD, parse
from observability.records import RecordedCard, rows_of
from observability.redaction.detectors import detectors_of
from observability.redaction.redact import Removal
from observability.roots import LedgerFiles
from observability.search import behind, catch_up
from observability.signing import open_keys, public_keys
from observability.story import story
from observability.tables import (
    blobs,
    card_states,
    card_steps,
    change_requests,
    erasures,
    grades,
    job_cards,
    metadata,
    review_queue,
    reviews,
    trace_parts,
    traces,
)
from observability.tables import ledger as entries
from observability.texts import packed, unpacked
from observability.traces import bundles_of, settle_quiet

DAY = dt.timedelta(days=1)
IN_NO_BUNDLE = {"approval", "approval decision"}
NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
IDS = [f"0198c2{number:02d}-0000-7000-8000-000000000000" for number in range(4)]
PLACES = ("reference", "type", "note", "question", "answer", "reason", "said", "argument", "output", "error", "blob")
SAID_LATER = ("graded", "wrong", "label", "review", "wanted", "settled", "state", "sealed", "span")


def word(number: int, place: str) -> str:
    """One that stands nowhere else, and shares no beginning with another: an index keeps only what differs from the word before."""
    return hashlib.sha256(f"{number} {place}".encode()).hexdigest()[:20]


def secret_card(make_card, number: int, **more):
    """One that has a word of its own in every place where a word can be."""
    said = {place: word(number, place) for place in PLACES}
    told = {"task_type": said["type"], "note": said["note"]}
    card = make_card(IDS[number % len(IDS)], reference_answer=said["reference"], metadata=told, **more)
    rollout = card.rollout
    rollout.opening = (Message("system", "Answer."), Message("user", f"Who is {said['question']}?"))
    rollout.answer, rollout.reason = f"It is {said['answer']}.", f"because {said['reason']}"
    rollout.turns[0].text = f"I look for {said['said']}."
    rollout.turns[0].calls[0].arguments["query"] = said["argument"]
    rollout.turns[0].results["call-1-1"] = ToolResult("call-1-1", said["output"], said["error"], 0.1)
    rollout.turns[0].results["call-1-2"] = ToolResult("call-1-2", "xylophone " * 150 + said["blob"], None, 0.1)
    return card


@pytest.fixture
def filled(sqlite_store, make_card):
    return recorded_in(sqlite_store, make_card)


@pytest.fixture
def filled_on_both(store, make_card):
    return recorded_in(store, make_card)


def recorded_in(store, make_card):
    """Three cards of one tenant, one of another with the first one's id, all in the index; of the second all is said that can be."""
    cards = [*(secret_card(make_card, number) for number in range(3)), secret_card(make_card, 8, tenant="other")]
    insert_cards(store, [RecordedCard(card, NOW) for card in cards])
    say_of(store, 1)
    for tenant in behind(store):
        catch_up(store, tenant)
    return store


def say_of(store, number: int) -> None:
    """A grade, a label, a review, a change request, a late span and a place in the queue, each with a word of its own."""
    said, one = {place: word(number, place) for place in SAID_LATER}, IDS[number]
    graded = Grade(GraderRef("numeric", "2", "beef"), 0.5, False, {"found": said["graded"]}, {"part": said["wrong"]})
    append_grades(store, [(one, graded)])
    add_label(store, "ann", rollout_id=one, score=1.0, note=said["label"])
    about = {"rollout_id": one, "tenant": "local", "by": "ann", "at": NOW}
    rows = {
        ("review", reviews, review_halves): about | {"position": None, "verdict": "coach", "note": said["review"]},
        ("change", change_requests, change_halves): about | {"target": "prompt", "row_id": "r", "wanted": said["wanted"]},
        ("spans", trace_parts, spans_halves): {
            "tenant": "local", "trace_id": "t", "hash": "h", "rollout_id": one, "spans": 1, "body": packed(said["span"]), "late": True,
            "at": NOW,
        },
    }  # fmt: skip
    with store.writing() as connection:
        book = Book(connection, ["local"])
        trace = {"tenant": "local", "trace_id": "t", "rollout_id": one, "carded": True, "last_at": NOW}
        connection.execute(sa.insert(traces), [trace])
        for (kind, table, halves), row in rows.items():
            book.enter(kind, one, row, halves(row))
            connection.execute(sa.insert(table), [row])
        waiting = {"tenant": "local", "rollout_id": one, "reason": "audit", "why": "drawn", "seq": 1, "at": NOW}
        connection.execute(sa.insert(review_queue), [waiting])
        state = about | {"state": "blocked", "why": said["state"]}  # from before it had an answer
        book.enter("state", one, state, state_halves(state))
        connection.execute(sa.insert(card_states), [state])
        book.close()
    reviews_of.settle(store, "bob", "local", reviews_of.changes_of(store, "local", one)[0].id, "declined", said["settled"])
    states.seal(store, "eve", "local", one, said["sealed"])


def findings(store, tenant: str = "local"):
    return {(one.what, one.kind, one.subject) for one in ledger.verify(store, tenant)}


def everything(store) -> str:
    """All that any table says and the index of words holds, compressed texts unpacked, as one text."""
    told: list[str] = []
    with store.writing() as connection:
        for table in metadata.sorted_tables:
            told += [repr(tuple(row)) for row in connection.execute(sa.select(table))]
        told += [unpacked(body) for body in connection.scalars(sa.select(blobs.c.body))]
        told += [unpacked(body) for body in connection.scalars(sa.select(trace_parts.c.body).where(trace_parts.c.body.is_not(None)))]
        if store.engine.dialect.name == "postgresql":
            told += list(connection.scalars(sa.text("SELECT words::text FROM search_words")))
        else:
            connection.execute(sa.text("CREATE VIRTUAL TABLE temp.indexed USING fts5vocab('main', 'search_words', 'row')"))
            told += list(connection.scalars(sa.text("SELECT term FROM temp.indexed")))
            connection.execute(sa.text("DROP TABLE temp.indexed"))
    return "\n".join(told)


def left_of(store, number: int) -> set[str]:
    told = everything(store)
    return {place for place in (*PLACES, *SAID_LATER) if word(number, place) in told}


# --- what goes ----------------------------------------------------------------------------------------------------------


def test_no_word_is_left_in_any_table_or_the_index_and_the_ledger_is_whole(filled_on_both):
    assert left_of(filled_on_both, 1) == {*PLACES, *SAID_LATER}
    done = erase(filled_on_both, "local", [IDS[1]], "dpo", "request 17")
    assert (done.erased, done.held, done.already) == ((IDS[1],), {}, ())
    assert left_of(filled_on_both, 1) == set()
    for number in (0, 2, 8):
        assert left_of(filled_on_both, number) == set(PLACES)
    assert findings(filled_on_both) == set() and findings(filled_on_both, "other") == set()
    with filled_on_both.reading() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(review_queue)) == 0


def test_not_a_byte_of_the_words_is_left_in_sqlite_s_files(sqlite_store, make_card, tmp_path: Path):
    cards = [secret_card(make_card, number) for number in range(4)]
    for card in cards:  # one by one, so that the index has several parts
        insert_cards(sqlite_store, [RecordedCard(card, NOW)])
        catch_up(sqlite_store, "local")
    compressed = [packed(text)[8:] for text in rows_of(RecordedCard(cards[1], NOW)).blobs.values() if word(1, "blob") in text]

    def bytes_left(number: int) -> int:
        files = b"".join(path.read_bytes() for path in tmp_path.glob("cards.db*"))
        return sum(word(number, place)[4:].encode() in files for place in PLACES) + sum(blob in files for blob in compressed)

    assert bytes_left(1) >= 9
    sa.event.listen(sqlite_store.engine, "connect", lambda one, _: one.execute("PRAGMA busy_timeout=50"))
    with sqlite_store.reading() as reader:  # who looks at the store as it was keeps the log
        reader.execute(sa.select(job_cards))
        assert "log" in patient(0.2, lambda: erase(sqlite_store, "local", [IDS[1]], "dpo", "a request")).lingering
    assert erase(sqlite_store, "local", [IDS[1]], "dpo", "a request") == Outcome(already=(IDS[1],))
    assert bytes_left(1) == 0
    assert bytes_left(0) >= 9 and bytes_left(2) >= 9


def patient(seconds: float, work):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("observability.erasure.PATIENCE", seconds)
        return work()


def test_evidence_of_an_erased_card_is_genuine_and_says_whose_words_went(filled, tmp_path: Path):
    erase(filled, "local", [IDS[1]], "dpo", "request 17")
    files, ann = LedgerFiles.of(filled, None), person_at_the_machine("local", "ann")
    made = evidence_of(filled, files, ann, "ann", "case-1", f"id:{IDS[1]}", NOW)
    (tmp_path / "case.zip").write_bytes(made.content)
    (tmp_path / "keys.json").write_bytes(public_keys(open_keys(files.keys, NOW.isoformat())))
    told, genuine = verify_evidence.verify(str(tmp_path / "case.zip"), str(tmp_path / "keys.json"), None)
    assert genuine, told
    assert {kind for kind in SALTED if any(f"the words of {kind} {IDS[1]}: erased" in line for line in told)} == set(SALTED) - IN_NO_BUNDLE
    assert not any(word(1, place).encode() in made.content for place in (*PLACES, *SAID_LATER))


def test_a_text_that_another_card_names_stays_and_one_that_is_named_no_more_goes(store, make_card):
    shared = [make_card(one) for one in IDS[:2]]  # the same opening, tools and long output
    for card in shared:
        card.rollout.turns[0].results["call-1-2"] = ToolResult("call-1-2", "xylophone " * 150, None, 0.1)
    insert_cards(store, [RecordedCard(card, NOW) for card in shared])

    def kept() -> int:
        with store.reading() as connection:
            return connection.scalar(sa.select(sa.func.count()).select_from(blobs)) or 0

    assert kept() == 3
    erase(store, "local", IDS[:1], "dpo", "a request")
    assert kept() == 3 and "xylophone" in story(find_card(store, IDS[1]))
    erase(store, "local", IDS[1:2], "dpo", "a request")
    assert kept() == 0


def test_cards_that_are_not_indexed_yet_and_those_that_share_words_are_found_as_they_should_be(filled_on_both, make_card):
    late = make_card(IDS[3])
    late.rollout.answer = f"{word(3, 'answer')} and {word(0, 'answer')}"
    insert_cards(filled_on_both, [RecordedCard(late, NOW)])
    erase(filled_on_both, "local", [IDS[3], IDS[1]], "dpo", "a request")
    catch_up(filled_on_both, "local")
    found = {
        place: count(filled_on_both, parse(word(number, place), NOW), "local")
        for number, place in ((3, "answer"), (1, "said"), (0, "answer"))
    }
    assert found == {"answer": 1, "said": 0}  # the last "answer" is that of card 0, which is alone with it now
    assert count(filled_on_both, parse("henderson", NOW), "local") == 2 and count(filled_on_both, EVERY_CARD, "local") == 4
    assert findings(filled_on_both) == set()


def test_what_is_said_afterwards_is_a_record_of_its_own_and_can_be_erased_again(filled):
    erase(filled, "local", [IDS[2]], "dpo", "request 1")
    add_label(filled, "bob", rollout_id=IDS[2], score=0.0, note=word(2, "label"))
    assert findings(filled) == set() and left_of(filled, 2) == {"label"}
    assert erase(filled, "local", [IDS[2], IDS[0]], "dpo", "request 2").erased == (IDS[2], IDS[0])
    assert erase(filled, "local", [IDS[2]], "dpo", "request 3").already == (IDS[2],)
    assert left_of(filled, 2) == set() and findings(filled) == set()
    gone = find_card(filled, IDS[2])
    assert gone.erased and gone.erased.why == "request 1"


def test_a_card_sent_again_stays_erased_and_takes_its_advantage(store, make_card):
    insert_cards(store, [RecordedCard(secret_card(make_card, 1, advantage=None), NOW)])
    erase(store, "local", [IDS[1]], "dpo", "a request")
    insert_cards(store, [RecordedCard(secret_card(make_card, 1, advantage=0.25), NOW)])
    assert left_of(store, 1) == set() and findings(store) == set()
    assert find_card(store, IDS[1]).card.advantage == 0.25


def test_a_drawn_card_that_is_erased_is_missed_by_nobody_and_one_that_was_taken_out_is(filled_on_both):
    queue.fill(filled_on_both, "local")
    with filled_on_both.reading() as connection:
        drawn = set(connection.scalars(sa.select(review_queue.c.rollout_id).where(review_queue.c.tenant == "local")))
    assert drawn == set(IDS[:3])  # production and evaluation: at least 5
    erase(filled_on_both, "local", [IDS[0]], "dpo", "a request")
    assert findings(filled_on_both) == set()
    with filled_on_both.writing() as connection:
        connection.execute(sa.delete(review_queue).where(review_queue.c.rollout_id == IDS[2]))
    assert findings(filled_on_both) == {("removed", "review queue", IDS[2])}


# --- spans ----------------------------------------------------------------------------------------------------------------


OWN = "01a1fc43-01da-7111-8111-111111111111"
START = 1_795_233_612_250_000_000  # 2026-11-21 04:00:12.25 UTC, OWN's time
DETECTORS = detectors_of(True)


def agent(**named: str) -> Span:
    """The root of the trace."""
    told = {"gen_ai.operation.name": "invoke_agent", "gen_ai.output.messages": "13.4%"} | named
    return Span(trace_id="5b" * 16, span_id=f"{1:016x}", start_ns=START, end_ns=START + 900, attributes=told)


def chat(number: int = 2, said: str = "I look it up.", trace: str = "5b" * 16) -> Span:
    messages = json.dumps([{"role": "assistant", "parts": [{"type": "text", "content": said}]}])
    told = {"gen_ai.operation.name": "chat", "gen_ai.output.messages": messages}
    ids = {"trace_id": trace, "span_id": f"{number:016x}", "parent_id": f"{1:016x}"}
    return Span(**ids, start_ns=START + 100, end_ns=START + 150, attributes=told)


def send(store, *spans, tenant: str = "acme") -> None:
    """One request, as the server takes it in."""
    bundles, refused = bundles_of(Received(spans, ()), tenant, NOW, DETECTORS)
    assert not refused
    write(store, bundles, DETECTORS)


def parts_left(store) -> list[str]:
    with store.reading() as connection:
        return [unpacked(body) for body in connection.scalars(sa.select(trace_parts.c.body).where(trace_parts.c.body.is_not(None)))]


def spans_told(store, rollout_id: str) -> int:
    return dossier_of(store, "acme", rollout_id).spans


def settled(store) -> None:
    """A day later: whatever has come is a card by then, or will never be one."""
    settle_quiet(store, dt.datetime.now(dt.UTC) + 2 * DAY, NOW, DETECTORS)


def test_spans_that_came_before_their_trace_named_its_card_go_with_the_card(store, make_card):
    insert_cards(store, [RecordedCard(make_card(OWN, tenant="acme"), NOW)])
    send(store, chat(said=f"A {word(1, 'span')}"))  # OpenTelemetry sends children first
    send(store, chat(said=f"A {word(2, 'span')}", trace="a" * 32))
    send(store, agent(**{"rft.rollout_id": OWN}))
    assert len(parts_left(store)) == 3 and spans_told(store, OWN) == 2
    place(store, "acme", "case-7", parse(f"id:{OWN}", NOW), "suit", "ann")
    assert erase(store, "acme", [OWN], "dpo", "a request").held == {OWN: ("case-7",)} and len(parts_left(store)) == 3
    release(store, "acme", "case-7", "settled", "ann")
    assert erase(store, "acme", [OWN], "dpo", "a request").erased == (OWN,)
    assert [word(2, "span") in text for text in parts_left(store)] == [True]  # another trace's
    assert erase(store, "acme", [OWN], "dpo", "a request").already == (OWN,)
    assert findings(store, "acme") == set()


def test_what_comes_after_an_erasure_is_due_as_its_card_is(store):
    send(store, chat(said=word(1, "span")), agent())
    one = cards_of(store)[0]
    retention.set_policy(store, "acme", "production", 30, "ops")
    later = dt.datetime.now(dt.UTC) + 31 * DAY
    assert retention.apply(store, "acme", "ops", later).erased == 1 and parts_left(store) == []
    assert retention.plan(store, "acme", later) == []
    send(store, chat(said=word(1, "span")), chat(9))  # the same span among others
    assert [line.cards for line in retention.plan(store, "acme", later)] == [1] and len(parts_left(store)) == 1
    assert retention.apply(store, "acme", "ops", later).erased == 1 and parts_left(store) == []
    add_label(store, "bob", tenant="acme", rollout_id=one, score=0.0, note=word(1, "label"))
    assert [line.cards for line in retention.plan(store, "acme", later)] == [1]
    assert retention.apply(store, "acme", "ops", later).erased == 1 and word(1, "label") not in everything(store)
    assert retention.plan(store, "acme", later) == [] and findings(store, "acme") == set()


def cards_of(store) -> list[str]:
    with store.reading() as connection:
        return list(connection.scalars(sa.select(job_cards.c.rollout_id)))


@pytest.fixture
def no_card(store, monkeypatch) -> str:
    """The id of a trace that cannot be read as a card, beside one of another tenant that is."""
    send(store, chat(said=f"Jane {word(1, 'span')}"))
    send(store, chat(said=word(2, "span")), agent(), tenant="other")

    def cannot(*_: object) -> None:
        raise ValueError("no card can be read from it")

    monkeypatch.setattr("observability.traces.card_of", cannot)
    settled(store)
    with store.reading() as connection:
        assert connection.scalar(sa.select(traces.c.carded).where(traces.c.tenant == "acme"))
        assert connection.scalar(sa.select(sa.func.count()).select_from(job_cards)) == 1
        return connection.scalar(sa.select(traces.c.rollout_id).where(traces.c.tenant == "acme"))


def test_a_trace_that_makes_no_card_is_found_by_its_words_held_and_erased(store, no_card):
    asked = parse(f'"jane {word(1, "span")}"', NOW)
    assert to_be_erased(store, "acme", asked) == [no_card] == to_be_erased(store, "acme", parse(f"id:{no_card}", NOW))
    for other in (f"{word(2, 'span')}", f"-id:{no_card}", "kind:production"):
        with pytest.raises(UserError, match="no card of tenant acme"):
            to_be_erased(store, "acme", parse(other, NOW))
    place(store, "acme", "away", parse(f"kind:production -{word(1, 'span')}", NOW), "suit", "ann")
    assert held(store, "acme", [no_card]) == {}
    release(store, "acme", "away", "settled", "ann")
    place(store, "acme", "case-7", parse(f"kind:production {word(1, 'span')}", NOW), "suit", "ann")  # nobody knows its kind
    assert erase(store, "acme", [no_card], "dpo", "a request").held == {no_card: ("case-7",)}
    release(store, "acme", "case-7", "settled", "ann")
    assert erase(store, "acme", [no_card], "dpo", "a request").erased == (no_card,)
    assert erase(store, "acme", [no_card], "dpo", "a request").already == (no_card,)
    assert {word(2, "span") in text and word(1, "span") not in text for text in parts_left(store)} == {True}  # the other tenant's
    assert findings(store, "acme") == findings(store, "other") == set()


def test_a_trace_that_makes_no_card_is_kept_as_long_as_a_production_card(store, no_card):
    retention.set_policy(store, "acme", "*", 10, "ops")
    retention.set_policy(store, "acme", "production", 30, "ops")
    assert retention.plan(store, "acme", NOW + 29 * DAY) == []
    assert retention.apply(store, "acme", "ops", NOW + 29 * DAY).erased == 0
    assert [(line.kind, line.cards, line.held) for line in retention.plan(store, "acme", NOW + 31 * DAY)] == [("no card", 1, 0)]
    assert retention.apply(store, "acme", "ops", NOW + 31 * DAY).erased == 1
    assert retention.plan(store, "acme", NOW + 31 * DAY) == [] and word(1, "span") not in everything(store)


# --- keys -----------------------------------------------------------------------------------------------------------------


def test_a_key_under_which_something_was_redacted_goes_too(store, make_card):
    found = redacted(RecordedCard(make_card(IDS[0], metadata={f"Jane {word(1, 'note')}": {"mail": "jane@example.com"}}), NOW), DETECTORS)
    insert_cards(store, [found])
    assert find_card(store, IDS[0]).removed == (Removal("EMAIL", 0, 16, f"/metadata/Jane {word(1, 'note')}/mail"),)
    erase(store, "local", [IDS[0]], "dpo", "a request")
    assert word(1, "note") not in everything(store)
    assert find_card(store, IDS[0]).removed == (Removal("EMAIL", 0, 16),)  # how much was taken out is a fact
    assert findings(store) == set()


def test_a_card_that_has_paths_among_its_facts_is_proven_as_it_was(store, make_card):
    """As the versions before recorded it."""
    rows = rows_of(RecordedCard(make_card(IDS[0]), NOW, (Removal("EMAIL", 0, 16, "/metadata/mail"),)))
    rows.card["removed"], rows.card["removed_paths"] = [{"kind": "EMAIL", "start": 0, "length": 16, "path": "/metadata/mail"}], None
    with store.writing() as connection:
        book = Book(connection, ["local"])
        add_cards(connection, book, {(IDS[0], "local"): rows})
        book.close()
    catch_up(store, "local")
    assert findings(store) == set()
    assert find_card(store, IDS[0]).removed == (Removal("EMAIL", 0, 16, "/metadata/mail"),)
    forged(store, job_cards.update().values(removed_paths=["/metadata/other"]))
    assert findings(store) == {("edited", "card", IDS[0])}


# --- who may not ----------------------------------------------------------------------------------------------------------


def test_a_held_card_stays_whole_and_the_hold_is_named(filled_on_both):
    place(filled_on_both, "local", "case-7", parse(f'"{word(1, "blob")}"', NOW), "suit 7", "ann")
    done = erase(filled_on_both, "local", IDS[:2], "dpo", "a request")
    assert done.erased == (IDS[0],) and done.held == {IDS[1]: ("case-7",)}
    assert left_of(filled_on_both, 1) == {*PLACES, *SAID_LATER} and left_of(filled_on_both, 0) == set()
    release(filled_on_both, "local", "case-7", "settled", "ann")
    assert erase(filled_on_both, "local", [IDS[1]], "dpo", "a request").erased == (IDS[1],)
    assert findings(filled_on_both) == set()


def test_another_tenant_s_card_is_not_there_and_every_mistake_is_told_at_once(filled):
    with pytest.raises(FaultsFound) as told:
        erase(filled, "other", [IDS[0], IDS[1], "nobody"], "dpo", "a request")
    assert [fault.where for fault in told.value.faults] == [IDS[1], "nobody"]
    with pytest.raises(FaultsFound) as told:
        erase(filled, "local", [IDS[0]], " ", "x" * 1001)
    assert [fault.where for fault in told.value.faults] == ["why", "by"]
    assert left_of(filled, 0) == set(PLACES) and left_of(filled, 8) == set(PLACES)


# --- what is read of an erased card -----------------------------------------------------------------------------------------


def test_an_erased_card_tells_its_facts_and_who_erased_it(filled):
    before = find_card(filled, IDS[1])
    erase(filled, "local", [IDS[1]], "dpo", "request 17")
    stored = find_card(filled, IDS[1])
    assert stored.erased and (stored.erased.by, stored.erased.why) == ("dpo", "request 17")
    assert (stored.card.cost, stored.card.versions, stored.card.rollout.ending) == (
        before.card.cost,
        before.card.versions,
        before.card.rollout.ending,
    )
    assert [one.grade.reward for one in stored.grades] == [1.0, 0.5] and stored.card.rollout.turns == []
    told = story(stored)
    assert "by dpo: request 17" in told and "PROMPT" not in told and "1.00, passed" in told
    assert rollouts_to_label(filled, "research_tiny-42") and IDS[1] not in rollouts_to_label(filled, "research_tiny-42")


@pytest.mark.parametrize("suffix", sorted(EXPORTS))
def test_every_export_writes_the_facts_of_an_erased_card(filled, suffix):
    erase(filled, "local", [IDS[1]], "dpo", "request 17")
    written = b"".join(EXPORTS[suffix].write(whole_cards(filled, parse(f"id:{IDS[1]}", NOW), "local")))
    assert IDS[1].encode() in written or suffix == "parquet"
    if suffix == "jsonl":
        assert [one.erased.why for one in read_cards(written.splitlines(), "export") if one.erased] == ["request 17"]
    if suffix == "csv":
        row = next(csv.DictReader(io.StringIO(written.decode())))
        assert row["erased_at"] > "2026" and (row["answer"], row["question"], row["checkpoint"]) == ("", "", "tiny/120")


# --- pretended erasures -----------------------------------------------------------------------------------------------------


def forged(store, *statements) -> None:
    with store.writing() as connection:
        for statement in statements:
            connection.execute(statement)


BLANK = job_cards.update().where(job_cards.c.rollout_id == IDS[0], job_cards.c.tenant == "local")
FAKE = {"rollout_id": IDS[0], "tenant": "local", "by": "x", "why": "y", "at": NOW}


def test_words_that_went_without_an_erasure_are_missed_whatever_row_pretends_to_be_one(filled):
    forged(filled, BLANK.values(answer="", salt=None))
    assert findings(filled) == {("removed", "card", IDS[0])}
    forged(filled, sa.insert(erasures).values(FAKE | {"entry": 1}))
    assert findings(filled) == {("removed", "card", IDS[0]), ("inserted", "erasure", IDS[0])}


def test_an_erasure_that_was_made_another_s_or_is_gone_excuses_nothing(filled):
    erase(filled, "local", [IDS[2]], "dpo", "request 1")
    forged(filled, erasures.update().values(rollout_id=IDS[0]), BLANK.values(answer="", salt=None))
    assert {("removed", "erasure", IDS[2]), ("removed", "card", IDS[0]), ("inserted", "erasure", IDS[0])} <= findings(filled)
    forged(filled, erasures.delete())
    assert {("removed", "erasure", IDS[2]), ("removed", "card", IDS[2]), ("removed", "grade", IDS[2])} <= findings(filled)


def test_an_erasure_that_was_changed_excuses_nothing(filled):
    erase(filled, "local", [IDS[2]], "dpo", "request 1")
    forged(filled, erasures.update().values(why="another reason"))
    assert {("edited", "erasure", IDS[2]), ("removed", "card", IDS[2]), ("removed", "grade", IDS[2])} <= findings(filled)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (job_cards.update().values(answer="It was 14%."), "card"),
        (job_cards.update().values(salt=bytes(16)), "card"),
        (card_steps.update().where(card_steps.c.position == 0).values(said="It was 14%."), "card"),
        (grades.update().values(parts={"found": "14%"}), "grade"),
    ],
)
def test_words_that_were_put_where_they_had_been_erased_are_found(filled, change, kind):
    erase(filled, "local", [IDS[0]], "dpo", "request 1")
    table = change.table
    forged(filled, change.where(table.c.rollout_id == IDS[0], table.c.tenant == "local"))
    assert findings(filled) == {("not erased", kind, IDS[0])}


def test_an_entry_that_says_erased_while_the_words_stand_is_found(filled):
    with filled.writing() as connection:
        whole = dict(connection.execute(sa.select(job_cards).where(job_cards.c.rollout_id == IDS[2])).mappings().one())
    erase(filled, "local", [IDS[2]], "dpo", "request 1")
    forged(filled, job_cards.update().where(job_cards.c.rollout_id == IDS[2]).values(whole))
    assert ("not erased", "card", IDS[2]) in findings(filled)


def test_facts_of_an_erased_card_are_checked_as_before(filled):
    erase(filled, "local", [IDS[0]], "dpo", "request 1")
    forged(
        filled, BLANK.values(checkpoint="another"), card_steps.delete().where(card_steps.c.rollout_id == IDS[2], card_steps.c.position == 5)
    )
    assert findings(filled) == {("edited", "card", IDS[0]), ("edited", "card", IDS[2])}
    with filled.reading() as connection:
        assert stored_cards(connection, [IDS[0]], "local")[0].erased
        assert connection.scalar(sa.select(sa.func.count()).where(entries.c.kind == "erasure")) == 1
