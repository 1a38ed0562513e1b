"""One training: NeMo RL's own setup() and grpo_train(), with our environments, policy, reference, guards and journal."""

from __future__ import annotations

import functools
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import ray
from nemo_rl.algorithms import grpo
from nemo_rl.models.generation import configure_generation_config
from nemo_rl.utils.logger import Logger, LoggerInterface
from ray.exceptions import RayError
from transformers import PreTrainedTokenizerBase

from agent_rft.contracts.errors import Halted, InfraError, UserError
from agent_rft.contracts.layouts import Layout
from agent_rft.contracts.ports import Grader, Recorder, ToolBox
from agent_rft.contracts.training import OnStep, Outcome, TrainingJob
from agent_rft.rollouts.templates import ChatTemplate
from agent_rft.training.journal import MetricsFile
from agent_rft.training.nemo.compat_v0_7_0 import patched, patches
from agent_rft.training.nemo.environment import Post, ToolEnvironment
from agent_rft.training.nemo.failures import plainly
from agent_rft.training.nemo.policy import GuardedPolicy
from agent_rft.training.nemo.ports import ReferenceModel
from agent_rft.training.nemo.prompts import Prompt, Prompts, check_room, training_order, validation_order
from agent_rft.training.nemo.ray_session import on_this_node
from agent_rft.training.nemo.recipe import nemo_config
from agent_rft.training.nemo.reference import VllmReference, WorkerGroupReference
from agent_rft.training.nemo.rollouts import Rollouts
from agent_rft.training.nemo.watch import State, Watch, keep_state, state_in

STEP_PREFIX = "step_"
STOP_SECONDS = 5.0
CLOSE_SECONDS = 90.0
"""A recorder whose store is away waits a minute for it, and then writes its cards to a file."""
CPU_WORKER = "agent_rft.training.nemo.cpu_worker.CpuPolicyWorker"
ADAPTER_OFF_WORKER = "agent_rft.training.nemo.megatron_worker.AdapterOffWorker"
"""Named, not imported: one needs peft, the other Megatron, and NVIDIA's container has neither where this runs."""


class Speaker(msgspec.Struct, frozen=True):
    """What turns words into tokens for this model."""

    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate
    turn_ends: tuple[int, ...]


class Live:
    """A policy and the generation that speaks for it, after training."""

    def __init__(self, policy: Any, generation: Any, clusters: Sequence[Any], colocated: bool) -> None:
        self.generation = generation
        self._policy, self._clusters, self._colocated = policy, clusters, colocated

    def take_newest_weights(self) -> None:
        grpo.refit_policy_generation(self._policy, self.generation, self._colocated)

    def close(self) -> None:
        if not ray.is_initialized():  # it has ended, and they with it
            return
        self._policy.shutdown()
        self.generation.shutdown()
        for cluster in self._clusters:  # both may be one
            cluster.shutdown()


def train(
    job: TrainingJob,
    layout: Layout,
    speaker: Speaker,
    tools: ToolBox,
    grader: Grader,
    recorder: Recorder,
    on_step: OnStep,
    posts: dict[str, Any],
    holdouts: Sequence[Grader] = (),
) -> tuple[Outcome, Live | None]:
    """Blocks until the last step, or until a guard has ended it. The engine is left standing after a run that came to its end:
    it can let the tuned model speak before anything is converted. A run that had come to its end before is put up again.

    `posts`: holds the environments while there are any, for whoever ends the run from outside."""
    check_room([*job.train_rows, *job.val_rows], speaker.template, job.limits)
    folder = Path(job.run_dir) / "checkpoints"
    order = training_order(job.train_rows, job.algorithm, job.seed)
    steps = len(order) // job.algorithm.batch_size
    watch = Watch(
        job,
        MetricsFile(Path(job.run_dir) / "metrics.jsonl"),
        on_step,
        steps,
        _where_it_stands(folder, job.resume),
        holdouts=holdouts,
        measures_floor=layout.reference.engine == "dedicated_vllm",
    )
    live = None
    if watch.halt:  # a guard has ended the run before, and would not have these weights now
        watch.close()
    else:
        with environments(posts, job, layout.environment_actors, tools, grader, recorder):
            rollouts = Rollouts(
                watch,
                posts,
                recorder,
                rows={row.id: row for row in (*job.train_rows, *job.val_rows)},
                limits=job.limits,
                run_id=job.run_id,
                tenant=job.tenant,
                versions=job.versions,
                group=job.algorithm.rollouts_per_prompt,
                call_cost=job.algorithm.call_cost,
            )
            live = _run(job, layout, speaker, order, watch, rollouts, posts, recorder)
    recorder.flush()
    newest = newest_checkpoint(folder)
    outcome = Outcome(
        checkpoint=str(newest) if newest else job.model.path,
        steps=watch.step,
        total_steps=steps,
        metrics=tuple(watch.lines),
        halted=watch.halt.what if watch.halt else "",
        cure=watch.halt.cure if watch.halt else "",
    )
    return outcome, live


def _where_it_stands(folder: Path, resume: bool) -> State:
    newest = newest_checkpoint(folder)
    if newest is None:
        return State()
    if not resume:
        raise UserError(f"{folder} holds checkpoints of an earlier run", "resume it, or choose another run id")
    state = state_in(newest)
    if state is None:
        raise UserError(f"checkpoint {newest} is broken: its watch.json is missing", f"remove {newest} and resume from the one before it")
    return state


def newest_checkpoint(folder: Path) -> Path | None:
    """As NeMo RL's own manager chooses it; one that is being written has another name."""
    steps = [path for path in folder.glob(f"{STEP_PREFIX}*") if path.name.removeprefix(STEP_PREFIX).isdigit()]
    return max(steps, key=lambda path: int(path.name.removeprefix(STEP_PREFIX)), default=None)


@contextmanager
def environments(
    posts: dict[str, Any], job: TrainingJob, actors: int, tools: ToolBox, grader: Grader, recorder: Recorder
) -> Generator[None]:
    """So many processes that call tools, grade and record, put into `posts` by the task names that send rollouts to them."""
    post = Post(
        rows={row.id: row for row in (*job.train_rows, *job.val_rows)},
        model_path=job.model.path,
        run_id=job.run_id,
        tenant=job.tenant,
        versions=job.versions,
        call_cost=job.algorithm.call_cost,
    )
    actor = ray.remote(num_cpus=0, scheduling_strategy=on_this_node(), max_concurrency=10_000)(ToolEnvironment)
    posts.update({f"agent-{i}": actor.remote(post, tools, grader, recorder) for i in range(actors)})
    try:
        ray.get([one.ready.remote() for one in posts.values()])
        yield
    except BaseException as error:
        for trouble in ended(posts):
            error.add_note(trouble.what)
        raise
    for trouble in ended(posts):
        raise trouble


def ended(posts: dict[str, Any]) -> list[UserError | InfraError]:
    """Ends the environments, each once its cards are safe; answers what went wrong with that."""
    if not ray.is_initialized():
        return []
    closing = [one.close.remote() for one in posts.values()]
    done, late = ray.wait(closing, num_returns=len(closing), timeout=CLOSE_SECONDS) if closing else ([], [])
    troubles = [trouble for one in done if (trouble := _trouble(one))]
    if late:
        troubles.append(InfraError("environments", f"{len(late)} did not close within {CLOSE_SECONDS:g} s; cards may be lost"))
    while posts:
        ray.kill(posts.popitem()[1])
    return troubles


def stop(posts: dict[str, Any], training: Future[Any]) -> None:
    """Ends a training from outside: its cards first, then Ray, in which its thread waits. The thread has a moment to see it."""
    troubles = ended(posts)
    wait([training], STOP_SECONDS)
    ray.shutdown()
    wait([training], STOP_SECONDS)
    for trouble in troubles:
        raise trouble


def _trouble(closing: Any) -> UserError | InfraError | None:
    try:
        ray.get(closing)
    except RayError as error:
        return plainly(error)
    return None


def _run(
    job: TrainingJob,
    layout: Layout,
    speaker: Speaker,
    order: Sequence[Prompt],
    watch: Watch,
    rollouts: Rollouts,
    posts: Mapping[str, Any],
    recorder: Recorder,
) -> Live | None:
    """Trains; answers the engine as it stands then, or None where a guard has ended it."""
    config = master_config(job, layout, speaker, steps=len(order) // job.algorithm.batch_size)
    names = list(posts)
    train_set = Prompts(job.train_rows, order, speaker.template, names)
    val_set = Prompts(job.val_rows, validation_order(job.val_rows, job.val_samples), speaker.template, names)
    factory = functools.partial(
        GuardedPolicy,
        watch=watch,
        reference=reference_of(layout, config.policy, speaker.tokenizer, job.algorithm.temperature),
        adapter_off=layout.reference.engine == "adapter_off",
        worker=worker_of(layout),
    )
    with patched(patches(watch, rollouts, _generation_on_cpu() if layout.workers == "cpu" else None)):
        # the one place that unpacks NeMo RL's thirteen
        policy, generation, _, clusters, loader, val_loader, loss, logger, checkpointer, saved, config, _, _ = grpo.setup(
            config, speaker.tokenizer, train_set, val_set, policy_factory=factory
        )
        live = Live(policy, generation, clusters, layout.generation.colocated)
        try:
            _listen(logger, watch)
            _complete(checkpointer, watch, posts, recorder)
            if watch.unfinished:
                watch.begin()
                grpo.grpo_train(
                    policy, generation, loader, val_loader, speaker.tokenizer, loss, posts, posts, logger, checkpointer, saved, config
                )
        except Halted as reason:
            watch.broken(reason)
        except BaseException:
            live.close()
            raise
        finally:
            watch.close()
    if watch.halt:
        live.close()
        return None
    live.take_newest_weights()
    return live


def _generation_on_cpu() -> type:
    from agent_rft.training.nemo.cpu_generation import CpuGeneration

    return CpuGeneration


def worker_of(layout: Layout) -> str | None:
    """Another worker class than NeMo RL's own, where one is needed."""
    if layout.workers == "cpu":
        return CPU_WORKER
    return ADAPTER_OFF_WORKER if layout.reference.engine == "adapter_off" else None


def reference_of(layout: Layout, policy: dict[str, Any], tokenizer: PreTrainedTokenizerBase, temperature: float) -> ReferenceModel | None:
    """A reference on a machine of its own, placed before setup() shares out the GPUs; None where the policy answers for it."""
    wanted = layout.reference
    if wanted.engine == "dedicated_worker":
        resource = None if layout.workers == "cpu" else wanted.resource
        return WorkerGroupReference(policy, tokenizer, worker=worker_of(layout), resource=resource)
    if wanted.engine == "dedicated_vllm":
        return VllmReference(wanted, policy["model_name"], longest=policy["max_total_sequence_length"], temperature=temperature)
    return None


def master_config(job: TrainingJob, layout: Layout, speaker: Speaker, steps: int) -> Any:
    tree = nemo_config(job, layout, speaker.turn_ends, steps)
    tree["policy"]["generation"] = configure_generation_config(tree["policy"]["generation"], speaker.tokenizer)
    return grpo.MasterConfig(**tree)


class _StepLog(LoggerInterface):
    """Our logger, beside NeMo RL's own: it hears when a step is over."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def log_metrics(
        self, metrics: dict[str, Any], step: int, prefix: str | None = "", step_metric: str | None = None, step_finished: bool = False
    ) -> None:
        if step_finished:
            self._watch.step_finished()

    def log_hyperparams(self, params: Any) -> None:
        pass

    def log_histogram(self, histogram: list[Any], step: int, name: str) -> None:
        pass

    def log_plot(self, figure: Any, step: int, name: str) -> None:
        pass


def _listen(logger: Logger, watch: Watch) -> None:
    logger.loggers.append(_StepLog(watch))
    # NeMo RL writes every token of every step as JSON, some 50 MB a step of 128 long rollouts; the job cards hold the words
    logger.log_batched_dict_as_jsonl = lambda *_: None  # pyright: ignore[reportAttributeAccessIssue]


def _complete(checkpointer: Any, watch: Watch, posts: Mapping[str, Any], recorder: Recorder) -> None:
    """A checkpoint counts once the cards of what it learnt from are durable and the watch's memory lies in it."""
    finalize = checkpointer.finalize_checkpoint

    def finalize_checkpoint(path: Any) -> None:
        ray.get([one.flush.remote() for one in posts.values()])
        recorder.flush()
        keep_state(watch.state, Path(path))
        finalize(path)

    checkpointer.finalize_checkpoint = finalize_checkpoint
