"""A reviewer at the command line: what waits, a verdict, a change request that an engineer can act on, a view, a seal."""

from __future__ import annotations

import datetime as dt
import json
import runpy
from pathlib import Path

import pytest

from agent_rft.cli import main
from agent_rft.contracts.grades import Grade, GraderRef
from observability.accesses import reading
from observability.cards import cards_by_id
from observability.ingest import insert_cards
from observability.records import RecordedCard
from observability.store import open_store

ROOT = Path(__file__).resolve().parents[1]
make_card = runpy.run_path(str(ROOT / "tests/observability/sample_cards.py"))["make_card"]
IDS = [f"0198c2{number:02d}-0000-7000-8000-000000000000" for number in range(3)]
LOW = Grade(GraderRef("numeric", "1", "h"), 0.25, False)


@pytest.fixture
def store(tmp_path: Path):
    store = open_store(f"sqlite:///{tmp_path}/cards.db")
    for number, one in enumerate(IDS):
        card = make_card(one, kind="production", tenant="default", **({"grade": LOW} if number == 0 else {}))
        insert_cards(store, [RecordedCard(card, dt.datetime(2026, 11, 21, tzinfo=dt.UTC))])
    yield store
    store.close()


def test_from_the_queue_to_a_change_request_that_is_done(rft, store, tmp_path):
    code, told = rft("queue", "fill", "--share", "production=0", "--at-least", "0")
    assert code == 2 and "share of production: 0 is less (0.01 or more)" in told and "at_least: 0 is less (5 or more)" in told
    code, told = rft("queue", "fill", "--below", "nan")
    assert code == 2 and "below: it is no number" in told
    code, told = rft("queue", "fill", "--share", "production=0.02")  # entry 10 is its own line in the access log
    assert (code, told) == (0, "review queue: 3 audit, 1 low_grade of entries 1 to 10; 4 wait (audit 3, low_grade 1), 0 done\n")
    code, told = rft("queue", "list", "--reason", "low_grade")
    assert code == 0 and IDS[0] in told and "numeric@1 gave 0.25, which is below 0.5" in told and IDS[1] not in told
    code, told = rft("queue", "flag", IDS[1], "0198c202", "--name", "length", "--why", "512 tokens of one word")
    assert (code, told) == (0, "2 of 2 cards are new in the review queue as flag:length\n")
    assert rft("card", "list", "flag:length")[1].startswith("2 cards")
    code, told = rft("review", "add", "0198c200", "coach", "--note", "13.4% is of 2024", "--change", "dataset", "--step", "0")
    assert code == 0 and "change request 1: dataset, row numerical-0412" in told
    assert rft("queue", "list")[1].startswith("4 wait (audit 2, flag:length 2), 2 done")
    code, told = rft("card", "list", "review:coach", "change:dataset")
    assert code == 0 and told.startswith("1 cards") and IDS[0] in told
    told = rft("card", "show", IDS[0])[1]
    assert "state reviewed" in told and "coach of step 0, by " in told and ": 13.4% is of 2024" in told and "low_grade: numeric@1" in told
    assert rft("change", "export", "--out", str(tmp_path / "rows.jsonl")) == (
        0,
        f"{tmp_path}/rows.jsonl: 1 open change requests of the dataset\n",
    )
    line = json.loads((tmp_path / "rows.jsonl").read_text())
    assert line["wanted"] == "13.4% is of 2024" and line["row"]["id"] == "numerical-0412" and line["row"]["reference_answer"] == "13.4%"
    assert [message["role"] for message in line["row"]["messages"]] == ["system", "user"]
    assert rft("change", "export", "--out", str(tmp_path / "rows.jsonl"))[0] == 2
    assert rft("change", "settle", "1", "done", "--how", "row numerical-0413") == (0, "change request 1 is done\n")
    assert "0 change requests that are open" in rft("change", "list")[1] and "row numerical-0413" in rft("change", "list", "--every")[1]
    assert [one.action for one in reading(store, "default", rollout_id=IDS[0])] == ["export", "read", "search", "review"]
    assert rft("ledger", "verify")[0] == 0


def test_a_sealed_card_is_refused_in_one_line_and_regrading_leaves_it_out(rft, store, capfd):
    assert rft("review", "seal", IDS[1], "--why", "audited") == (0, f"{IDS[1]} is sealed: nothing more is said of it\n")
    code, told = rft("review", "add", IDS[1], "accept")
    assert code == 2 and told.startswith(f"error: {IDS[1]} is sealed") and "Traceback" not in told
    assert "sealed, by " in rft("card", "show", IDS[1])[1]
    url, cards = f"store.url={store.engine.url}", [word for one in IDS[:2] for word in ("--card", one)]
    assert main(["regrade", "--grader", "numeric@1", *cards, "research_tiny", url]) == 0
    assert "1 of 2 cards are sealed and keep the grades that they have" in capfd.readouterr().out
    assert [len(one.grades) for one in cards_by_id(store, IDS[:2])] == [2, 1]
    assert main(["regrade", "--grader", "numeric@1", *cards[2:], "research_tiny", url]) == 2
    assert f"error: {IDS[1]} is sealed" in capfd.readouterr().err


def test_a_view_stands_for_its_query_and_a_mistake_in_it_is_told_when_it_is_saved(rft):
    assert rft("view", "save", "low", "grade<0.5")[0] == 0
    code, told = rft("card", "list", "@low")
    assert code == 0 and told.startswith("1 cards") and IDS[0] in told
    code, told = rft("view", "save", "lower", "grade<low")
    assert code == 2 and "character 1: 'low' is no number" in told
    code, told = rft("card", "list", "@lo")
    assert code == 2 and "did you mean 'low'?" in told
    assert "grade<0.5" in rft("view", "list")[1]
    assert rft("view", "remove", "@low")[0] == 0 and rft("view", "remove", "low")[0] == 2


def test_what_cannot_be_done_is_said_with_the_cure(rft):
    assert "did you mean 'accept'?" in rft("review", "add", IDS[0], "acept")[1]
    assert "write what should have been done" in rft("review", "add", IDS[0], "coach")[1]
    assert "no card's id begins with" in rft("review", "add", "ffff", "accept")[1]
    assert "--share production=0.01" in rft("queue", "fill", "--share", "production")[1]
    assert "there is no change request 7" in rft("change", "settle", "7", "done")[1]
    assert rft("card", "list", "--tenant", "other")[1].startswith("0 cards")
