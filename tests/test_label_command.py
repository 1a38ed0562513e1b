"""`rft label`: blind scores typed or piped, kept one by one, and the agreement that follows."""

from __future__ import annotations

import io
import runpy
import sqlite3
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from agent_rft.cli import main
from agent_rft.commands.label_desk import StoreDesk
from agent_rft.contracts.grades import Grade
from agent_rft.contracts.jobcards import Versions
from agent_rft.contracts.messages import Message
from agent_rft.contracts.rollouts import Ending
from agent_rft.graders.labelling import Round
from agent_rft.graders.numeric import NumericGrader
from observability.accesses import reading
from observability.graders import activate, give_label_once, labelled_scores, labels_of, register
from observability.ingest import StoreRecorder
from observability.store import open_store

make_card = runpy.run_path(str(Path(__file__).parent / "observability" / "sample_cards.py"))["make_card"]
STANDING = NumericGrader().ref
ROLLOUTS = 6
HIDDEN = ("CHECKPOINT", "DIFFICULTY", "GRADE-PART", "0.7731", "7731", "numeric", "eval", "hidden-id", "ROW", "OTHERS-NAME", "tuned", "2026")
"""Nothing of this may be seen before the last label is given."""


def card(number: int):
    opening = (Message("user", f"Question {number}?"),)
    rollout = msgspec.structs.replace(make_card().rollout, rollout_id=f"hidden-id-{number}", opening=opening, answer=f"answer {number}")
    grade = Grade(STANDING, 1.0 if number % 2 else 0.0, bool(number % 2), {"found": "GRADE-PART"})
    return make_card(
        rollout.rollout_id, rollout=rollout, run_id="run-1", kind="eval", step=7731, grade=grade, advantage=0.7731, row_id="ROW",
        metadata={"difficulty": "DIFFICULTY"}, versions=Versions(code="c", checkpoint="CHECKPOINT tuned"),
    )  # fmt: skip


@pytest.fixture
def url(tmp_path) -> str:
    url = f"sqlite:///{tmp_path}/cards.db"
    store = open_store(url)
    with StoreRecorder(store) as recorder:
        for number in range(ROLLOUTS):
            recorder.record(card(number))
        failed = make_card("hidden-id-9", run_id="run-1", grade=None)
        failed.rollout.ending = Ending.INFRA_FAILED
        recorder.record(failed)
    give_label_once(store, "OTHERS-NAME", "hidden-id-0", 1.0)
    store.close()
    return url


@pytest.fixture
def sit(url, monkeypatch, capsys):
    def run(typed: str | None, *words: str, by: str = "ann") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", None if typed is None else io.StringIO(typed))
        code = main(["label", "--run", "run-1", "--by", by, *words, f"store.url={url}"])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def scores(url: str, who: str = "ann") -> dict[str, float]:
    store = open_store(url)
    found = {one.rollout_id: one.score for one in labels_of(store, "run-1") if one.who == who}
    store.close()
    return found


def asked(shown: str) -> list[str]:
    return [line.strip() for line in shown.splitlines() if line.strip().startswith("Question ")]


def test_every_answer_is_a_label_and_the_agreement_follows(sit, url):
    code, shown, _ = sit("1\nh\n0\n0.25\n1\n1\n")
    assert code == 0 and len(asked(shown)) == ROLLOUTS == len(scores(url))
    assert sorted(scores(url).values()) == [0, 0.25, 0.5, 1, 1, 1]
    assert "6 labels of ann kept" in shown and "with numeric@1" in shown and "with OTHERS-NAME" in shown
    assert "compared              6 of 6 labelled" in shown and "compared              1 of 6 labelled" in shown
    # what differs is named once all is done
    differing = [key for key, score in scores(url).items() if score != float(key[-1] in "135")]
    assert differing and all(key in shown for key in differing)


def test_nothing_that_tells_is_seen_before_the_end(sit):
    _, shown, _ = sit("1\n" * ROLLOUTS)
    before, _, after = shown.partition("labels of ann kept")
    assert not [word for word in HIDDEN if word in before]
    assert "numeric@1" in after and "OTHERS-NAME" in after
    assert "13.4%" in before and "search(query=" in before and "answer 0" in before  # and what is to be seen is


def test_a_second_sitting_goes_on_where_the_first_ended(sit, url):
    _, first, _ = sit("1\n0\nq\n")
    _, second, _ = sit("1\n" * 9)
    assert len(asked(first)) == 3 and asked(first)[2] == asked(second)[0]
    assert sorted(asked(first)[:2] + asked(second)) == [f"Question {number}?" for number in range(ROLLOUTS)]
    _, third, _ = sit("")
    assert "nothing is left to label: every rollout of run run-1 has ann's label" in third and asked(third) == []


def test_two_people_see_them_in_other_orders(sit):
    orders = [asked(sit("s\n" * ROLLOUTS, by=name)[1]) for name in ("ann", "bob", "eve")]
    assert len({tuple(order) for order in orders}) == 3 and len({tuple(sorted(order)) for order in orders}) == 1


def test_count_and_kind_choose(sit):
    assert len(asked(sit("s\ns\ns\n", "--count", "2")[1])) == 2
    code, _, error = sit("1\n", "--kind", "train")
    assert code == 2 and "no rollout of run run-1 to label is in" in error and "of kind train\n  cure: leave the kind out" in error
    code, _, error = sit("1\n", "--count", "0")
    assert code == 2 and "--count 0 asks for no rollout" in error


def test_a_skipped_one_comes_again_next_time(sit, url):
    _, shown, _ = sit("s\n" + "1\n" * 9)
    assert "that was the last one; 1 skipped" in shown and len(scores(url)) == ROLLOUTS - 1
    assert asked(sit("q\n")[1]) == asked(shown)[:1]


def test_undo_takes_the_last_back_and_shows_it_again(sit, url):
    _, shown, _ = sit("u\n1\ns\nu\n0\nq\n")
    assert "there is nothing to undo" in shown and "the last label is taken back" in shown
    first = asked(shown)[0]
    assert asked(shown) == [first, first, asked(shown)[2], asked(shown)[3], first, asked(shown)[5]]
    assert list(scores(url).values()) == [0.0]


def test_what_is_no_score_is_asked_again(sit, url):
    _, shown, _ = sit("maybe\n2\n1\nq\n")
    assert "'maybe' is no score: 0, h for a half, 1, or any number from 0 to 1" in shown
    assert list(scores(url).values()) == [1.0]


def test_a_pipe_that_ends_keeps_what_it_gave(sit, url):
    code, shown, _ = sit("1\n0\n")
    assert code == 0 and "2 labels of ann kept" in shown and len(scores(url)) == 2


@pytest.mark.parametrize("typed", [None, ""])
def test_without_anybody_to_answer_it_says_what_to_do(sit, typed):
    code, _, error = sit(typed)
    assert code == 2 and "nobody answers: standard input is closed\n  cure: a terminal, a pipe with an answer a line" in error


def test_ctrl_c_keeps_what_was_given(sit, url, monkeypatch):
    class Interrupted(io.StringIO):
        def readline(self, *_: object) -> str:
            line = super().readline()
            if not line:
                raise KeyboardInterrupt
            return line

    monkeypatch.setattr("io.StringIO", Interrupted)
    code, shown, _ = sit("1\n")
    assert code == 0 and "1 label of ann kept" in shown and len(scores(url)) == 1


def test_another_tenants_card_under_the_runs_name_is_not_shown_and_who_was_shown_what_is_noted(url, monkeypatch, capsys):
    store = open_store(url)
    with StoreRecorder(store) as recorder:
        recorder.record(msgspec.structs.replace(card(77), tenant="mallory"))
    monkeypatch.setattr("sys.stdin", io.StringIO("1\n" * 20))
    assert main(["label", "--run", "run-1", "--by", "ann", f"store.url={url}", f"store.tenant={card(0).tenant}"]) == 0
    assert f"{ROLLOUTS} labels of ann kept" in capsys.readouterr().out
    noted = [(line.action, line.cards) for line in reading(store, card(0).tenant) if line.by.endswith("@cli")]
    assert noted.count(("show for a label", 1)) == noted.count(("label", 1)) == ROLLOUTS
    assert reading(store, "mallory") == []


def test_a_run_that_is_not_there_is_answered_with_the_nearest(url, capsys, tmp_path):
    assert main(["label", "--run", "run-2", "--by", "ann", f"store.url={url}"]) == 2
    assert "no rollout of run run-2 to label is in" in (error := capsys.readouterr().err) and "did you mean 'run-1'?" in error
    assert main(["label", "--run", "run-2", "--by", "ann", f"store.url=sqlite:///{tmp_path}/empty.db"]) == 2
    assert "it holds no run\n  cure: train first" in capsys.readouterr().err


def test_a_label_given_elsewhere_meanwhile_stays(url, sit, monkeypatch):
    given = StoreDesk.give
    monkeypatch.setattr(StoreDesk, "give", lambda desk, *what: given(desk, *what[:2], 0.5) and given(desk, *what))
    _, shown, _ = sit("1\nq\n")
    assert "ann has labelled this one elsewhere meanwhile; that label stays" in shown and list(scores(url).values()) == [0.5]


def test_two_sittings_of_one_person_at_once_double_no_label(url, tmp_path):
    command = [sys.executable, "-m", "agent_rft", "label", "--run", "run-1", "--by", "ann", f"store.url={url}"]
    root = Path(__file__).resolve().parents[1]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": root}
    sittings = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for one in sittings:
        one.stdin.write("1\n" * 9)
        one.stdin.flush()
    said = [one.communicate(timeout=120) for one in sittings]
    assert [one.returncode for one in sittings] == [0, 0], said
    with sqlite3.connect(tmp_path / "cards.db") as connection:
        rows = connection.execute("SELECT rollout_id, count(*) FROM human_labels WHERE labeller='ann' GROUP BY rollout_id").fetchall()
    assert sorted(rows) == [(f"hidden-id-{number}", 1) for number in range(ROLLOUTS)]


def test_agreement_is_with_the_grader_that_stands_now(url, sit):
    store = open_store(url)
    two = msgspec.structs.replace(STANDING, version="2", hash="another")
    register(store, two, {"type": "numeric"}, "c", "eve")
    activate(store, two, "bob")
    store.close()
    _, shown, _ = sit("1\nq\n")
    assert "with numeric@2" in shown and "0 of 1 labelled" in shown
    assert "1 without a score by it: rft regrade --grader numeric@2 --run run-1" in shown


def test_the_labels_are_those_that_checking_a_grader_reads(url, sit):
    sit("1\n" * ROLLOUTS)
    store = open_store(url)
    assert labelled_scores(store, "run-1") == {f"hidden-id-{number}": 1.0 for number in range(ROLLOUTS)}
    assert StoreDesk(store).next(Round("run-1", "Ann")) is None
    store.close()
