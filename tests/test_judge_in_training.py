"""A training on real rollouts whose grader asks a judge that fails a fifth of the time: through the command line, to the store."""

import json
import os
import re
import sqlite3
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from serving.server import free_port

ROOT = Path(__file__).resolve().parents[1]
SMALL = (
    "algorithm.batch_size=4 algorithm.group_size=4 algorithm.max_steps=2 algorithm.micro_batch_tokens=4096 algorithm.call_cost=0 "
    "evaluation.every=1 evaluation.samples_per_row=1 prior.prompts=4 prior.rollouts=2 prior.override=true backend.checkpoint_every=1 "
    "grader.allow_inactive=true"
).split()
GRADER = {
    "type": "multi",
    "name": "answered_well",
    "graders": {
        "right": {"type": "numeric", "name": "right"},
        "style": {
            "type": "score_model",
            "name": "style",
            "model": "judge",
            "input": [
                # every rollout asks a question of its own: none is answered from the cache
                {"role": "system", "content": "Row {{item.id}}, rollout {{sample.rollout_id}}: give 1 for good style."},
                {"role": "user", "content": "{{sample.output_text}}"},
            ],
        },
    },
    "calculate_output": "0.8 * right + 0.2 * style",
}
SCRIPTS = {
    "stumbles": {"seed": 3, "rules": [{"rate": 0.2, "status": 503}, {"score": 1}]},
    # held-out rows never fail, so that it is training which halts: by this seed 3 of the first 16 rollouts fail, and 5 of the next
    "fails": {"seed": 18, "rules": [{"when": "Row train-", "in": "rubric", "rate": 0.2, "status": 400}, {"score": 1}]},
    "heals": {"rules": [{"score": 1}]},
}


def start(*words):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "160"}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-m", "agent_rft", *words], cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


@contextmanager
def judge(script):
    port = free_port()
    running = start("judge", "--script", str(script), "--port", str(port))
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        running.kill()
        running.communicate()


def asked(judge):
    with urllib.request.urlopen(f"{judge}/health", timeout=5) as answer:
        return json.loads(answer.read())["asked"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judged")
    rows = (ROOT / "data/research/val.jsonl").read_text().splitlines()[:4]
    (folder / "val.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "grader.json").write_text(json.dumps(GRADER))
    return folder


@pytest.fixture(scope="module")
def judges(place):
    with ExitStack() as stack:
        urls = {}
        for name, script in SCRIPTS.items():
            file = place / f"{name}.json"
            file.write_text(json.dumps(script))
            urls[name] = stack.enter_context(judge(file))
        give_up = time.monotonic() + 60
        for url in urls.values():
            while True:
                try:
                    asked(url)
                    break
                except OSError:
                    assert time.monotonic() < give_up
                    time.sleep(0.05)
        yield urls


def overrides(place, judges, run_id):
    here = [f"run.folder={place}", f"run.id={run_id}", f"store.url=sqlite:///{place}/{run_id}.db", f"task.val={place}/val.jsonl"]
    return [*SMALL, *here, f"grader.file={place}/grader.json", f"grader.judge.url={judges}/v1"]


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def cards(place, run_id, kind="%"):
    """Every card with its grades' rewards and flags."""
    with sqlite3.connect(place / f"{run_id}.db") as store:
        store.row_factory = sqlite3.Row
        return store.execute(
            "select c.*, g.reward, g.errors, g.grader as graded_by from job_cards c left join grades g using (rollout_id) "
            "where c.run_id = ? and c.kind like ?",
            (run_id, kind),
        ).fetchall()


def test_a_judge_that_stumbles_a_fifth_of_the_time_is_asked_again_and_nothing_is_lost(rft_here, place, judges):
    rft_here("train", "research_tiny", *overrides(place, judges["stumbles"], "stumbles"))
    lines, stored = lines_of(place / "stumbles"), cards(place, "stumbles")
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert [(line["infra_failures"], line["grader_failure_rate"]) for line in lines] == [(0, 0.0)] * 3
    assert all(card["ending"] != "infra_failed" and card["reward"] is not None for card in stored)
    questions, answered = asked(judges["stumbles"]), len(stored)
    # 8 of the prior check, 2 x 16 trained, 3 x 4 held out, 4 of base and of tuned; each is asked 1 / 0.8 times in the mean
    assert answered == 8 + 2 * 16 + 3 * 4 + 2 * 4
    assert 1.1 < questions / answered < 1.45


@pytest.fixture(scope="module")
def halted(rft_here, place, judges):
    return rft_here("train", "research_tiny", *overrides(place, judges["fails"], "fails"), code=3)


def test_one_that_fails_for_good_halts_the_run_and_the_message_names_grader_judge_reason_and_cure(place, judges, halted):
    lines = lines_of(place / "fails")
    assert [line["step"] for line in lines] == [0, 1]
    graded = cards(place, "fails", "train")
    failed = [card for card in graded if card["reward"] is None]
    # the guard's window: 32 trained rollouts, and 4 held-out ones at each of both steps
    assert len(failed) == 3 + 5
    assert lines[-1]["grader_failure_rate"] == pytest.approx(8 / 40)
    assert "grader:answered_well failed 8 of its last 40 calls (20.0%) after retries" in halted
    assert "1.0% is allowed" in halted
    assert f"{judges['fails']} gave no answer" in halted and "answered 400" in halted
    assert "mend grader:answered_well" in halted and "guards.max_infra_rate" in halted and f"make resume RUN={place}/fails" in halted
    assert json.loads((place / "fails" / "summary.json").read_text())["halted"]
    assert re.search(r"^ +0 .* 15\.0% ", halted, re.MULTILINE), "in the step's printed line: 3 of 16 trained and 4 held out"


def test_no_failure_is_a_zero_and_none_reaches_baseline_or_gradient(place, halted):
    stored = cards(place, "fails")
    failed = [card for card in stored if card["ending"] == "infra_failed"]
    assert len(failed) == 3 + 5
    for card in failed:
        assert (card["reward"], card["advantage"], card["failed_part"]) == (None, None, "grader:answered_well")
        assert "style.model_grader_server_error" in json.loads(card["errors"])
    assert all(card["reward"] is not None for card in stored if card["ending"] != "infra_failed")
    # the judge gives 1 to all: a reward below 0.2 could only be a failure's
    assert min(card["reward"] for card in stored if card["ending"] == "answered") >= 0.2

    groups = defaultdict(list)
    for card in cards(place, "fails", "train"):
        groups[card["step"], card["row_id"]].append(card)
    assert any(card["reward"] is None for group in groups.values() for card in group)
    for group in groups.values():
        assert len(group) == 4
        rewards = [card["reward"] for card in group if card["reward"] is not None]
        spread = statistics.stdev(rewards) if len(rewards) > 1 else 0.0
        for card in group:
            if card["reward"] is not None:  # the distance to the mean of those that have a reward, in their standard deviations
                expected = (card["reward"] - statistics.fmean(rewards)) / (spread + 1e-4) if spread > 1e-6 else 0.0
                assert card["advantage"] == pytest.approx(expected, abs=1e-6)


def test_with_a_healed_judge_the_run_goes_on_from_its_checkpoint_to_its_end(rft_here, place, judges, halted):
    [checkpoint] = (place / "fails" / "checkpoints").glob("step-*1")
    assert (checkpoint / "state.json").exists(), "what the halted run had learnt"
    rft_here("resume", "fails", f"grader.judge.url={judges['heals']}/v1", "--runs", str(place))
    lines = [line for line in lines_of(place / "fails") if not line["undone"]]
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert [line["grader_failure_rate"] for line in lines[1:]] == [0.0] * 2, "a new window: the failures are over"
    assert lines[0]["infra_failures"] == 3
