"""An officer's commands: hold, retention, erase; and what a stranger can still verify of a card whose words are gone."""

from __future__ import annotations

import datetime as dt
import json
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from observability.accesses import reading
from observability.ingest import insert_cards
from observability.records import RecordedCard
from observability.store import Store, open_store

ROOT = Path(__file__).resolve().parents[1]
make_card = runpy.run_path(str(ROOT / "tests/observability/sample_cards.py"))["make_card"]
IDS = [f"0198c2{number:02d}-0000-7000-8000-000000000000" for number in range(3)]
LONG_AGO = dt.datetime(2026, 1, 5, tzinfo=dt.UTC)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three production cards from January, of three rows; the second knows a person."""
    store = open_store(f"sqlite:///{tmp_path}/cards.db")
    for number, one in enumerate(IDS):
        card = make_card(one, kind="production", row_id=f"val-{number}", tenant="default", started_at=LONG_AGO.isoformat())
        card.rollout.answer = f"Plumbago {number} was the answer" + (", says Wilhelmina Quux." if number == 1 else ".")
        insert_cards(store, [RecordedCard(card, LONG_AGO)])
    return store


def in_the_files(folder: Path, text: str) -> bool:
    return any(text.encode() in path.read_bytes() for path in folder.glob("cards.db*"))


def test_a_person_s_words_are_shown_first_and_go_only_where_yes_is_said(rft, tmp_path):
    asked = ("erase", '"Wilhelmina Quux"', "--why", "request 17", "--by", "dpo")
    code, told = rft(*asked, "--dry-run")
    assert code == 0 and f"{IDS[1]} │ its words go" in told and "1 card of tenant default, 0 of them held" in told
    code, told = rft(*asked)
    assert code == 2 and "nothing was erased yet" in told and "--yes" in told
    assert in_the_files(tmp_path, "says Wilhelmina")
    code, told = rft(*asked, "--yes")
    assert code == 0 and "the words of 1 card are erased; facts, grades and proofs stand" in told
    assert not in_the_files(tmp_path, "says Wilhelmina") and in_the_files(tmp_path, "Plumbago 2")
    code, told = rft("card", "show", IDS[1])
    assert "by dpo: request 17" in told and "Plumbago" not in told
    assert rft(*asked, "--dry-run")[0] == 2  # nobody has these words any more
    assert "all as recorded" in rft("ledger", "verify")[1]


def test_a_hold_beats_an_erasure_and_retention_until_it_is_released(rft):
    code, told = rft("hold", "place", "case-7", "row:val-1", "plumbago", "--reason", "suit 7", "--by", "ann")
    assert code == 0 and "1 card now, and those to come, that are: row:val-1 plumbago" in told
    code, told = rft("erase", "row:val-0,val-1", "--why", "request 3", "--by", "dpo", "--yes")
    assert code == 1 and f"{IDS[1]} │ stays: held by case-7" in told and "1 card is held and stays whole" in told
    code, told = rft("retention", "set", "production", "90", "--by", "ops")
    assert code == 0 and "EU AI Act (articles 19 and 26(6))" in told
    code, told = rft("retention", "plan")
    assert "2 cards of tenant default are older than their policy lets them be; 1 of them held" in told and "2026-01" in told
    assert rft("retention", "apply", "--by", "ops")[0] == 2
    code, told = rft("retention", "apply", "--by", "ops", "--yes")
    assert code == 0 and "the words of 1 card are erased, 1 held one stays whole" in told
    assert "Plumbago 1" in rft("card", "show", IDS[1])[1] and "Plumbago" not in rft("card", "show", IDS[2])[1]
    assert rft("hold", "release", "case-7", "--reason", "settled", "--by", "ann")[0] == 0
    assert "the words of 1 card are erased, 0 held ones stay whole" in rft("retention", "apply", "--by", "ops", "--yes")[1]
    code, told = rft("hold", "list", "--all")
    assert "placed" in told and "released" in told and "case-7" not in rft("hold", "list")[1]


def test_a_view_s_name_means_its_cards_everywhere(rft, store, tmp_path):
    rft("view", "save", "suit", "row:val-1")
    assert "1 card now, and those to come, that are: row:val-1\n" in rft("hold", "place", "c", "@suit", "--reason", "r", "--by", "ann")[1]
    rft("view", "save", "suit", "row:val-1,val-2")
    code, told = rft("ledger", "evidence", "@suit", "--case", "c", "--by", "ann", "--out", str(tmp_path / "c.zip"))
    assert code == 0 and told.startswith(f"{tmp_path}/c.zip: 2 cards")
    code, told = rft("erase", "@suit", "--why", "request 3", "--by", "dpo", "--yes")
    assert code == 1 and "the words of 1 card are erased" in told and f"{IDS[1]} │ stays: held by c" in told
    noted = [(line.action, line.subject, line.cards) for line in reading(store, "default")]
    assert noted == [("erasure asked for", "request 3", 2), ("evidence", "c: @suit: row:val-1,val-2", 2)]


def test_what_is_only_shown_is_no_erasure_in_the_access_log(rft, store):
    asked = ("erase", "row:val-1", "--by", "dpo", "--why")
    assert rft(*asked, "", "--yes")[0] == 2 and reading(store, "default") == []
    assert (rft(*asked, "request 3")[0], rft(*asked, "request 3", "--dry-run")[0]) == (2, 0)
    assert [line.action for line in reading(store, "default")] == ["erasure dry run"] * 2


def test_mistakes_are_told_all_at_once_and_change_nothing(rft):
    code, told = rft("hold", "place", "no name", "grade<0.5", "--reason", "", "--by", "ann")
    assert code == 2 and all(where in told for where in ("name: ", "reason: is empty", "query: what grade says"))
    code, told = rft("retention", "set", "productoin", "0", "--by", "ops")
    assert code == 2 and "did you mean 'production'?" in told and "days: 0 is no age" in told
    assert rft("erase", "", "--why", "x", "--by", "dpo", "--yes")[0] == 2
    assert "words are kept for ever" in rft("retention", "list")[1] and rft("retention", "remove", "eval")[0] == 2


def test_a_stranger_verifies_an_erased_card_with_the_script_alone(rft, tmp_path):
    rft("ledger", "sign")
    rft("erase", "row:val-1", "--why", "request 17", "--by", "dpo", "--yes")
    bundle, keys = tmp_path / "case.zip", tmp_path / "keys.json"
    code, _ = rft("ledger", "evidence", "kind:production", "--case", "complaint", "--by", "ann", "--out", str(bundle))
    assert code == 0
    keys.write_text(rft("ledger", "keys")[1])
    script = [sys.executable, "-I", str(ROOT / "observability/verify_evidence.py"), str(bundle), "--key", str(keys)]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.strip().endswith(
        "GENUINE: every record is what was recorded, and stands in the signed ledger"
    )
    assert f"the words of card {IDS[1]}: erased on " in done.stdout and f"the words of card {IDS[0]}: erased" not in done.stdout
    with zipfile.ZipFile(bundle) as files:
        everything = b"".join(files.read(name) for name in files.namelist())
        facts = [json.loads(files.read(name)) for name in files.namelist() if name.endswith("facts.json")]
    assert b"Wilhelmina" not in everything and b"Plumbago 0" in everything
    assert [one["why"] for one in facts if one.get("rollout_id") == IDS[1] and "why" in one] == ["request 17"]
