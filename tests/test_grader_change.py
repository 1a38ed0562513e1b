"""A changed tolerance on its whole way, by the command line alone: from its JSON to being what trains, and last week's run seen
through it."""

from __future__ import annotations

import datetime as dt
import json
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent_rft.cli import main
from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.jobcards import Versions
from agent_rft.contracts.rollouts import Ending, Limits, Rollout, Turn
from agent_rft.contracts.rows import Row
from agent_rft.graders.apply import grade_rollout
from agent_rft.graders.numeric import NumericGrader
from agent_rft.rollouts.cards import card_of
from observability.cards import card_ids, cards_by_id, count_cards
from observability.graders import add_label
from observability.ingest import StoreRecorder
from observability.records import DatedGrade
from observability.store import open_store

ROOT = Path(__file__).resolve().parents[1]
STORE = "sqlite:///runs/cards.db"
SPEC = {"type": "numeric", "name": "numeric", "tolerance": 0.02}
CASES = """\
{"item": {"reference_answer": "$842M"}, "sample": {"output_text": "$850M"}, "reward": 0.5, "why": "8 off, 2% of 842 is 16.84"}
{"item": {"reference_answer": "$842M"}, "sample": {"output_text": "$860M"}, "reward": 0, "why": "18 off"}
{"item": {"reference_answer": "soon"}, "sample": {"output_text": "$860M"}, "errors": ["invalid_variable_error"]}
"""
TRIED = [
    ("a", "train", ["$842M", "$850M", "$700M", "$842M"]),  # numeric@1: 1, 0, 0, 1; with 2% allowed: 1, 0.5, 0, 1
    ("b", "train", ["$850M", "$860M", "$842M", "$600M"]),  # 0, 0, 1, 0; then 0.5, 0, 1, 0
    ("c", "eval", ["$842M", "$600M", "$850M", "$842M"]),  # 1, 0, 0, 1; then 1, 0, 0.5, 1
]
SMALL = (
    "task.train=train.jsonl task.val=val.jsonl prior.prompts=2 prior.rollouts=2 prior.override=true algorithm.batch_size=2 "
    "algorithm.group_size=2 algorithm.max_steps=1 evaluation.samples_per_row=1 evaluation.every=100"
).split()
Rft = Callable[..., tuple[int, str]]


@pytest.fixture
def rft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Rft]:
    """The command line in a folder of its own: its exit code, and what it said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("data", "models"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("train", "val"):
        rows = (ROOT / f"data/research/{name}.jsonl").read_text().splitlines()[:2]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    (tmp_path / "numeric2.json").write_text(json.dumps(SPEC))
    (tmp_path / "cases.jsonl").write_text(CASES)

    def run(*words: str) -> tuple[int, str]:
        code = main(list(words))
        said = capsys.readouterr()
        return code, " ".join((said.out + said.err).split())

    stop = signal.getsignal(signal.SIGTERM)
    yield run
    signal.signal(signal.SIGTERM, stop)


def record_last_week() -> None:
    """A run as training leaves it: every try graded by numeric@1 as it was made, one spoilt by a tool."""
    week_ago = dt.datetime.now(dt.UTC) - dt.timedelta(days=7)
    store, number = open_store(STORE), 0
    with StoreRecorder(store) as recorder:
        for step, (name, kind, answers) in enumerate(TRIED, 1):
            row = Row(f"row-{name}", f"What was the revenue of company {name}?", "$842M", extra={"desk": "north"})
            for sample, answer in enumerate([*answers, ""] if kind == "eval" else answers):
                ending = Ending.ANSWERED if answer else Ending.INFRA_FAILED
                at = (week_ago + dt.timedelta(seconds=number)).isoformat()
                rollout = Rollout(
                    f"id-{number}", row.opening(), (), Limits(), turns=[Turn(answer)], ending=ending, answer=answer, started_at=at
                )
                graded = GradedRollout(row, sample, rollout, grade_rollout(row, rollout, NumericGrader()))
                versions = Versions(code="", checkpoint="")
                recorder.record(card_of(graded, kind=kind, run_id="lastweek", versions=versions, tenant="local", step=step))
                number += 1
    store.close()


def label_last_week() -> None:
    """Eve's word on each: right where the figure is the reference, but for the last, which she holds against its wording."""
    store = open_store(STORE)
    answers = [answer for _, _, given in TRIED for answer in given]
    for number, answer in enumerate(answers):
        add_label(store, "eve", rollout_id=f"id-{number}", label="pass" if answer == "$842M" and number != 11 else "fail")
    store.close()


def grades_of_last_week() -> list[tuple[DatedGrade, ...]]:
    store = open_store(STORE)
    found = [stored.grades for stored in cards_by_id(store, card_ids(store, "lastweek"))]
    store.close()
    return found


def test_a_changed_tolerance_from_its_json_to_what_trains(rft: Rft):
    record_last_week()
    label_last_week()
    as_it_was = grades_of_last_week()

    code, said = rft("grader", "register", "numeric2.json", "--by", "anna")
    assert code == 0 and "numeric@2 is registered, hash " in said
    code, said = rft("grader", "activate", "numeric@2", "--by", "anna")
    assert code == 2
    for missing in ("the cases report", "the regrade report", "the adversarial report", "the approval of a second person, other than anna"):
        assert missing in said
    code, said = rft("train", *SMALL, "grader.name=numeric@2", "run.id=early")
    assert code == 2 and "numeric@2 is registered, and not active" in said

    the_reports_are_read(rft)
    nobody_approves_of_their_own(rft)
    assert rft("grader", "approve", "numeric@2", "--by", "ben")[0] == 0
    code, said = rft("grader", "activate", "numeric@2", "--by", "ben")
    assert code == 0 and f"numeric@2 is active now, in place of numeric@1#{NumericGrader().ref.hash}" in said
    assert grades_of_last_week() == as_it_was, "to look adds no grade"

    last_week_is_seen_through_it(rft, as_it_was)
    it_trains_and_the_one_before_does_not(rft)


def the_reports_are_read(rft: Rft) -> None:
    """Twelve rewards: seven 0 and five 1 before, three of the 0 become 0.5.

    Ranks before: 4 and 10, after: 2.5, 6 and 10; about their mean 6.5 that is 4 x 10 + 3 x 1.25 + 5 x 12.25 = 105 over the root of
    (7 x 6.25 + 5 x 12.25 = 105) x (4 x 16 + 3 x 0.25 + 5 x 12.25 = 126): 0.9129. Of 66 pairs 35 differ before and 47 after, all 35
    in the same order: 35 / root(35 x 47) = 0.8630.

    Passed: five with the grader, four with eve, and her four are among the five. Agreed 11 of 12, by chance (5 x 4 + 7 x 8) / 144 =
    76 / 144: kappa (132 - 76) / (144 - 76) = 0.8235.
    """
    code, said = rft("grader", "check", "numeric@2", "--cases", "cases.jsonl", "--run", "lastweek", "--labels")
    assert code == 0
    assert "12 of 12 rollouts scored by both; rank correlation 0.913 (Spearman), 0.863 (Kendall)" in said
    assert "cases passes 3 of 3 cases right" in said
    assert "regrade passes 3 of 12 rollouts change, rank correlation 0.91" in said
    assert "3 cases of cases.jsonl, sha256 " in said and "12 rollouts of run lastweek, sha256 of their ids " in said
    assert "adversarial passes 7 kinds of answers on 3 rows earn nothing" in said
    assert "kappa passes kappa 0.82 (95%:" in said and "on 12 rollouts" in said
    assert "warning" not in said, "the cards keep what their rows held"
    assert said.endswith("missing before it can be active: the approval of a second person, other than anna")


def nobody_approves_of_their_own(rft: Rft) -> None:
    code, said = rft("grader", "activate", "numeric@2", "--by", "anna")
    assert code == 2 and "cannot be activated; missing: the approval of a second person, other than anna" in said
    code, said = rft("grader", "approve", "numeric@2", "--by", "Anna ")
    assert code == 2 and "registered numeric@2 and cannot approve it too" in said
    code, said = rft("grader", "activate", "numeric@2", "--by", "ben")
    assert code == 2 and "missing: the approval of a second person" in said


def last_week_is_seen_through_it(rft: Rft, as_it_was: list[tuple[DatedGrade, ...]]) -> None:
    """Mean 5 / 12 before and 6.5 / 12 after; in training 3 / 8 and 4 / 8, in evaluation 2 / 4 and 2.5 / 4.

    Group b: before 0, 0, 1, 0 with mean 0.25 and deviation 0.5, so -0.4999, -0.4999, 1.4997, -0.4999; after 0.5, 0, 1, 0 with
    0.375 and 0.47871, so 0.2611, -0.7832, 1.3053, -0.7832: one turns its sign, shifts 0.7610, 0.2833, 0.1944, 0.2833. Group a:
    +-0.8659 becomes 0.7832, -0.2611, -1.3053, 0.7832: shifts 0.0827, 0.6048, 0.4394, 0.0827. Mean of the eight: 0.3415.
    """
    code, said = rft("regrade", "--run", "lastweek", "--grader", "numeric@2")
    assert code == 0
    assert "13 cards: 12 grades of numeric@2 added, 0 had one, 1 have nothing to grade" in said
    assert "all 12 0.417 0.542 41.7% 41.7%" in said
    assert "eval 4 0.500 0.625 50.0% 50.0%" in said and "train 8 0.375 0.500 37.5% 37.5%" in said
    flips = said.partition("3 rollouts change rollout change before after")[2].partition("training, within")[0]
    assert flips.strip(" ─") == "id-1 other reward 0.000 0.500 id-4 other reward 0.000 0.500 id-10 other reward 0.000 0.500"
    assert "within its 2 groups: 1 rollouts would be pushed the other way, advantages shift by 0.341 on average" in said

    after = grades_of_last_week()
    assert [now[:-1] if before else now for now, before in zip(after, as_it_was, strict=True)] == as_it_was
    added = [(now[-1].grade.grader.version, now[-1].grade.reward) for now in after if now]
    assert added == [("2", reward) for reward in (1, 0.5, 0, 1, 0.5, 0, 1, 0, 1, 0, 0.5, 1)]
    assert "0 grades of numeric@2 added, 12 had one" in rft("regrade", "--run", "lastweek", "--grader", "numeric@2")[1]


def it_trains_and_the_one_before_does_not(rft: Rft) -> None:
    code, said = rft("train", *SMALL, "run.id=plain")
    assert code == 2
    assert f"numeric@1#{NumericGrader().ref.hash} ships with the code, but numeric@2#" in said and "is active in its place" in said
    assert "grader.name=numeric@2 takes the active one" in said
    code, said = rft("train", *SMALL, "grader.name=numeric@2", "run.id=next")
    assert code == 0, said
    ref = NumericGrader(tolerance=0.02).ref
    store = open_store(STORE)
    assert count_cards(store, "plain") == count_cards(store, "early") == 0
    cards = [stored.card for stored in cards_by_id(store, card_ids(store, "next"))]
    assert Counter(one.kind for one in cards)["train"] == 4  # one step of 2 rows, each tried twice
    assert {one.versions.grader for one in cards} == {f"numeric@2#{ref.hash}"}
    given = [one.grade.grader for one in cards if one.grade]
    assert given and {(one.name, one.version, one.hash) for one in given} == {("numeric", "2", ref.hash)}
    store.close()
