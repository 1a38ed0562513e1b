"""A rollout led by NeMo RL ends as our own driver would have ended it: the same machine stands behind both."""

import asyncio
import sqlite3
import threading
from contextlib import closing

import msgspec
import pytest
import small_world
from impatient import Impatient
from nemo_jobs import job_watched_by
from scripted import BASE, COURSES, LIMITS, Exact, Generation, Tools, make_rows

from agent_rft.contracts.jobcards import Versions
from agent_rft.contracts.rollouts import Ending, Rollout
from agent_rft.contracts.training import GuardLimits
from agent_rft.rollouts.driver import Try, collect, new_rollout_id
from agent_rft.training.journal import MetricsFile
from agent_rft.training.nemo.prompts import Prompt, Prompts
from agent_rft.training.nemo.watch import Watch
from observability.cards import find_card
from observability.ingest import StoreRecorder, replay
from observability.store import open_store

pytestmark = pytest.mark.nemo
VERSIONS = Versions(code="test", checkpoint="base")


class World:
    """Two environment actors over a store, and the rollout functions of NeMo RL with our beginning and end."""

    def __init__(self, tmp_path, *, group=1, call_cost=0.0, tools=None, rows=None, limits=LIMITS):
        import ray
        from nemo_rl.data.collate_fn import rl_collate_fn

        from agent_rft.training.nemo.environment import Post, ToolEnvironment
        from agent_rft.training.nemo.rollouts import Rollouts

        self.rows, self.group, self.limits = rows or make_rows(), group, limits
        self.store = open_store(f"sqlite:///{tmp_path}/cards.db")
        self.recorder = StoreRecorder(self.store)
        self.steps = []
        guards = GuardLimits(max_infra_rate=1.0, infra_window_calls=1000, max_kl=1.0)
        self.watch = Watch(job_watched_by(guards), MetricsFile(tmp_path / "metrics.jsonl"), lambda line, total: self.steps.append(line), 3)
        by_id = {row.id: row for row in self.rows}
        post = Post(rows=by_id, model_path=BASE, run_id="run", tenant="t", versions=VERSIONS, call_cost=call_cost)
        actor = ray.remote(num_cpus=0, max_concurrency=1000)(ToolEnvironment)
        self.actors = {f"agent-{i}": actor.remote(post, tools or Tools(), Exact(), self.recorder) for i in range(2)}
        self.generation, self._collate = Generation(), rl_collate_fn
        self.rollouts = Rollouts(
            self.watch,
            self.actors,
            self.recorder,
            rows=by_id,
            limits=limits,
            run_id="run",
            tenant="t",
            versions=VERSIONS,
            group=group,
            call_cost=call_cost,
        )

    def run(self, function, *, validating=False):
        from agent_rft.training.nemo.compat_v0_7_0 import patched, patches

        prompts = Prompts(self.rows, [Prompt(row.id, validating) for row in self.rows], self.generation.template, list(self.actors))
        batch = self._collate([prompts[i] for i in range(len(prompts))]).repeat_interleave(self.group)
        with patched(patches(self.watch, self.rollouts, None)):
            from nemo_rl.algorithms import grpo

            return getattr(grpo, function)(
                policy_generation=self.generation,
                input_batch=batch,
                tokenizer=self.generation.tokenizer,
                task_to_env=self.actors,
                max_seq_len=self.limits.max_trajectory_tokens,
                max_rollout_turns=self.limits.max_turns,
                greedy=False,
            )

    def close(self):
        import ray

        for actor in self.actors.values():
            ray.get(actor.close.remote())
            ray.kill(actor)
        self.actors = {}
        self.recorder.close()
        self.store.close()


@pytest.fixture
def world(ray_here, tmp_path):
    opened = []

    def make(**options):
        opened.append(World(tmp_path, **options))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def driven(rows, asynchronous):
    """The same courses, led by our own driver."""
    from agent_rft.training.nemo.sampler import GenerationSampler

    generation = Generation()
    sampler = GenerationSampler(
        generation,
        generation.tokenizer,
        generation.template,
        generation.ends,
        longest=LIMITS.max_trajectory_tokens,
        asynchronous=asynchronous,
        checkpoint="base",
    )
    return asyncio.run(collect([Try(row, 0, 0) for row in rows], sampler, Tools(), Exact(), LIMITS))


def told(graded):
    """A rollout as its reader sees it, times and ids left out."""
    rollout = msgspec.to_builtins(graded.rollout)
    for gone in ("rollout_id", "started_at", "seconds", "seed"):
        del rollout[gone]
    for turn in rollout["turns"]:
        for result in turn["results"].values():
            del result["seconds"]
    return rollout, msgspec.to_builtins(graded.grade)


@pytest.mark.parametrize("function", ["run_multi_turn_rollout", "run_async_multi_turn_rollout"])
def test_every_course_ends_as_our_driver_ends_it(world, function, monkeypatch):
    here = world()
    seen = []
    original = type(here.rollouts)._settled
    monkeypatch.setattr(type(here.rollouts), "_settled", lambda self, names, seats: seen.append(original(self, names, seats)) or seen[-1])
    batch, _ = here.run(function)
    theirs, ours = dict(zip(COURSES, seen[0], strict=True)), dict(zip(COURSES, driven(here.rows, "async" in function), strict=True))
    for name in COURSES:
        assert told(theirs[name]) == told(ours[name]), name
    assert {name: one.rollout.ending.value for name, one in theirs.items()} == {
        "straight": "answered",
        "one": "answered",
        "parallel": "answered",
        "spammer": "out_of_budget",
        "crowded": "out_of_budget",
        "greedy": "out_of_budget",
        "breathless": "out_of_budget",
        "broken": "infra_failed",
        "halfbroken": "infra_failed",
        "slow": "infra_failed",
        "garbled": "malformed",
        "empty": "malformed",
        "wordy": "out_of_budget",
    }
    for i, one in enumerate(seen[0]):  # what NeMo RL trains on is what the machine saw
        ids = [token for message in batch["message_log"][i] for token in message["token_ids"].tolist()]
        if one.rollout.ending is Ending.ANSWERED:
            assert ids == [token for turn in one.rollout.turns for token in turn.context_ids + turn.sampled_ids]


def test_rewards_masks_and_cards(world):
    """Three answers: 1, 1, 0.5; a call costs 0.1. The three that infrastructure failed have no weight."""
    here = world(call_cost=0.1)
    batch, metrics = here.run("run_multi_turn_rollout")
    rewards = dict(zip(COURSES, batch["total_reward"].tolist(), strict=True))
    assert [rewards[name] for name in ("straight", "one", "parallel", "spammer")] == pytest.approx([1.0, 0.9, 0.3, 0.0])
    failed = [name for name, weight in zip(COURSES, batch["loss_multiplier"].tolist(), strict=True) if weight == 0]
    assert failed == ["broken", "halfbroken", "slow"] and all(rewards[name] == 0.0 for name in failed)
    assert metrics["infra_failure_rate"] == 3 / 13
    here.close()
    with here.store.reading() as connection:
        stored = connection.exec_driver_sql("SELECT rollout_id, row_id, kind, step, advantage, checkpoint FROM job_cards").fetchall()
    assert len(stored) == len({row.rollout_id for row in stored}) == len(COURSES)
    assert {(row.kind, row.step, row.checkpoint) for row in stored} == {("train", 0, "run/step-0")}
    assert {row.row_id.removeprefix("row-") for row in stored if row.advantage is None} == set(failed)
    card = find_card(here.store, next(row.rollout_id for row in stored if row.row_id == "row-broken")).card
    assert (card.rollout.ending, card.rollout.failed_part, card.grade) == (Ending.INFRA_FAILED, "tool:broken", None)


def test_each_sample_of_a_group_is_a_rollout_of_its_own(world):
    here = world(group=4, rows=make_rows(("straight", "one")))
    batch, _ = here.run("run_multi_turn_rollout")
    seats = batch["extra_env_info"]
    assert len({seat.rollout.rollout_id for seat in seats}) == 8
    assert [(seat.row_id, seat.sample_index) for seat in seats] == [(f"row-{name}", i) for name in ("straight", "one") for i in range(4)]


def test_a_validation_is_recorded_as_one_and_earns_the_bare_grade(world):
    here = world(call_cost=0.1, rows=make_rows(("one", "parallel", "broken")))
    batch, _ = here.run("run_multi_turn_rollout", validating=True)
    assert batch["total_reward"].tolist() == [1.0, 0.5, 0.0]
    assert here.watch.validated() == 0.75  # the failed one is no zero in the mean
    here.close()
    with here.store.reading() as connection:
        assert connection.exec_driver_sql("SELECT kind, count(*) FROM job_cards GROUP BY kind").fetchall() == [("eval", 3)]


def test_a_rollout_that_the_engine_loses_is_an_infrastructure_failure_with_a_card(world):
    """NeMo RL's asynchronous function swallows the engine's error, and scores it 0."""
    here = world(rows=make_rows(("straight", "one")))
    here.generation._lost = ("one",)
    batch, _ = here.run("run_async_multi_turn_rollout")
    assert batch["loss_multiplier"].tolist() == [1.0, 0.0]
    here.close()
    with here.store.reading() as connection:
        row = connection.exec_driver_sql("SELECT ending, failed_part FROM job_cards WHERE row_id = 'row-one'").one()
    assert tuple(row) == ("infra_failed", "model")


def test_state_travels_as_plain_data(world):
    """NeMo RL pickles a rollout's state from turn to turn, into whichever process."""
    import pickle

    here = world(rows=make_rows(("one",)))
    seats = here.rollouts._seats([Prompt("row-one", False)], 0.0)
    assert pickle.loads(pickle.dumps(seats)) == seats


# --- cards that still wait ------------------------------------------------------------------------------------------


@pytest.fixture
def dies(ray_here, tmp_path):
    """Raises while a card waits in an environment, because the store is locked: for so many seconds, or to the end."""
    import ray

    from agent_rft.training.nemo.environment import Seat
    from agent_rft.training.nemo.launch import environments

    store = open_store(f"sqlite:///{tmp_path}/cards.db")
    job = small_world.make_job(BASE, tmp_path / "run")

    def dies(seconds: float | None, error: Exception) -> None:
        posts = {}
        with (
            Impatient(store) as recorder,
            closing(sqlite3.connect(tmp_path / "cards.db", check_same_thread=False)) as other,
            environments(posts, job, 2, Tools(), Exact(), recorder),
        ):
            other.execute("BEGIN EXCLUSIVE")
            if seconds is not None:
                threading.Timer(seconds, other.rollback).start()
            rollout = Rollout(new_rollout_id(), job.train_rows[0].opening(), (), LIMITS)
            seat = Seat(job.train_rows[0].id, 0, "train", 0, "run/step-0", 0.0, 0.0, 0.0, rollout, [])
            ray.get(posts["agent-1"].settle.remote([seat]))
            raise error

    yield dies, store
    store.close()


def stored(store) -> int:
    with store.reading() as connection:
        return connection.exec_driver_sql("SELECT count(*) FROM job_cards").scalar()


def test_a_run_that_fails_waits_for_the_cards_of_its_environments(dies):
    fails, store = dies
    with pytest.raises(ZeroDivisionError):
        fails(0.5, ZeroDivisionError())
    assert stored(store) == 1


def test_where_the_store_stays_away_they_are_in_a_file_that_the_error_names(dies, tmp_path):
    fails, store = dies
    with pytest.raises(ZeroDivisionError) as found:
        fails(None, ZeroDivisionError())
    [file] = tmp_path.glob("cards-unsaved-*.jsonl")
    [note] = found.value.__notes__
    assert str(file) in note and note.startswith("1 of 1 cards are not durable")
    assert replay(store, file) == 1 == stored(store)


def test_a_dead_environment_keeps_no_other_from_its_cards(dies, monkeypatch):
    """The first is killed; the card waits in the second."""
    import ray

    from agent_rft.training.nemo import launch

    fails, store = dies
    whole = launch.ended
    monkeypatch.setattr(launch, "ended", lambda posts: ray.kill(posts["agent-0"]) or whole(posts))
    with pytest.raises(ZeroDivisionError) as found:
        fails(0.5, ZeroDivisionError())
    assert stored(store) == 1
    [note] = found.value.__notes__
    assert note.startswith("ToolEnvironment (process ")
