"""What the index gets of a card is read from few columns in few statements, and is what the whole card says."""

from __future__ import annotations

import datetime as dt

import sqlalchemy as sa

from agent_rft.contracts.messages import Message, ToolCall
from agent_rft.contracts.rollouts import ToolResult, Turn
from observability import card_words as module
from observability import words
from observability.card_words import card_words
from observability.cards import stored_cards
from observability.erasure import erase
from observability.find import page
from observability.ingest import insert_cards
from observability.query import parse
from observability.records import RecordedCard
from observability.search import behind, catch_up
from observability.tables import job_cards, search_cards
from observability.words import words_in, words_of

NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)


def put(store, *cards) -> None:
    insert_cards(store, [RecordedCard(card, NOW) for card in cards])


def test_rows_give_the_words_that_the_whole_card_gives(store, make_card):
    """Calls and results in two turns, a result told twice by one id, a long output, other scripts, numbers and nested values."""
    odd = make_card("odd", reference_answer=7.0, metadata={"a": ["x", {"b": 12}], "c": True}, item={"expected": None, "who": "Zanzibar"})
    odd.rollout.opening = (Message("user", "first"), Message("system", "Be brief."), Message("user", "\u4e00\u4e8c last"))
    answers = {"p": ToolResult("same", "old", None, 0.1), "q": ToolResult("same", "long " * 500, "failed", 0.1)}
    calls = (ToolCall("same", "read", {"path": "a/b", "pages": [1, 2.5]}),)
    odd.rollout.turns = [Turn("one", calls=calls, results=answers), Turn("", calls=calls), Turn("Stra\u00dfe tenant0123456789abcdef")]
    bare = make_card("bare", reference_answer=None, metadata={}, item=None)
    bare.rollout.opening, bare.rollout.turns = (), []
    cards = [make_card("plain"), odd, bare]
    put(store, *cards, make_card("plain", tenant="other", metadata={"note": "theirs"}))
    with store.reading() as connection:
        read = {card.rollout_id: card.words.split(" ") for card in card_words(connection, ["plain", "odd", "bare", "none"], "local")}
        whole = {one.card.rollout_id: words_of(one.card) for one in stored_cards(connection, ["plain", "odd", "bare"], "local")}
    assert read == whole and len(read) == 3


def test_a_text_is_taken_apart_once_and_cards_cost_no_statements_of_their_own(store, make_card, monkeypatch):
    """A card alone and forty alike: as many statements, and as many texts are taken apart."""
    cards = [make_card(f"card-{number:02}") for number in range(41)]
    put(store, *cards)
    taken_apart, asked = list[str](), list[str]()
    sa.event.listen(store.engine, "before_cursor_execute", lambda *told: asked.append(told[2]) if told[2].startswith("SELECT") else None)
    monkeypatch.setattr(words, "words_in", lambda text: taken_apart.append(text) or words_in(text))
    seen = list[tuple[int, int]]()
    for some in (cards[:1], cards[1:]):
        taken_apart.clear(), asked.clear()
        with store.reading() as connection:
            card_words(connection, [card.rollout_id for card in some], "local")
        assert len(taken_apart) == len(set(taken_apart)) > 5
        seen.append((len(asked), len(taken_apart)))
    assert seen[0] == seen[1] and seen[0][0] == 3  # cards, steps, blobs


def test_words_of_an_erased_card_come_back_with_no_batch_that_shares_its_texts(store, make_card):
    """Two cards had the same prompt; one was erased before it was in the index, one is recorded after."""
    prompt = (Message("user", "zanzibar shipping"),)
    first, gone, after = (make_card(name) for name in ("first", "gone", "after"))
    for card in (first, gone, after):
        card.rollout.opening = prompt
    put(store, first)
    catch_up(store, "local")
    put(store, gone)
    erase(store, "local", ["gone"], "dpo", "a request")
    put(store, after)
    catch_up(store, "local")
    assert {line.rollout_id for line in page(store, parse("zanzibar", NOW), 9, None, "local")} == {"first", "after"}
    erase(store, "local", ["first", "after"], "dpo", "a request")
    catch_up(store, "local")
    assert page(store, parse("zanzibar", NOW), 9, None, "local") == [] and behind(store) == {}


def test_of_many_cards_the_one_that_cannot_be_read_is_found_in_halves(sqlite_store, make_card, monkeypatch):
    """Of 64 alike one is spoilt: 64, twice 32, ... twice 1, where one by one would be 65 attempts."""
    put(sqlite_store, *(make_card(f"card-{number:02}") for number in range(64)))
    with sqlite_store.writing() as connection:
        connection.execute(job_cards.update().where(job_cards.c.rollout_id == "card-37").values(opening="nowhere"))
    tried = list[int]()
    really = module.card_words
    monkeypatch.setattr("observability.search.card_words", lambda *told: tried.append(len(told[1])) or really(*told))
    catch_up(sqlite_store, "local")
    with sqlite_store.reading() as connection:
        there = set(connection.scalars(sa.select(search_cards.c.rollout_id)))
    assert there == {f"card-{number:02}" for number in range(64)} - {"card-37"}
    assert len(tried) == 13


def test_words_go_in_by_rising_numbers_however_late_the_cards_came(sqlite_store, make_card):
    """FTS5 writes a part of its own for each that comes out of turn."""
    put(sqlite_store, *(make_card(f"card-{number}", started_at=f"2026-11-21T04:00:{59 - number}+00:00") for number in range(20)))
    put_in = list[int]()

    def note(_connection, _cursor, statement, rows, *_) -> None:
        if statement.startswith("INSERT INTO search_words"):
            put_in.extend(row[0] for row in rows)

    sa.event.listen(sqlite_store.engine, "before_cursor_execute", note)
    catch_up(sqlite_store, "local")
    assert len(put_in) == 20 and put_in == sorted(put_in)
