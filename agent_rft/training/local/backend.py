"""The embedded engine behind the interface that everything above it knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from agent_rft.contracts.ports import Grader, Recorder, Sampler, ToolBox
from agent_rft.contracts.training import Model, OnStep, Outcome, TrainingJob
from agent_rft.training.journal import MetricsFile
from agent_rft.training.local.checkpoints import MANIFEST, PREFIX, Checkpoints
from agent_rft.training.local.engine import LocalEngine
from agent_rft.training.local.loop import train
from agent_rft.training.local.models import load_policy, sampler_of, use_threads
from agent_rft.training.pretrained import weights_name


class LocalBackend:
    """One process; a CPU or one GPU."""

    def name_of(self, model: Model, checkpoint: str | None) -> str:
        folder = Path(checkpoint).absolute() if checkpoint else Path()
        step = folder.name.removeprefix(PREFIX)
        if step.isdigit() and folder.parent.name == "checkpoints" and (folder / MANIFEST).exists():  # runs/NAME/checkpoints/step-000040
            return f"{folder.parent.parent.name}/step-{int(step)}"
        return weights_name(checkpoint or model.path)

    def sampler(self, model: Model, checkpoint: str | None, temperature: float) -> Sampler:
        return self.samplers(model, checkpoint)(temperature)

    def samplers(self, model: Model, checkpoint: str | None) -> Callable[[float], Sampler]:
        """One set of weights that speaks at any temperature."""
        use_threads(model.threads)
        folder = Path(checkpoint) if checkpoint else None
        if folder and (folder / MANIFEST).exists():
            Checkpoints(folder.parent, 1).checked(folder)
        policy, name = load_policy(model, checkpoint=folder, trainable=False), self.name_of(model, checkpoint)
        return lambda temperature: sampler_of(policy, model, temperature, lambda: name)

    async def train(
        self, job: TrainingJob, tools: ToolBox, grader: Grader, recorder: Recorder, on_step: OnStep, holdouts: Sequence[Grader] = ()
    ) -> Outcome:
        use_threads(job.model.threads)
        folder = Path(job.run_dir)
        checkpoints = Checkpoints(folder / "checkpoints", job.keep_checkpoints, job.versions)
        engine = LocalEngine(job.model, job.algorithm, checkpoints, job.run_id, job.seed, job.resume)
        return await train(job, engine, MetricsFile(folder / "metrics.jsonl"), tools, grader, recorder, on_step, holdouts)
