"""NeMo RL behind the interface that everything above it knows."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from agent_rft.contracts.errors import FaultsFound
from agent_rft.contracts.layouts import Layout
from agent_rft.contracts.ports import Grader, Recorder, Sampler, ToolBox
from agent_rft.contracts.rollouts import Limits
from agent_rft.contracts.training import Model, OnStep, Outcome, StepMetrics, TrainingJob
from agent_rft.evaluation.next_step import found_by
from agent_rft.training.nemo import find
from agent_rft.training.nemo.config_tree import unknown_keys, value_faults
from agent_rft.training.nemo.decided import decided_keys
from agent_rft.training.nemo.keys import known_keys
from agent_rft.training.nemo.layout import layout_faults, padded_length
from agent_rft.training.nemo.recipe import nemo_config
from agent_rft.training.nemo.terminal import last_words, other_threads_into
from agent_rft.training.pretrained import generation_config_of, load_tokenizer, template_of, weights_name

if TYPE_CHECKING:
    from agent_rft.training.nemo.launch import Live, Speaker

T = TypeVar("T")
WEIGHTS = Path("policy") / "weights"


class NemoBackend:
    """Several processes, any number of GPUs; or a few on this machine's CPU. NeMo RL itself is imported when it is needed."""

    def __init__(self, layout: Layout, limits: Limits) -> None:
        self._layout, self._limits = layout, limits
        self._live: tuple[tuple[str | None, float], Any, Callable[[], object]] | None = None
        """What can speak now: its checkpoint and temperature, the generation, and how to end it."""

    def name_of(self, model: Model, checkpoint: str | None) -> str:
        folder = Path(checkpoint) if checkpoint else None
        if folder and (folder / WEIGHTS).is_dir():  # runs/NAME/checkpoints/step_40
            return f"{folder.parent.parent.name}/step-{int(folder.name.rpartition('_')[2])}"
        return weights_name(checkpoint or model.path)

    def sampler(self, model: Model, checkpoint: str | None, temperature: float) -> Sampler:
        """One at a time: what spoke before leaves the GPUs first. The tuned model speaks from where it was trained."""
        find.prepare()
        from agent_rft.training.nemo.failures import one_error
        from agent_rft.training.nemo.ray_session import ensure_ray
        from agent_rft.training.nemo.sampler import GenerationSampler
        from agent_rft.training.nemo.speaking import start_generation

        speaker = self._speaker(model)
        if self._live is None or self._live[0] != (checkpoint, temperature):
            self.close()
            ensure_ray(self._layout)
            folder = Path(checkpoint) / WEIGHTS if checkpoint else None
            weights = str(folder if folder and folder.is_dir() else checkpoint or model.path)
            with one_error():
                started = start_generation(self._layout, self._limits, model, weights, speaker, temperature)
            self._live = ((checkpoint, temperature), *started)
        return GenerationSampler(
            self._live[1],
            speaker.tokenizer,
            speaker.template,
            speaker.turn_ends,
            longest=padded_length(self._limits, self._layout),
            asynchronous=self._layout.generation.asynchronous,
            checkpoint=self.name_of(model, checkpoint),
        )

    async def train(
        self, job: TrainingJob, tools: ToolBox, grader: Grader, recorder: Recorder, on_step: OnStep, holdouts: Sequence[Grader] = ()
    ) -> Outcome:
        """NeMo RL's loop blocks, and runs event loops of its own: so it has a thread, and its words a file. Ctrl-C reaches this
        side alone."""
        check_translation(job, self._layout)
        find.prepare()
        from agent_rft.training.nemo.failures import one_error, wordless_end
        from agent_rft.training.nemo.launch import stop, train
        from agent_rft.training.nemo.ray_session import ensure_ray

        self.close()
        ensure_ray(self._layout)
        speaker, loop, posts = self._speaker(job.model), asyncio.get_running_loop(), dict[str, Any]()
        log = Path(job.run_dir) / "nemo.log"

        def shown(line: StepMetrics, total: int) -> None:
            loop.call_soon_threadsafe(on_step, line, total)

        goes_on = f'`make resume RUN={found_by(job.run_dir)}`, with ARGS="key=value" for other settings'

        def work() -> tuple[Outcome, Live | None]:
            with one_error(str(log), goes_on):
                return train(job, self._layout, speaker, tools, grader, recorder, shown, posts, holdouts)

        with last_words(f"error: infrastructure: {wordless_end(goes_on)}"), other_threads_into(log):
            training = in_thread(work)
            try:
                outcome, live = await asyncio.wrap_future(training)
            except asyncio.CancelledError:
                stop(posts, training)
                raise
        if live:
            self._live = ((outcome.checkpoint, job.algorithm.temperature), live.generation, live.close)
        return outcome

    def close(self) -> None:
        """Whatever stands ready to speak is ended."""
        if self._live:
            self._live[2]()
        self._live = None

    def _speaker(self, model: Model) -> Speaker:
        from agent_rft.training.nemo.launch import Speaker

        tokenizer = load_tokenizer(model.path)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        return Speaker(tokenizer, *template_of(tokenizer, generation_config_of(model.path)))


def check_translation(job: TrainingJob, layout: Layout) -> None:
    """Everything that is wrong with the layout and with keys of NeMo RL's, before anything is started."""
    faults = layout_faults(job, layout)
    faults += unknown_keys(nemo_config(job, layout, (), 1), known_keys(), layout.overrides) + decided_keys(layout.overrides)
    if faults:
        raise FaultsFound("this layout does not work:", faults, exit_code=2)


def check_values(job: TrainingJob, layout: Layout) -> None:
    """As NeMo RL itself reads its configuration, which has to be there for it: an override of the wrong kind is found."""
    find.prepare()
    from nemo_rl.algorithms.grpo import MasterConfig

    try:
        MasterConfig(**nemo_config(job, layout, (), 1))
    except ValidationError as error:
        faults = value_faults(error.errors(), layout.overrides)
        raise FaultsFound("NeMo RL does not take this configuration:", faults, exit_code=2) from None


def in_thread(work: Callable[[], T]) -> Future[T]:
    """A thread that does not keep the process alive: Ctrl-C ends a run now, and it resumes from its last checkpoint."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # Ctrl-C ends who waits for it, and not it

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="nemo-rl", daemon=True).start()
    return future
