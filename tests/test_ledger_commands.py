"""A reviewer's commands: what was changed behind the store's back is named, and a case can be checked by a stranger."""

from __future__ import annotations

import datetime as dt
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from agent_rft.commands.parts import console
from agent_rft.contracts.grades import Grade, GraderRef
from observability.accesses import reading
from observability.graders import append_grades
from observability.ingest import insert_cards
from observability.records import RecordedCard
from observability.store import Store, open_store
from observability.tables import grades, job_cards, ledger

ROOT = Path(__file__).resolve().parents[1]
make_card = runpy.run_path(str(ROOT / "tests/observability/sample_cards.py"))["make_card"]
IDS = [f"0198c2{number:02d}-0000-7000-8000-000000000000" for number in range(6)]
Said = tuple[int, str]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Six cards: four of one run, the others production's; one graded again."""
    store = open_store(f"sqlite:///{tmp_path}/cards.db")
    minute = dt.datetime(2026, 11, 21, 4, 0, tzinfo=dt.UTC)
    for number, one in enumerate(IDS):
        started = (minute + dt.timedelta(minutes=number)).isoformat()
        kind, run = ("eval", "mine") if number < 4 else ("production", "live")
        card = make_card(one, kind=kind, run_id=run, tenant="default", started_at=started)
        insert_cards(store, [RecordedCard(card, minute)])
    append_grades(store, [(IDS[0], Grade(GraderRef("numeric", "2", "beef"), 0.0, False))])
    return store


def changed(store: Store, *statements: sa.Executable) -> None:
    with store.writing() as connection:
        for statement in statements:
            connection.execute(statement)


def test_a_store_as_it_was_recorded_verifies_and_says_what_is_signed(rft):
    # six cards with an advantage and a grade each, and one grade more
    assert rft("ledger", "verify") == (
        0, "tenant default: 19 entries, all as recorded; no root was signed yet (`rft ledger sign`): a cut tail would not show\n"
    )  # fmt: skip
    code, told = rft("ledger", "sign")
    assert code == 0 and "signed 19 entries" in told
    assert rft("ledger", "sign") == (0, "nothing was entered since the newest roots\n")
    assert rft("ledger", "verify") == (0, "tenant default: 19 entries, all as recorded; the newest signed root covers 19\n")


def test_a_changed_answer_is_named_and_ends_with_1(rft, store):
    changed(store, job_cards.update().where(job_cards.c.rollout_id == IDS[2]).values(answer="It was 14%."))
    code, told = rft("ledger", "verify")
    assert code == 1
    assert f"card {IDS[2]}: edited: its words are not those that were recorded" in " ".join(told.split())
    assert "1 findings" in told and "error: 1 things are not as they were recorded" in told


def test_a_cut_tail_shows_by_the_root_outside_and_nothing_more_is_signed(rft, store):
    assert rft("ledger", "sign")[0] == 0
    changed(store, grades.delete().where(grades.c.entry == 19), ledger.delete().where(ledger.c.seq == 19))
    code, told = rft("ledger", "verify")
    assert code == 1 and "tail cut" in told
    append_grades(store, [(IDS[1], Grade(GraderRef("numeric", "2", "beef"), 1.0, True))])  # another entry takes the number
    code, told = rft("ledger", "sign")
    assert (code, told) == (0, "nothing was entered since the newest roots\n")
    append_grades(store, [(IDS[2], Grade(GraderRef("numeric", "2", "beef"), 1.0, True))])
    assert rft("ledger", "verify")[0] == 1


def test_a_chain_that_was_written_anew_is_found_by_the_root_outside(rft, store, tmp_path):
    assert rft("ledger", "sign")[0] == 0
    store.close()
    for file in tmp_path.glob("cards.db*"):
        file.unlink()
    forged = open_store(f"sqlite:///{tmp_path}/cards.db")
    for one in IDS:
        insert_cards(forged, [RecordedCard(make_card(one, tenant="default"), dt.datetime.now(dt.UTC))])
    append_grades(forged, [(IDS[0], Grade(GraderRef("numeric", "2", "beef"), 1.0, True))])
    code, told = rft("ledger", "verify")
    assert code == 1 and "chain replaced" in told
    append_grades(forged, [(IDS[0], Grade(GraderRef("numeric", "3", "f00d"), 1.0, True))])
    code, told = rft("ledger", "sign")
    assert code == 1 and "does not go on from its newest signed root" in told


def test_a_forged_root_counts_for_nothing(rft, tmp_path):
    assert rft("ledger", "sign")[0] == 0
    file = tmp_path / "cards-ledger/roots.jsonl"
    file.write_text(file.read_text().replace('"size":19', '"size":18'))
    code, told = rft("ledger", "verify")
    assert code == 1 and "its signature is not one of key" in told


def test_a_case_is_checked_by_a_stranger_with_the_script_alone(rft, tmp_path):
    code, told = rft("ledger", "evidence", "run:mine", "grade<0.5", "--case", "c1", "--by", "ann", "--out", str(tmp_path / "c1.zip"))
    assert code == 0 and "1 cards, 5 entries" in told  # the card, its advantage, two grades, and that this was made
    (tmp_path / "keys.json").write_text(rft("ledger", "keys")[1])
    alone = tmp_path / "elsewhere"
    alone.mkdir()
    shutil.copy(ROOT / "observability/verify_evidence.py", alone)

    def checked(key: str) -> Said:
        command = [sys.executable, "-I", "verify_evidence.py", str(tmp_path / "c1.zip"), "--key", key]
        done = subprocess.run(command, cwd=alone, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    code, told = checked(str(tmp_path / "keys.json"))
    assert code == 0 and re.search(rf"card {IDS[0]} .*: as recorded; .*2 grades", told), told
    assert re.search(r"evidence by \w+@cli on .* \(entry 20\)", told)  # after the 19 of what was recorded
    other = json.loads((tmp_path / "keys.json").read_text())
    other[0]["public"] = "11" * 32
    (tmp_path / "other.json").write_text(json.dumps(other))
    assert checked(str(tmp_path / "other.json"))[0] == 1


def test_evidence_of_a_changed_card_is_refused(rft, store, tmp_path):
    changed(store, job_cards.update().where(job_cards.c.rollout_id == IDS[2]).values(answer="It was 14%."))
    code, told = rft("ledger", "evidence", "run:mine", "--case", "c1", "--by", "ann", "--out", str(tmp_path / "c1.zip"))
    assert code == 1 and "this case is not as it was recorded" in told
    assert not (tmp_path / "c1.zip").exists()


def test_an_auditor_needs_no_private_key(rft, tmp_path, monkeypatch):
    assert rft("ledger", "sign")[0] == 0
    monkeypatch.setattr(console, "_width", 40)
    copy = tmp_path / "auditor"
    copy.mkdir()
    (copy / "keys.json").write_text(rft("ledger", "keys")[1])
    (copy / "keys.json").chmod(0o644)
    shutil.copy(tmp_path / "cards-ledger/roots.jsonl", copy)
    code, told = rft("ledger", "verify", "--folder", str(copy))
    assert code == 0 and "the newest signed root covers 19" in told
    assert "private" not in (copy / "keys.json").read_text()
    code, told = rft("ledger", "sign", "--folder", str(copy))
    assert code == 2 and "has no private key" in told


def test_after_a_clock_stepped_back_signing_and_evidence_go_on(rft, store, tmp_path, monkeypatch):
    right = "2026-11-22T10:00:00.000000+00:00"
    monkeypatch.setattr("agent_rft.commands.ledger._now", lambda: right)
    assert rft("ledger", "sign")[0] == 0
    append_grades(store, [(IDS[1], Grade(GraderRef("numeric", "2", "beef"), 1.0, True))])
    monkeypatch.setattr("agent_rft.commands.ledger._now", lambda: right.replace("10", "09", 1))
    assert "signed 20 entries" in rft("ledger", "sign")[1]
    early = tmp_path / "early.zip"
    assert rft("ledger", "evidence", "run:mine", "--case", "c0", "--by", "ann", "--out", str(early))[0] == 0
    monkeypatch.setattr("agent_rft.commands.ledger._now", lambda: right.replace("10", "11", 1))
    assert rft("ledger", "verify")[0] == 0
    append_grades(store, [(IDS[2], Grade(GraderRef("numeric", "2", "beef"), 1.0, True))])
    assert "signed 22 entries" in rft("ledger", "sign")[1]  # the evidence left one of its own
    (tmp_path / "keys.json").write_text(rft("ledger", "keys")[1])
    late = tmp_path / "late.zip"
    assert rft("ledger", "evidence", "run:mine", "--case", "c1", "--by", "ann", "--out", str(late))[0] == 0
    for bundle in (early, late):
        command = [sys.executable, "-I", str(ROOT / "observability/verify_evidence.py"), str(bundle), "--key", str(tmp_path / "keys.json")]
        assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_a_key_is_not_rotated_before_the_last_root_that_it_signed(rft, monkeypatch):
    now = "2026-11-22T{}:00:00.000000+00:00".format
    for hour in ("10", "12"):  # made at 10, signed at 12
        monkeypatch.setattr("agent_rft.commands.ledger._now", lambda hour=hour: now(hour))
        assert rft("ledger", "keys" if hour == "10" else "sign")[0] == 0
    monkeypatch.setattr("agent_rft.commands.ledger._now", lambda: now("11"))
    code, told = rft("ledger", "keys", "--rotate")
    assert code == 2 and f"was in use on {now('12')}, which is not before {now('11')}" in told
    assert rft("ledger", "verify")[0] == 0


def test_a_lost_file_of_roots_is_told_and_nothing_is_signed(rft, store, tmp_path):
    assert rft("ledger", "sign")[0] == 0
    changed(store, grades.delete().where(grades.c.entry == 19), ledger.delete().where(ledger.c.seq == 19))
    (tmp_path / "cards-ledger").rename(tmp_path / "elsewhere")
    code, told = rft("ledger", "verify")
    assert code == 1 and "the store has a root of default over 19 entries" in told and "roots.jsonl lacks" in told
    assert rft("ledger", "verify", "--tenant", "default")[0] == 1
    code, told = rft("ledger", "sign")
    assert code == 1 and "is not signed" in told and "cure: bring back roots.jsonl" in told
    code, told = rft("ledger", "verify", "--folder", str(tmp_path / "elsewhere"))
    assert code == 1 and "tail cut" in told and "lacks" not in told


def test_half_a_line_of_the_roots_is_told_and_is_no_fault(rft, store, tmp_path):
    assert rft("ledger", "sign")[0] == 0
    with (tmp_path / "cards-ledger/roots.jsonl").open("a") as file:
        file.write('{"tenant":"defa')
    code, told = rft("ledger", "verify")
    assert code == 0 and "ends in half a line" in told and "all as recorded" in told
    append_grades(store, [(IDS[1], Grade(GraderRef("numeric", "2", "beef"), 1.0, True))])
    assert rft("ledger", "sign")[0] == 0
    assert "half a line" not in rft("ledger", "verify")[1]


def test_a_mistyped_tenant_or_folder_is_never_all_well(rft, tmp_path):
    assert rft("ledger", "sign")[0] == 0
    code, told = rft("ledger", "verify", "--tenant", "defualt")
    assert code == 2 and "has no tenant defualt" in told and "did you mean 'default'?" in told
    query = ("evidence", "run:mine", "--case", "c", "--by", "ann", "--out", str(tmp_path / "c.zip"))
    for words in (("verify",), ("sign",), ("keys",), ("keys", "--rotate"), query):
        for folder in (str(tmp_path / "typo"), "/etc/passwd", "/etc/passwd/x"):
            code, told = rft("ledger", *words, "--folder", folder)
            assert code == 2 and f"--folder {folder}: there is no such folder" in told
    assert not (tmp_path / "typo").exists()


@pytest.mark.parametrize("words", [("sign",), ("keys",)])
def test_a_folder_that_takes_no_file_is_one_clear_error(rft, words):
    code, told = rft("ledger", *words, "--folder", "/proc")
    assert code == 2 and "the signing keys /proc/keys.json cannot be written" in told


@pytest.mark.parametrize("out", ["/proc/x.zip", "/dev/full/x.zip"])
def test_evidence_that_cannot_be_written_is_one_clear_error(rft, out):
    code, told = rft("ledger", "evidence", "run:mine", "--case", "c", "--by", "ann", "--out", out)
    assert code == 2 and f"{out} cannot be written" in told


def test_evidence_is_there_whole_or_not_at_all(rft, tmp_path, monkeypatch):
    def stops(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", stops)
    code, told = rft("ledger", "evidence", "run:mine", "--case", "c", "--by", "ann", "--out", str(tmp_path / "c.zip"))
    assert code == 2 and "c.zip cannot be written: No space left on device" in told
    assert list(tmp_path.glob("*.zip*")) == [] and list(tmp_path.glob(".c*")) == []


# --- looking ------------------------------------------------------------------------------------------------------------


def shown(told: str) -> list[str]:
    return re.findall(r"│ (0198c2\d\d)", told)


def test_cards_are_asked_for_by_what_they_are_noted_and_pages_go_on_where_the_last_ended(rft, store):
    code, told = rft("card", "list", "run:mine grade>0.5", "--limit", "2")
    assert code == 0 and told.startswith("3 cards, newest first") and shown(told) == ["0198c203", "0198c202"]
    cursor = re.search(r"--after (\S+)", told)
    assert cursor
    assert shown(rft("card", "list", "run:mine grade>0.5", "--limit", "2", "--after", cursor[1])[1]) == ["0198c201"]
    assert shown(rft("card", "list", "--run", "mine", "--kind", "eval", "grade:0")[1]) == ["0198c200"]
    assert rft("card", "list", "run:mine grade>7")[1].startswith("0 cards")
    noted = [(line.action, line.subject, line.cards) for line in reading(store, "default") if line.by.endswith("@cli")]
    asked = [("run:mine grade>7", 0), ('grade:0 run:"mine" kind:"eval"', 1), ("run:mine grade>0.5", 1), ("run:mine grade>0.5", 2)]
    assert noted == [("search", words, cards) for words, cards in asked]


@pytest.mark.parametrize("limit", ["0", "-1", "10001", "99999999999999999999", "many"])
def test_a_page_has_1_to_10000_cards(rft, capfd, limit):
    with pytest.raises(SystemExit) as ended:
        rft("card", "list", "--limit", limit)
    assert ended.value.code == 2
    assert f"{limit} is not a number from 1 to 10,000" in capfd.readouterr().err


def test_a_query_that_cannot_be_read_says_all_that_is_wrong(rft):
    code, told = rft("card", "list", "kindd:eval grade<many")
    assert code == 2 and "did you mean 'kind'" in told and "many" in told


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet", "otlp"])
def test_an_export_holds_the_cards_that_were_asked_for_and_writes_over_nothing(rft, tmp_path, suffix):
    file = tmp_path / f"live.{suffix}"
    code, told = rft("card", "export", "kind:production", "--out", str(file))
    assert code == 0 and told == f"{file}: 2 cards\n"
    if suffix != "parquet":
        assert sum(one in file.read_text() for one in IDS) == 2
    assert rft("card", "export", "kind:production", "--out", str(file))[0] != 0
    assert list(tmp_path.glob(".live*")) == []
