"""Whole trainings through NeMo RL's own setup() and grpo_train(), on CPU workers, in a world of a few thousand weights."""

import asyncio
import gc
import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import small_world
import torch
from letters import DiesWithFile, LettersOnly
from safetensors.torch import load_file

from agent_rft.contracts.errors import InfraError, UserError
from agent_rft.contracts.layouts import Cluster, Layout, Reference
from agent_rft.contracts.training import Lora
from agent_rft.rollouts.driver import Try, collect
from agent_rft.training.advantages import group_advantages
from agent_rft.training.nemo.backend import NemoBackend
from observability.ingest import StoreRecorder
from observability.store import open_store

RAYLET_CHILD = Path(__file__).parent / "raylet_child.py"
pytestmark = pytest.mark.nemo
ON_CPU = Layout(workers="cpu", cluster=Cluster(gpus_per_node=0), environment_actors=1, micro_batch=4)


class Run:
    def __init__(self, tmp_path, layout=ON_CPU):
        self.path, self.layout = tmp_path / "run", layout
        self.path.mkdir()
        self.base = small_world.save_base(tmp_path / "base")
        self.store = open_store(f"sqlite:///{tmp_path}/cards.db")

    def train(self, tools=None, on_step=lambda line, total: None, grader=None, **changes):
        job = small_world.make_job(self.base, self.path, **changes)
        backend = NemoBackend(self.layout, job.limits)
        with StoreRecorder(self.store) as recorder:
            try:
                return asyncio.run(backend.train(job, tools or LettersOnly(), grader or small_world.LikesA(), recorder, on_step))
            finally:
                backend.close()

    @property
    def lines(self):
        return [json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()]

    def weights(self, step):
        return load_file(self.path / "checkpoints" / f"step_{step}" / "policy" / "weights" / "model.safetensors")

    def cards(self, kind):
        with self.store.reading() as connection:
            query = (
                "SELECT c.row_id, c.step, c.ending, c.advantage, c.tool_calls, g.reward FROM job_cards c "
                "LEFT JOIN grades g USING (rollout_id) WHERE kind = ? ORDER BY c.step, c.row_id, c.sample_index"
            )
            return connection.exec_driver_sql(query, (kind,)).fetchall()


@pytest.fixture
def run(ray_here, tmp_path):
    return Run(tmp_path)


def test_a_training_leaves_what_the_local_engine_leaves(run):
    """9 rows, 3 a step: three updates of 12 rollouts; 8 validation rollouts at 0, 2 and 3; the table hears each line."""
    heard = []
    outcome = run.train(on_step=lambda line, total: heard.append((line.step, total)))
    assert (outcome.steps, outcome.total_steps, outcome.halted) == (3, 3, "")
    assert [line["step"] for line in run.lines] == [0, 1, 2, 3] and heard == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert [line["val_reward"] is not None for line in run.lines] == [True, False, True, True]
    assert [line["rollouts"] for line in run.lines] == [20, 12, 20, 8]
    for line in run.lines[:3]:
        assert all(math.isfinite(line[key]) for key in ("loss", "kl_to_ref", "entropy", "grad_norm", "train_reward", "tool_calls"))
        assert line["learning_rate"] == pytest.approx(min(1.0, (line["step"] + 1) / 2) * 1e-2)
    assert run.lines[0]["kl_to_ref"] == pytest.approx(0.0, abs=1e-6) and run.lines[2]["kl_to_ref"] > 0
    assert (len(run.cards("train")), len(run.cards("eval"))) == (36, 24)
    assert outcome.checkpoint == str(run.path / "checkpoints" / "step_3")
    assert [path.name for path in sorted((run.path / "checkpoints").iterdir())] == ["step_2", "step_3"]  # the last two are kept


def test_the_tuned_model_speaks_where_it_was_trained_after_the_run_and_after_it_is_put_up_again(run, monkeypatch):
    """The second time nothing is rolled out, learnt, recorded or written. Only then is it loaded from its folder."""
    from agent_rft.training.nemo import speaking

    job = small_world.make_job(run.base, run.path)
    started, start = [], speaking.start_generation
    monkeypatch.setattr(speaking, "start_generation", lambda *args: started.append(args) or start(*args))

    def train_and_speak(**changes):
        backend = NemoBackend(run.layout, job.limits)
        with StoreRecorder(run.store) as recorder:
            again = small_world.make_job(run.base, run.path, **changes)
            outcome = asyncio.run(backend.train(again, LettersOnly(), small_world.LikesA(), recorder, lambda line, total: None))
        try:
            return outcome, *spoken(backend, outcome, 1.0), *spoken(backend, outcome, 0.5)
        finally:
            backend.close()

    def spoken(backend, outcome, temperature):
        sampler = backend.sampler(job.model, outcome.checkpoint, temperature)
        tries = [Try(row, 0, 0) for row in job.val_rows]
        done = asyncio.run(collect(tries, sampler, LettersOnly(), small_world.LikesA(), job.limits))
        assert all(graded.rollout.turns for graded in done)
        return sampler.checkpoint, len(started)

    first = train_and_speak()
    assert first[1:] == ("run/step-3", 0, "run/step-3", 1), "another temperature is another engine"
    before, cards = (run.path / "metrics.jsonl").read_bytes(), run.cards("train") + run.cards("eval")
    second = train_and_speak(resume=True)
    assert second[1:] == ("run/step-3", 1, "run/step-3", 2)
    assert (second[0].checkpoint, second[0].steps, second[0].halted) == (first[0].checkpoint, 3, "")
    assert (run.path / "metrics.jsonl").read_bytes() == before and run.cards("train") + run.cards("eval") == cards


def test_infrastructure_failures_touch_neither_gradient_nor_baseline(run):
    """On three in ten rollouts every tool call answers 503 for good."""
    outcome = run.train(LettersOnly(share=0.3), guards={"max_infra_rate": 1.0})
    assert not outcome.halted and sum(line["infra_failures"] for line in run.lines) > 0
    assert max(line["infra_failure_rate"] for line in run.lines) > 0.05
    cards = run.cards("train")
    assert {card.ending for card in cards if card.advantage is None} == {"infra_failed"}
    for start in range(0, len(cards), 4):
        group = cards[start : start + 4]
        assert len({(card.step, card.row_id) for card in group}) == 1
        rewards = [None if card.reward is None else max(0.0, card.reward - 0.02 * card.tool_calls) for card in group]
        assert [card.advantage for card in group] == group_advantages(rewards)  # over the valid ones alone
    assert all(torch.isfinite(weight).all() for weight in run.weights(3).values())


def test_a_batch_in_which_everything_failed_is_refused_saved_and_gone_on_from(run, tmp_path):
    """The grader is gone after the first step."""
    dead = tmp_path / "dead"
    how = {"grader": DiesWithFile(dead), "evaluate_every": 9, "guards": {"max_infra_rate": 1.0}}
    outcome = run.train(on_step=lambda line, total: dead.touch(), **how)
    assert outcome.halted.startswith("every rollout of the step failed from infrastructure: grader:likes_a (12 times)")
    assert outcome.cure == "mend grader:likes_a" and outcome.steps == 2
    assert [line["loss"] is not None for line in run.lines] == [True, False]
    assert all(torch.equal(a, b) for a, b in zip(run.weights(1).values(), run.weights(2).values(), strict=True))
    dead.unlink()
    again = run.train(resume=True, **how)
    assert (again.halted, again.steps) == ("", 3) and [line["step"] for line in run.lines] == [0, 1, 2, 3]


def test_a_kl_guard_set_low_skips_the_update_saves_and_ends_and_resume_goes_on(run):
    outcome = run.train(guards={"max_kl": 1e-7})
    assert "KL of" in outcome.halted and "the update is not kept" in outcome.halted and "guards.max_kl" in outcome.cure
    assert outcome.steps == 2 and outcome.checkpoint.endswith("step_2")  # the first update moved it, the second was refused
    assert run.lines[-2]["loss"] is None and run.lines[-2]["kl_to_ref"] > 1e-7
    assert all(torch.equal(a, b) for a, b in zip(run.weights(1).values(), run.weights(2).values(), strict=True))
    again = run.train(resume=True)
    assert (again.halted, again.steps) == ("", 3)
    assert [line["step"] for line in run.lines] == [0, 1, 2, 3]


def test_a_reference_of_its_own_changes_no_loss(ray_here, tmp_path):
    """The same training by the builtin reference and by a dedicated worker: the same figures, to the last bit."""
    lines = []
    for engine in ("builtin", "dedicated_worker"):
        folder = tmp_path / engine
        folder.mkdir()
        one = Run(folder, Layout(workers="cpu", cluster=Cluster(gpus_per_node=0), micro_batch=4, reference=Reference(engine=engine)))
        one.train(evaluate_every=9, checkpoint_every=9, algorithm={"max_steps": 2})
        lines.append([(line["loss"], line["kl_to_ref"], line["grad_norm"], line["train_reward"]) for line in one.lines])
    assert lines[0] == lines[1] and lines[0][1][1] > 0


def test_an_environment_that_dies_is_one_error_and_the_run_goes_on_from_its_last_checkpoint(run):
    with pytest.raises(InfraError) as found:
        run.train(on_step=lambda line, total: kill("ToolEnvironment"))
    assert found.value.what.startswith("ToolEnvironment (process ") and " died: " in found.value.what
    log = run.path / "nemo.log"
    assert found.value.cure.startswith(f"{log} and ") and f"`make resume RUN={log.parent}`" in found.value.cure
    assert "Traceback" in log.read_text()
    again = run.train(resume=True)
    assert (again.halted, again.steps) == ("", 3) and [line["step"] for line in run.lines] == [0, 1, 2, 3]


def kill(name):
    """One process of this Ray's, by the class that it runs."""
    import psutil

    ours = psutil.Process().children(recursive=True)
    next(process for process in ours if process.name().startswith(f"ray::{name}"[:15])).send_signal(signal.SIGKILL)


def test_a_raylet_that_dies_is_one_error_that_says_how_to_go_on(run):
    """Ray's C++ may end the process that drives it, at one of its next calls. In a process of its own, then, and gone on from here."""
    folder = run.path.parent / "other"
    folder.mkdir()
    child = subprocess.run([sys.executable, RAYLET_CHILD, folder], check=False, capture_output=True, text=True, timeout=200)
    said = child.stdout + child.stderr
    assert child.returncode != 0 and said.count("error: infrastructure: Ray: ") == 1, said
    assert said.count("; then `make resume RUN=") == 1
    run.path, run.store = folder / "run", open_store(f"sqlite:///{folder}/cards.db")
    again = run.train(resume=True)
    assert (again.halted, again.steps) == ("", 3) and [line["step"] for line in run.lines] == [0, 1, 2, 3]


def test_a_workers_word_on_the_users_mistake_is_all_that_is_told(run, capfd):
    with pytest.raises(UserError) as found:
        run.train(model={"lora": Lora(4, 8.0, ("foo",))})
    assert found.value.what.startswith("LoRA does not fit") and found.value.cure == "name its layers in model.lora.target_modules"
    gc.collect()
    assert "Exception ignored" not in capfd.readouterr().err


def test_an_engine_whose_ray_has_ended_is_left_alone(nemo_rl, monkeypatch):
    import ray

    from agent_rft.training.nemo.launch import Live

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    Live(None, None, [None], False).close()  # there is nothing of them that could be called


def test_a_run_id_with_checkpoints_is_not_overwritten(run):
    (run.path / "checkpoints" / "step_1").mkdir(parents=True)
    with pytest.raises(Exception, match="holds checkpoints of an earlier run"):
        run.train()
