"""Training jobs of the shipped recipes, with made rows: the translation looks only at how many there are."""

import msgspec

from agent_rft.commands.parts import algorithm_of, guards_of, layout_of, limits_of, model_of
from agent_rft.compose import recipes, settings_for
from agent_rft.contracts.jobcards import Versions
from agent_rft.contracts.layouts import Layout
from agent_rft.contracts.rows import Row
from agent_rft.contracts.training import GuardLimits, TrainingJob

NEMO_RECIPES = [recipe for recipe in recipes() if settings_for(recipe, []).backend.name == "nemo"]


def job_watched_by(guards: GuardLimits) -> TrainingJob:
    """A job of which only the guards matter."""
    job, _ = job_and_layout(NEMO_RECIPES[0], train=0, val=0)
    return msgspec.structs.replace(job, guards=guards)


def job_and_layout(recipe: str, *overrides: str, train: int = 400, val: int = 100) -> tuple[TrainingJob, Layout]:
    settings = settings_for(recipe, list(overrides))
    job = TrainingJob(
        run_id="run-1",
        run_dir="runs/run-1",
        model=model_of(settings),
        algorithm=algorithm_of(settings),
        guards=guards_of(settings),
        limits=limits_of(settings),
        train_rows=rows(train),
        val_rows=rows(val),
        val_samples=settings.evaluation.val_samples,
        evaluate_every=settings.evaluation.every,
        checkpoint_every=settings.backend.checkpoint_every,
        keep_checkpoints=settings.backend.keep_checkpoints,
        seed=settings.seed,
        resume=False,
        versions=Versions(code="0", checkpoint="base"),
        tenant="default",
        rollouts_in_flight=settings.backend.rollouts_in_flight,
    )
    return job, layout_of(settings)


def rows(count: int) -> tuple[Row, ...]:
    return tuple(Row(id=f"row-{number}", prompt="?", reference_answer=number) for number in range(count))
