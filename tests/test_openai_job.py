"""An OpenAI RFT job's own files, unchanged: training JSONL, validation JSONL, grader JSON."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent_rft.commands.grading import spec_in
from agent_rft.graders.spec import read_spec

ROOT = Path(__file__).resolve().parents[1]
JOB = ROOT / "examples/openai_rft"
SMALL = (
    "algorithm.batch_size=2 algorithm.group_size=4 algorithm.max_steps=2 algorithm.micro_batch_tokens=4096 evaluation.every=2 "
    "evaluation.samples_per_row=1 prior.prompts=4 prior.rollouts=2 prior.override=true"
).split()
TOLERANT = """
def number(text):
    return float(text.strip().lstrip("$").rstrip("M%"))

def grade(sample, item):
    try:
        return 1.0 if abs(number(sample["output_text"]) - number(item["answer"])) < 0.5 else 0.0
    except ValueError:
        return 0.0
"""


def rft(*words: str, code: int = 0) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "160"}
    command = [sys.executable, "-m", "agent_rft", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout + done.stderr


def job(folder: Path, grader: Path) -> list[str]:
    """Ten of the validation rows, so that a run takes seconds."""
    few = folder / "validation.jsonl"
    few.write_text("".join((JOB / "validation.jsonl").read_text().splitlines(keepends=True)[:10]))
    files = [f"task.train={JOB}/training.jsonl", f"task.val={few}", f"task.grader={grader}"]
    return ["train", "research_tiny", "task=openai_rft", *files, *SMALL, f"run.folder={folder}", f"store.url=sqlite:///{folder}/cards.db"]


def test_the_files_train_as_they_are_and_the_run_says_that_its_grader_is_not_registered(tmp_path: Path):
    rft(*job(tmp_path, JOB / "grader.json"), "run.id=job")
    summary = json.loads((tmp_path / "job/summary.json").read_text())
    assert summary["versions"]["grader"].startswith("multi@")
    assert summary["versions"]["grader"].endswith(" (inactive)")
    with sqlite3.connect(tmp_path / "cards.db") as store:
        [graded] = store.execute(
            "select count(*) from job_cards join grades using (rollout_id) where run_id = 'job' and reward is not null"
        ).fetchone()
    assert graded == 4 * 2 + 2 * 8 + 4 * 10  # prior, training, and the ten rows: base, tuned, validated at steps 0 and 2
    to, store_url = tmp_path / "harvest", f"sqlite:///{tmp_path}/cards.db"
    rft("data", "from-cards", "--run", "job", "--kind", "train", "--store", store_url, "--out", str(to))
    answers = {line["messages"][-1]["content"]: line["answer"] for line in map(json.loads, (JOB / "training.jsonl").open())}
    made = [json.loads(line) for line in (to / "train.jsonl").open()]
    assert len(made) == 4, "two steps of two rows"
    assert all(row["answer"] == answers[row["messages"][-1]["content"]] for row in made)


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="python graders run in bubblewrap")
def test_the_body_that_the_job_was_made_with_will_do_for_the_grader(tmp_path: Path):
    """With a python grader this time: the commonest of them."""
    body: dict[str, Any] = {"model": "o4-mini", "training_file": "file-1", "validation_file": "file-2"}
    body["method"] = {"type": "reinforcement", "reinforcement": {"grader": {"type": "python", "name": "tolerant", "source": TOLERANT}}}
    (tmp_path / "job.json").write_text(json.dumps(body))
    rft(*job(tmp_path, tmp_path / "job.json"), "run.id=job")
    summary = json.loads((tmp_path / "job/summary.json").read_text())
    assert summary["versions"]["grader"].startswith("tolerant@")
    assert summary["base_val_reward"] > 0


def test_what_a_job_says_beyond_its_grader_is_named_once_as_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    grader = json.loads((JOB / "grader.json").read_text())
    azure = {"type": "reinforcement", "reinforcement": {"grader": grader, "tools": [{"server_url": "https://x"}], "max_episode_steps": 3}}
    openai = {"type": "reinforcement", "reinforcement": {"grader": grader, "response_format": {"type": "json_schema"}}}
    for name, body in (
        ("azure", {"model": "o4-mini", "training_file": "file-1", "method": azure}),
        ("openai", {"method": openai}),
        ("part", azure["reinforcement"]),
        ("bare", {"grader": grader}),
        ("grader", grader),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(body))
        assert spec_in(tmp_path / f"{name}.json") == spec_in(tmp_path / f"{name}.json") == read_spec(grader)
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.splitlines() == [
        f"{tmp_path}/azure.json: not read from this job: model, training_file, tools, max_episode_steps",
        f"{tmp_path}/openai.json: not read from this job: response_format",
        f"{tmp_path}/part.json: not read from this job: tools, max_episode_steps",
    ]


def test_what_a_job_must_bring_is_asked_for_all_at_once():
    told = rft("train", "research_tiny", "task=openai_rft", code=2)
    for key in ("task.train", "task.val", "task.grader"):
        assert f"{key}: is yours to say (add {key}=...)" in told


def test_two_graders_are_one_too_many():
    files = [f"task.train={JOB}/training.jsonl", f"task.val={JOB}/validation.jsonl", "task.grader=a.json", "grader.file=b.json"]
    told = rft("train", "research_tiny", "task=openai_rft", *files, code=2)
    assert "task.grader=a.json and grader.file=b.json are two graders: leave one out" in told
