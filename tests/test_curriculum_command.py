"""`rft data curriculum`: from a run's folder and its cards to a data set that the next run trains on."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from agent_rft.cli import main
from agent_rft.commands.grading import grader_of
from agent_rft.commands.parts import read_data
from agent_rft.commands.run_folder import VERSIONS, RunFolder
from agent_rft.compose import settings_for
from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.jobcards import Cost, JobCard, Versions
from agent_rft.contracts.rollouts import Ending, Limits, Rollout
from agent_rft.contracts.rows import Row
from agent_rft.datasets.curriculum import COPY_OF
from agent_rft.datasets.rows import version_of
from agent_rft.datasets.rows_io import read_rows, write_rows
from agent_rft.datasets.version_files import read_version
from observability.ingest import StoreRecorder
from observability.store import open_store

GRADER = GraderRef("numeric", "1", "x")


def row(name: str, difficulty: str) -> Row:
    return Row(name, f"What was the revenue of {name} in 2023?", "1", metadata={"task_type": "numerical_qa", "difficulty": difficulty})


TRAIN = [row(f"{difficulty}-{number}", difficulty) for difficulty in ("easy", "hard") for number in range(8)]
VAL = [row(f"val-{difficulty}-{number}", difficulty) for difficulty in ("easy", "hard") for number in range(20)]


def graded(of: Row, reward: float, index: int) -> GradedRollout:
    rollout = Rollout(f"{of.id}/{index}", (), (), Limits(), ending=Ending.ANSWERED, started_at="2026-11-21T04:00:00+00:00")
    return GradedRollout(of, index, rollout, Grade(GRADER, reward))


def trained(row_id: str, step: int, *rewards: float) -> list[JobCard]:
    return [
        JobCard(
            rollout_id=f"{row_id}/{step}/{index}", kind="train", tenant="default", run_id="r", step=step, row_id=row_id, sample_index=index,
            started_at="2026-11-21T04:00:00+00:00", reference_answer="1", metadata={}, grade=Grade(GRADER, reward), cost=Cost(),
            rollout=Rollout(f"{row_id}/{step}/{index}", (), (), Limits(), ending=Ending.ANSWERED, started_at="2026-11-21T04:00:00+00:00"),
            versions=Versions(code="", checkpoint=""),
        )
        for index, reward in enumerate(rewards)
    ]  # fmt: skip


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """Run r: easy rows are solved, hard ones never, on held-out rows; its training learned easy-0 and never met most."""
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "data" / "train.jsonl", TRAIN)
    write_rows(tmp_path / "data" / "val.jsonl", VAL)
    rows = ["task.train=data/train.jsonl", "task.val=data/val.jsonl"]
    folder = RunFolder.new(settings_for("research_tiny", ["run.id=r", *rows, f"store.url=sqlite:///{tmp_path}/cards.db"]))
    made = Versions(code="", checkpoint="", dataset=version_of({"train": TRAIN, "val": VAL}))
    folder.keep(VERSIONS, msgspec.json.encode(made))
    keep(folder, 1, lambda one: 0.0)
    keep(folder, 10, lambda one: float(one.difficulty == "easy"))  # the latest, though not by the order of names
    keep(folder, 2, lambda one: 1.0)
    with StoreRecorder(open_store(f"sqlite:///{tmp_path}/cards.db")) as recorder:
        for card in trained("easy-0", 0, 0.0, 0.0) + trained("easy-0", 5, 1.0, 1.0) + trained("hard-0", 3, 0.0, 0.0):
            recorder.record(card)
    return folder


def keep(folder: RunFolder, number: int, reward_of: object) -> None:
    tries = [graded(one, reward_of(one), index) for one in VAL for index in range(2)]
    folder.keep(f"evaluation/tuned-{number}.msgpack", msgspec.msgpack.encode(tries))


def test_the_next_runs_data_set_names_its_parent_and_every_reason(run, capsys):
    assert main(["data", "curriculum", "r", "--out", "next"]) == 0
    card, rows = read_version(Path("next"))
    assert rows["val"] == VAL
    # hard: twenty 0s and the imagined 0 and 1: mean 1/22, squares 21/22, / 21 / 22 = 1/484, root 1/22; 84% of t of 21 degrees lie under
    # 1.0186: up to 0.0918. 0.9082 over the whole's 0.5: 1.82: of seven hard rows (one is set aside) 6 are there twice
    assert [row.id for row in rows["train"] if COPY_OF not in row.metadata] == [
        row.id for row in TRAIN if row.id not in ("easy-0", "hard-0")
    ]
    assert sum(COPY_OF in row.metadata for row in rows["train"]) == 6 == len(rows["train"]) - 14
    assert [row.id for row in read_rows(Path("next/retired.jsonl"))] == ["easy-0"]
    assert [row.id for row in read_rows(Path("next/review.jsonl"))] == ["hard-0"]
    assert card.origin.parents == (version_of({"train": TRAIN, "val": VAL}),)
    assert card.origin.left_out == {"solved on every newest try, retired": 1, "never earned anything, for review": 1}
    assert "run r, weighted by evaluation 10 of its tuned model (mean reward 0.500)" in card.origin.source
    assert "weak slices numerical_qa hard x1.82; seed 42" in card.origin.source
    reasons = {one["row_id"]: one["why"] for one in json.loads(Path("next/curriculum.json").read_text())["rows"]}
    assert reasons["easy-0"] == "2 of 4 tries solved it, 2 of the newest 2" and reasons["easy-1"] == "was not met"
    told = " ".join(capsys.readouterr().out.split())
    assert "20 held-out rows earned nothing on any try; they stay, but look at them: val-hard-0," in told
    assert 'make train ARGS="task.train=next/train.jsonl task.val=next/val.jsonl"' in told


def test_a_run_takes_the_data_set_as_it_is(run):
    assert main(["data", "curriculum", "r", "--out", "next"]) == 0
    settings = settings_for("research_tiny", ["task.train=next/train.jsonl", "task.val=next/val.jsonl"])
    data = read_data(settings, grader_of(settings))
    assert (len(data.train), len(data.val), data.hash) == (20, 40, read_version(Path("next"))[0].hash)


def test_the_same_again_is_the_same_and_another_seed_another_draw(run):
    for name, seed in (("one", "7"), ("two", "7"), ("three", "8")):
        assert main(["data", "curriculum", "r", "--out", name, "--seed", seed]) == 0
    one, two, three = (Path(name, "train.jsonl").read_bytes() for name in ("one", "two", "three"))
    assert one == two != three


def test_an_evaluation_of_training_rows_says_which_are_solved(run):
    tries = [graded(one, float(one.id in ("easy-1", "hard-0")), index) for one in TRAIN for index in range(2)]
    Path("suite.msgpack").write_bytes(msgspec.msgpack.encode(tries))
    assert main(["data", "curriculum", "r", "--out", "next", "--results", "suite.msgpack"]) == 0
    assert [row.id for row in read_rows(Path("next/retired.jsonl"))] == ["easy-1", "hard-0"]
    review = [row.id for row in read_rows(Path("next/review.jsonl"))]
    assert "easy-0" not in review and review[0] == "easy-2"  # training solved easy-0 twice, the evaluation did not: it stays


def test_without_the_runs_cards_it_weighs_and_says_that_it_retires_nothing(run, capsys):
    assert main(["data", "curriculum", "r", "--out", "next", "--store", "sqlite:///empty.db"]) == 0
    assert "warning: no training card of run r is in sqlite:///empty.db" in capsys.readouterr().out
    assert not read_rows(Path("next/retired.jsonl")) and not read_rows(Path("next/review.jsonl"))


def test_rows_that_were_changed_since_are_refused(run, capsys):
    write_rows(Path("data/train.jsonl"), TRAIN[1:])
    assert main(["data", "curriculum", "r", "--out", "next"]) == 2
    assert "the rows that run r was made from have changed" in capsys.readouterr().err and not Path("next").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--results", "none.msgpack"], "cannot read none.msgpack"),
        (["--heaviest", "0"], "a row cannot count 0 times at most"),
        (["--store", "mysql://nowhere/cards"], "mysql"),
    ],
)
def test_what_was_typed_wrong_is_named(run, words, says, capsys):
    assert main(["data", "curriculum", "r", "--out", "next", *words]) == 2
    assert says in capsys.readouterr().err and not Path("next").exists()


def test_a_run_without_an_evaluation_or_without_a_folder_is_named(run, capsys):
    for file in run.path.glob("evaluation/*"):
        file.unlink()
    assert main(["data", "curriculum", "r", "--out", "next"]) == 2
    assert "run r has no evaluation of a tuned model\n  cure: `make evaluate RUN=r`" in capsys.readouterr().err
    assert main(["data", "curriculum", "gone", "--out", "next"]) == 2
    assert "gone" in capsys.readouterr().err
