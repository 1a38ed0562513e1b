"""`rft inspect` and `rft triage`: what a person reads of a run, and what comes of it. The source documents' two regressions among it."""

from __future__ import annotations

import datetime as dt
import json
import re
import runpy
import shlex
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from agent_rft.cli import main
from agent_rft.commands.console import console
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.jobcards import JobCard, Versions
from agent_rft.contracts.messages import ToolCall
from agent_rft.contracts.rollouts import ToolResult, Turn
from agent_rft.datasets.rows_io import read_rows
from observability.accesses import reading
from observability.cards import card_ids, cards_by_id, count_cards
from observability.erasure import erase
from observability.graders import active_version, append_grades
from observability.ingest import insert_cards
from observability.records import RecordedCard
from observability.reviews import changes, reviews_of
from observability.store import open_store
from serving.inspection import looked_at

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "regressions"
STORE = "sqlite:///runs/cards.db"
make_card = runpy.run_path(str(ROOT / "tests/observability/sample_cards.py"))["make_card"]
Rft = Callable[..., tuple[int, str]]


@pytest.fixture
def rft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Rft]:
    """The command line in a folder of its own, over the store that it takes by itself: its exit code, and what it said."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")

    def run(*words: str) -> tuple[int, str]:
        code = main(list(words))
        said = capsys.readouterr()
        return code, said.out + said.err

    stop = signal.getsignal(signal.SIGTERM)
    yield run
    signal.signal(signal.SIGTERM, stop)


# --- the two regressions --------------------------------------------------------------------------------------------------


def test_two_regressions_are_found_blamed_on_the_grader_and_gone_without_a_rollout(rft: Rft):
    """Every command of the example's own README, in its order."""
    commands = [
        shlex.split(line)[1:]
        for block in re.findall(r"```sh\n(.*?)```", (EXAMPLE / "README.md").read_text(), re.DOTALL)
        for line in block.splitlines()
    ]
    assert [words[0] for words in commands] == [
        "card", "grader", "regrade", "inspect", "triage", "triage", "grader", "grader", "grader", "grader", "regrade", "inspect",
    ]  # fmt: skip
    said = list[str]()
    for words in commands:
        code, told = rft(*words)
        assert code == 0, (words, told)
        said.append(told)
    found_as_the_documents_have_them(said[3])
    blamed_on_the_grader(said[4], said[5])
    assert "5 of 5 cases right" in said[7] and "6 of 20 rollouts change" in said[7]
    assert "rows that got worse: none" in said[11] and "by filings@2#" in said[11]
    nothing_was_rolled_out_again()


def found_as_the_documents_have_them(told: str) -> None:
    """val-0117: 0 for 1, 3 calls a try for 1 (1 and 5). val-0042: a half for 1, 2 calls for 5."""
    worst = told.partition("rows that got worse, the first 2 of 2")[2]
    first, second = worst.index("1. val-0117"), worst.index("2. val-0042")
    assert "Δreward -1.00 (1.00 to 0.00), Δtools +2.0 (1.0 to 3.0)" in worst[first:second]
    assert "Δreward -0.50 (1.00 to 0.50), Δtools -3.0 (5.0 to 2.0)" in worst[second:]
    for words in ("PROMPT     What was Henderson's revenue in Q3 2024?", "REFERENCE  $842M", "answer $842 million dollars"):
        assert words in worst[first:second]
    for words in ("REFERENCE  28.7%", '→ read(path="filings/atlas-10k-2024.html")', "answer 28.7%", "answer 28.71%"):
        assert words in worst[second:]
    assert worst.index("base: reward 1.00") < worst.index("two-regressions/step-60: reward 0.00"), "the base beside it"


def blamed_on_the_grader(*told: str) -> None:
    for one in told:
        assert "the fault is the grader's; accept, by" in one
        assert "rft regrade --run two-regressions --grader filings@2" in one
        case = json.loads(next(line for line in one.splitlines() if line.startswith("  {")))
        row = next(row for row in read_rows(EXAMPLE / "rows.jsonl") if row.id == case["item"]["id"])
        assert (case["item"], case["reward"]) == (json.loads(json.dumps(row.item())), 1), "the whole row, and that the answer is right"
    cases = [json.loads(line) for line in (EXAMPLE / "cases.jsonl").read_text().splitlines()]
    printed = [json.loads(next(line for line in one.splitlines() if line.startswith("  {"))) for one in told]
    kept = [(one["item"], one["sample"], one["reward"]) for one in cases]
    assert all((one["item"], one["sample"], one["reward"]) in kept for one in printed), "they stand in the example's cases"


def nothing_was_rolled_out_again() -> None:
    """Eight rollouts changed hands: 1 and a half became a half and 1 at val-0042, 0 became 1 at val-0117."""
    with closing(open_store(STORE)) as store:
        assert count_cards(store) == 20
        active = active_version(store, "filings")
        assert active and active.ref.version == "2"
        rewards = {
            one.card.rollout_id: [(dated.grade.grader.version, dated.grade.reward) for dated in one.grades]
            for one in cards_by_id(store, card_ids(store, "two-regressions"))
        }
        triaged = [reviews_of(store, "default", one) for one in ("val-0117-tuned-1", "val-0042-tuned-1")]
    assert rewards["val-0117-tuned-1"] == rewards["val-0117-tuned-2"] == [("1", 0), ("2", 1)]
    assert rewards["val-0042-tuned-1"] == [("1", 0.5), ("2", 1)] and rewards["val-0042-base-1"] == [("1", 1), ("2", 0.5)]
    assert [len(given) for given in rewards.values()] == [2] * 20
    assert [(one.verdict, one.note.splitlines()[0]) for (one,) in triaged] == [("accept", "triage: grader")] * 2


# --- reading a run --------------------------------------------------------------------------------------------------------


def card(row: str, checkpoint: str, reward: float, *, sample: int = 0, **more: object) -> JobCard:
    name = f"{row}-{checkpoint}-{sample}"
    rollout = msgspec.structs.replace(make_card().rollout, rollout_id=name)
    given = {
        "rollout": rollout,
        "grade": Grade(GraderRef("numeric", "1", "h1"), reward, reward > 0.5),
        "step": None,
        "tenant": "default",
    } | more
    at = f"2026-11-21T04:00:{'10' if checkpoint == 'base' else '20'}+00:00"
    versions = Versions(code="c", checkpoint=checkpoint, grader="numeric@1")
    return make_card(name, run_id="r1", row_id=row, sample_index=sample, started_at=at, versions=versions, **given)


def recorded(*cards: JobCard, store: str = STORE) -> None:
    with closing(open_store(store)) as store:
        insert_cards(store, [RecordedCard(one, dt.datetime(2026, 11, 21, 4, 1, tzinfo=dt.UTC)) for one in cards])


def test_it_reads_from_a_pipe_and_what_a_model_wrote_does_nothing(rft: Rft):
    evil = "\x1b[31m13.4%\x07"
    said = msgspec.structs.replace(make_card().rollout, rollout_id="a-tuned-0", turns=[Turn(evil)], answer=evil)
    recorded(card("a", "base", 1.0), card("a", "tuned", 0.0, rollout=said), card("b", "base", 0.0), card("b", "tuned", 1.0))
    code, told = rft("inspect", "r1", "--list", "worst")
    assert code == 0 and "the first 1 of 1" in told and "answer \N{REPLACEMENT CHARACTER}[31m13.4%\N{REPLACEMENT CHARACTER}" in told
    assert "\x1b" not in told, "no colour where nobody reads it, and none of the model's"
    assert "suspiciously right" not in told, "one list was asked for"
    with closing(open_store(STORE)) as store:
        assert [one.action for one in reading(store, "default", rollout_id="a-tuned-0")] == ["inspect"]
        assert not reading(store, "default", rollout_id="b-tuned-0"), "what was not shown was not read"


def test_a_row_is_told_whether_or_not_anything_is_wrong_with_it(rft: Rft):
    recorded(card("a", "base", 1.0), card("a", "tuned", 1.0))
    code, told = rft("inspect", "r1", "--row", "a")
    assert code == 0 and "it is in none of the lists" in told and "base: reward 1.00" in told and "tuned: reward 1.00" in told


def test_a_run_that_ended_before_its_evaluation_is_read_by_its_newest_step_and_by_what_guards_flagged(rft: Rft):
    recorded(*(card(f"s{step}", f"r1/step-{step}", 1.0, kind="train", step=step) for step in (1, 2, 3)))
    assert rft("queue", "flag", "s1-r1/step-1-0", "--name", "copied_answer", "--why", "the prompt says it")[0] == 0
    assert rft("queue", "flag", "s2-r1/step-2-0", "--name", "audit", "--why", "drawn")[0] == 0
    code, told = rft("inspect", "r1")
    assert code == 0 and "run r1: 2 tries of r1/step-3, r1/step-1, by numeric@1#h1" in told
    assert "copied_answer: the prompt says it" in told and "drawn" not in told and "rows that got worse: none" in told


def test_another_grader_is_asked_for_its_opinion(rft: Rft, tmp_path: Path):
    """sample_cards' answer is a sentence: the numeric rule reads no plain number in it."""
    recorded(card("a", "base", 1.0), card("a", "tuned", 1.0))
    assert "one grader alone has scored them: --holdout NAME asks another" in rft("inspect", "r1")[1]
    (tmp_path / "second.json").write_text('{"type": "numeric", "name": "second"}')
    code, told = rft("inspect", "r1", "--list", "graders", "--holdout", "second.json")
    assert code == 0 and re.search(r"numeric@1#h1 gives 1.00, numeric@1#\w+ gives 0.00", told) and "why not one plain number" in told


def test_a_grader_that_fails_when_it_is_asked_is_shown_with_its_failure(rft: Rft, tmp_path: Path):
    recorded(card("a", "base", 1.0), card("a", "tuned", 0.0))
    source = "def grade(sample, item):\n    raise ValueError(1)"
    (tmp_path / "broken.json").write_text(json.dumps({"type": "python", "name": "broken", "source": source}))
    code, told = rft("inspect", "r1", "--list", "worst", "--holdout", "broken.json")
    assert code == 0 and "broken@1 no score" in told and "ValueError: 1" in told


def test_a_judge_is_asked_about_many_rollouts_at_once(rft: Rft):
    """A thousand rollouts of a second each would be a quarter of an hour. This one answers only where two are waiting."""

    class Judge:
        ref, waits, together = GraderRef("judge", "1", "h2"), True, threading.Barrier(2, timeout=3)

        def grade(self, item: dict[str, object], sample: dict[str, object]) -> Grade:
            self.together.wait()
            return Grade(self.ref, 1.0)

    recorded(*(card(row, side, 0.0) for row in "ab" for side in ("base", "tuned")))
    with closing(open_store(STORE)) as store:
        looked = looked_at(store, "default", "r1", None, [Judge()])
    assert [[grade.reward for grade in one.grades] for one in (*looked.base, *looked.tuned)] == [[0.0, 1.0]] * 4


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["inspect", "r11"], "did you mean 'r1'?"),
        (["inspect", "r1", "--row", "aa"], "did you mean 'a'?"),
        (["inspect", "r1", "--grader", "numeric@9"], "did you mean 'numeric@1'?"),
        (["inspect", "r1", "--tenant", "other"], "no card of run r1 is in "),
        (["inspect", "r1", "--store", "http://cards:1"], "--store URL of its database"),
        (["triage", "a-tuned-0", "grade"], "did you mean 'grader'?"),
        (["triage", "a-tuned-0", "tool"], "note: nothing says what is wrong with the tool"),
        (["triage", "zz", "model"], "no card's id begins with"),
    ],
)
def test_mistakes_are_told_with_their_cure(rft: Rft, words: list[str], told: str):
    recorded(card("a", "base", 1.0), card("a", "tuned", 0.0))
    code, said = rft(*words)
    assert code == 2 and said.startswith("error: ") and told in said and "Traceback" not in said


def test_what_was_erased_is_counted_and_not_as_if_it_had_never_been(rft: Rft):
    recorded(card("a", "base", 1.0), card("a", "tuned", 0.0), card("b", "base", 1.0), card("b", "tuned", 0.0))
    with closing(open_store(STORE)) as store:
        erase(store, "default", ["a-base-0", "a-tuned-0"], "dpo", "request 17")
    code, told = rft("inspect", "r1", "--list", "worst")
    assert code == 0 and "the words of 2 others were erased: they are in no list" in told and "1. b" in told
    code, told = rft("inspect", "r1", "--row", "a")
    assert code == 2 and "the words of every try of run r1 at row a were erased" in told


def test_a_fault_of_a_row_or_a_tool_is_asked_to_be_mended(rft: Rft):
    recorded(card("a", "base", 1.0), card("a", "tuned", 0.0))
    code, told = rft("triage", "a-tuned", "dataset", "--note", "the reference is of 2023")
    assert code == 0 and "the fault is the dataset's; accept, by" in told and "change request 1 of the dataset" in told
    code, told = rft("triage", "a-tuned", "tool", "--note", "search cuts the table off")
    assert code == 0 and "the fault is the tool's; reject, by" in told and "change request 2 of the tool" in told
    assert rft("triage", "a-tuned", "model")[1].startswith("a-tuned-0: the fault is the model's; reject, by")
    with closing(open_store(STORE)) as store:
        assert [(one.target, one.row_id) for one in changes(store, "default")] == [("dataset", "a"), ("tool", "a")]
        assert [one.action for one in reading(store, "default", rollout_id="a-tuned-0")] == ["triage"] * 3
    assert "triaged: model by " in rft("inspect", "r1", "--list", "worst")[1], "the newest word stands"
    assert rft("change", "list", "--target", "tool")[1].startswith("1 change requests")
    assert rft("ledger", "verify")[0] == 0


@pytest.mark.parametrize(
    ("first", "judges", "verdict", "right"), [(0.0, 1.0, "accept", 1), (1.0, 0.0, "reject", 0), (1.0, None, "reject", 0)]
)
def test_another_graders_later_opinion_does_not_turn_the_verdict_round(
    rft: Rft, first: float, judges: float | None, verdict: str, right: int
):
    """numeric was wrong; then a judge was asked, who says so or fails. The fault is still numeric's."""
    recorded(card("a", "base", 1.0), card("a", "tuned", first))
    judged = Grade(GraderRef("judge", "1", "h2"), judges, errors={} if judges is not None else {"other_error": "gone"})
    with closing(open_store(STORE)) as store:
        assert append_grades(store, [("a-tuned-0", judged)], "default") == 1
    told = rft("triage", "a-tuned", "grader", "--note", "the unit is missing")[1]
    assert f"the fault is the grader's; {verdict}, by" in told and "--as numeric@2" in told and f'"reward": {right}' in told


def test_what_is_printed_to_mend_a_grader_runs_as_it_is_printed_whatever_store_and_tenant(rft: Rft, tmp_path: Path):
    """The answer is right and filings@1 gave it nothing; the numeric rule takes it."""
    store, tenant = f"sqlite:///{tmp_path}/it's & elsewhere.db", "acme"
    for side, reward in (("base", 1.0), ("tuned", 0.0)):
        said = msgspec.structs.replace(make_card().rollout, rollout_id=f"a-{side}-0", answer="13.4%")
        scored = Grade(GraderRef("filings", "1", "h1"), reward, reward > 0.5)
        recorded(card("a", side, reward, tenant=tenant, rollout=said, grade=scored), store=store)
    told = rft("inspect", "r1", "--store", store, "--tenant", tenant)[1]
    [asked] = [line for line in told.splitlines() if "rft triage" in line]
    words = shlex.split(asked.partition("rft ")[2])
    for fault, note in (("dataset", "wrong"), ("grader", "it is right")):
        code, told = rft("triage", "a-tuned", fault, "--note", note, *words[words.index("--store") :])
        assert code == 0, told
        for line in re.findall(r"`rft (change list.*?)` shows", told):
            assert rft(*shlex.split(line))[1].startswith("1 change requests")
    (tmp_path / "FIXED.json").write_text('{"type": "numeric", "name": "filings"}')
    (tmp_path / "CASES.jsonl").write_text(next(line.strip() for line in told.splitlines() if line.startswith("  {")) + "\n")
    commands = [shlex.split(line)[1:] for line in told.splitlines() if line.startswith("  rft ")]
    assert [words[:2] for words in commands] == [["grader", w] for w in ("register", "check", "approve", "activate")] + [
        ["regrade", "--run"], ["inspect", "r1"],
    ]  # fmt: skip
    for words in commands:
        code, told = rft(*words)
        assert code == 0, (words, told)
    assert "by filings@2#" in told and "rows that got worse: none" in told
    assert not (tmp_path / "runs" / "cards.db").exists(), "nothing went to the store that commands take by themselves"


def test_a_wide_terminal_has_the_base_beside_it(rft: Rft, monkeypatch: pytest.MonkeyPatch):
    recorded(card("a", "base", 1.0), card("a", "tuned", 0.0))
    monkeypatch.setattr(console, "_force_terminal", True)
    monkeypatch.setattr(console, "_width", 140)
    told = rft("inspect", "r1", "--list", "worst")[1]
    assert any("base: reward 1.00" in line and "tuned: reward 0.00" in line for line in told.splitlines())


def test_a_narrow_terminal_breaks_between_words_and_goes_on_under_the_first(rft: Rft, monkeypatch: pytest.MonkeyPatch):
    recorded(card("a", "base", 1.0), card("a", "tuned", 0.0))
    monkeypatch.setattr(console, "_force_terminal", True)
    monkeypatch.setattr(console, "_width", 50)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", rft("inspect", "r1", "--list", "worst")[1]).splitlines()
    story = lines[
        next(at for at, line in enumerate(lines) if line.startswith("1. a")) + 1 : lines.index(
            "a row with nothing cut short:  rft inspect r1 --row ROW"
        )
        - 1
    ]
    assert max(map(len, story)) <= 50
    at = next(number for number, line in enumerate(story) if line.startswith("   PROMPT     "))
    assert story[at + 1].startswith(" " * 14) and story[at + 1][14] != " ", story[at : at + 2]


def test_of_one_row_nothing_is_cut_short(rft: Rft):
    """The line that decides stands last in what the tool gave, and the question is long: a list tells how much it left out."""
    table = "\n".join(f"line {number} " + "x" * 100 for number in range(9)) + "\nnet margin: 7.7%"
    answer = "y" * 300 + " end of the answer"
    turn = Turn("", calls=(ToolCall("c", "read", {"path": "p" * 300 + "/last"}),), results={"c": ToolResult("c", table)})
    said = msgspec.structs.replace(make_card().rollout, rollout_id="a-tuned-0", turns=[turn, Turn(answer)], answer=answer)
    recorded(card("a", "base", 1.0), card("a", "tuned", 0.0, rollout=said))
    short, whole = rft("inspect", "r1")[1], rft("inspect", "r1", "--row", "a")[1]
    assert (
        "… 7 more lines" in short and "net margin: 7.7%" not in short and "a row with nothing cut short:  rft inspect r1 --row ROW" in short
    )
    for words in ("\n       line 8 ", "\n       net margin: 7.7%\n", "/last", "end of the answer\n"):
        assert words in whole and words not in short
    assert "more lines" not in whole and "more characters" not in whole


def test_a_run_that_lies_elsewhere_is_named_by_its_folder(rft: Rft, tmp_path: Path):
    recorded(card("a", "base", 1.0), card("a", "tuned", 0.0))
    told = rft("inspect", f"{tmp_path}/far away/r1")[1]
    assert f"a row with nothing cut short:  rft inspect '{tmp_path}/far away/r1' --row ROW" in told


def test_words_of_a_note_without_quotes_are_no_settings(rft: Rft, capsys: pytest.CaptureFixture[str]):
    recorded(card("a", "tuned", 0.0))
    with pytest.raises(SystemExit) as ended:
        main(["triage", "a-tuned", "tool", "--note", "see", "limit=3"])
    assert ended.value.code == 2 and "unrecognized arguments: limit=3" in capsys.readouterr().err
