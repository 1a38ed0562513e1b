"""Exports: nothing of a card is lost on the way out, and nothing that a model wrote runs in a spreadsheet."""

from __future__ import annotations

import csv
import datetime as dt
import io
import itertools
import json
import sys

import msgspec
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.messages import ToolCall
from agent_rft.contracts.rollouts import Ending, ToolResult, Turn
from observability.cards import cards_by_id
from observability.exports import COLUMNS, EXPORTS, ROW_GROUP, card_line, guarded, read_cards, unguarded
from observability.ingest import insert_cards
from observability.records import DatedGrade, RecordedCard, StoredCard, without_token_ids

NOW = dt.datetime(2026, 11, 21, 4, 0, 30, tzinfo=dt.UTC)


def stored(card, *grades) -> StoredCard:
    card = without_token_ids(msgspec.structs.replace(card, grade=grades[-1] if grades else None))
    return StoredCard(card, NOW, tuple(DatedGrade(grade, NOW) for grade in grades))


def wrote(name, cards) -> bytes:
    return b"".join(EXPORTS[name].write(cards))


@pytest.fixture
def graded(make_card):
    """The sample card, graded twice."""
    return stored(make_card(), make_card().grade, Grade(GraderRef("numeric", "2", "h2"), 0.25, False))


@pytest.fixture
def bare(make_card):
    """A rollout that the infrastructure failed: no grade, no turn, no answer."""
    card = make_card("card-2", step=None, advantage=None, reference_answer=None, metadata={})
    card.rollout.ending, card.rollout.turns, card.rollout.answer, card.rollout.failed_part = Ending.INFRA_FAILED, [], "", "grader"
    return stored(card)


def test_cards_of_a_store_are_the_same_after_json_lines(store, make_card):
    odd = make_card("card-2", metadata={"half": "\ud83d", "nul": "a\0b"}, grade=None)
    odd.rollout.turns[0] = Turn("x", calls=(ToolCall("1", "search", {"q": "\udc00"}),), results={"1": ToolResult("1", "o", "timeout")})
    insert_cards(store, [RecordedCard(card, NOW) for card in (make_card(), odd)])
    cards = [*cards_by_id(store, ["card-1", "card-2"])]
    lines = wrote("jsonl", cards).splitlines(keepends=True)
    assert len(lines) == 2
    assert [*read_cards(lines, "cards.jsonl")] == cards


def test_a_line_that_is_no_card_is_named(graded):
    lines = [card_line(graded), b'{"card": 1}', b"["]
    with pytest.raises(UserError, match=r"^cards\.jsonl:2: this line is no exported card: .*\n  cure: export"):
        [*read_cards(lines, "cards.jsonl")]
    with pytest.raises(UserError, match=r"^cards\.jsonl:1: "):
        [*read_cards([b"\xff"], "cards.jsonl")]


EXPECTED = {
    "rollout_id": "card-1",
    "kind": "eval",
    "tenant": "local",
    "run_id": "research_tiny-42",
    "step": "120",
    "row_id": "numerical-0412",
    "sample_index": "0",
    "started_at": "2026-11-21T04:00:12.250000+00:00",
    "recorded_at": "2026-11-21T04:00:30+00:00",
    "question": "What was the operating margin of Henderson Hotels in Q3 2025?",
    "answer": "The operating margin was 13.4%.",
    "reference_answer": '"13.4%"',
    "metadata": '{"task_type":"numerical_qa","difficulty":"medium","metric":"operating margin"}',
    "ending": "answered",
    "reason": "the model answered",
    "failed_part": "",
    "tools": "search, read",
    "tool_errors": "",
    "reward": "0.25",
    "passed": "no",
    "graded_by": "numeric@2",
    "grades": "2",
    "advantage": "0.5",
    "context_tokens": "4",
    "sampled_tokens": "5",
    "tool_calls": "2",
    "seconds": "1.93",
    "tool_seconds": "0.262",
    "code": "0.1.0",
    "checkpoint": "tiny/120",
    "dataset": "d1",
    "tool_set": "t1",
    "seed": "42",
    "erased_at": "",
}


def rows(exported: bytes) -> list[dict[str, str]]:
    return [*csv.DictReader(io.StringIO(exported.decode(), newline=""))]


def test_a_row_of_csv_is_what_the_columns_say(graded, bare):
    first, second = rows(wrote("csv", [graded, bare]))
    assert first == EXPECTED
    empty = {name for name, cell in second.items() if not cell}
    assert empty == {"step", "answer", "tools", "tool_errors", "reward", "passed", "graded_by", "advantage", "erased_at"}
    assert (second["reference_answer"], second["metadata"], second["grades"], second["failed_part"]) == ("null", "{}", "0", "grader")


def test_no_cells_text_is_a_formula_and_a_number_below_zero_stays_a_number(make_card):
    card = make_card(row_id="=1+1", run_id="\uff1dx", advantage=-0.5, metadata={})
    card.rollout.answer, card.rollout.reason, card.rollout.failed_part = '=HYPERLINK("http://x","y")', "  @SUM(1)", "'quoted"
    [row] = rows(wrote("csv", [stored(card)]))
    assert (row["row_id"], row["run_id"], row["advantage"]) == ("'=1+1", "'\uff1dx", "-0.5")
    assert (row["answer"], row["reason"], row["failed_part"]) == ('\'=HYPERLINK("http://x","y")', "'  @SUM(1)", "''quoted")


@given(st.text(st.sampled_from("=+-@\t\r' a") | st.characters()))
def test_the_guard_stops_every_formula_and_comes_off_again(text):
    assert unguarded(guarded(text)) == text
    assert guarded(text).lstrip(" ")[:1] not in {*"=+-@\t\r\n＝＋－＠"}


def test_quotes_commas_lines_and_half_a_surrogate_do_not_break_a_row(make_card):
    card = make_card()
    card.rollout.answer, card.rollout.reason = 'a "b", c\r\nd\ne', "\ud83d"
    [row] = rows(wrote("csv", [stored(card)]))
    assert (row["answer"], row["reason"]) == ('a "b", c\r\nd\ne', "?")


def test_parquet_holds_the_same_columns_typed_and_the_whole_card(graded, bare):
    table = pyarrow.parquet.read_table(io.BytesIO(wrote("parquet", [graded, bare])))
    assert table.column_names == [*EXPECTED, "card"]
    first, second = table.to_pylist()
    assert (first["started_at"], first["reward"], first["passed"]) == (dt.datetime(2026, 11, 21, 4, 0, 12, 250_000, dt.UTC), 0.25, False)
    assert (second["step"], second["reward"], second["answer"]) == (None, None, "")
    assert [*read_cards([first["card"].encode(), second["card"].encode()], "x")] == [graded, bare]
    assert table.schema.field("reward").metadata == {b"means": b"the newest grade, 0 to 1"}
    typed = {name: value for name, value in first.items() if not isinstance(value, bool | dt.datetime | None)}
    assert {name: str(value) for name, value in typed.items() if name != "card"} == {
        name: EXPECTED[name] for name in typed if name != "card"
    }


def test_parquet_takes_words_that_are_not_utf_8(make_card):
    card = make_card(metadata={"half": "\ud83d"})
    card.rollout.answer = "\udc00 x"
    [row] = pyarrow.parquet.read_table(io.BytesIO(wrote("parquet", [stored(card)]))).to_pylist()
    assert row["answer"] == "? x" and json.loads(row["metadata"]) == {"half": "\ud83d"}


@pytest.mark.parametrize("name", EXPORTS)
def test_cards_are_written_while_they_come(name, graded):
    """An endless store is exported too: the first bytes are there long before the last card."""
    taken = itertools.count()
    endless = (graded for _ in taken)
    written = b"".join(itertools.islice(EXPORTS[name].write(endless), 3))
    assert len(written) > 1000 and next(taken) <= 3 * ROW_GROUP + 1


def test_no_cards_make_a_file_without_cards():
    assert wrote("jsonl", []) == b""
    assert wrote("csv", []).decode().strip().split(",") == [*EXPECTED]
    assert pyarrow.parquet.read_table(io.BytesIO(wrote("parquet", []))).num_rows == 0


def test_parquet_without_pyarrow_says_what_to_install_before_anything_is_written(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"needs pyarrow\n  cure: pip install 'agent-rft\[parquet\]'"):
        EXPORTS["parquet"].write([])


def test_every_column_says_what_it_is():
    assert [column.name for column in COLUMNS] == [*EXPECTED]
    assert all(column.means for column in COLUMNS)
