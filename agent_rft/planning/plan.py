"""Does a run fit, and if not, what is the smallest change that makes it fit?"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from agent_rft.planning.cost import Step, step_of
from agent_rft.planning.cures import Change, ways_out
from agent_rft.planning.in_process import cpu_worker_budgets, local_budgets
from agent_rft.planning.megatron import generation_gpus, megatron_budgets
from agent_rft.planning.setup import Budget, Setup


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    setup: Setup
    budgets: tuple[Budget, ...]
    step: Step
    fits: bool
    why: str
    """What does not fit, or how close it is where it does."""
    cures: tuple[Change, ...]
    """Changes that make it fit, smallest first; each was planned again and does."""

    @property
    def cure(self) -> str:
        """Empty where there is nothing to mend."""
        if self.fits:
            return ""
        return ", or ".join(change.words for change in self.cures) or "no change that the plan knows makes it fit: take a smaller model"

    def budget(self, place: str) -> Budget | None:
        return next((budget for budget in self.budgets if budget.place == place), None)


def plan(setup: Setup) -> Plan:
    faults, budgets = tuple(layout_faults(setup)), budgets_of(setup)
    fits = not faults and all(budget.fits for budget in budgets)
    return Plan(
        setup=setup,
        budgets=budgets,
        step=step_of(setup),
        fits=fits,
        why="; ".join([*faults, *shortages(budgets)]) or _closeness(budgets),
        cures=() if fits else ways_out(setup, does_fit),
    )


def does_fit(setup: Setup) -> bool:
    return not any(layout_faults(setup)) and all(budget.fits for budget in budgets_of(setup))


def budgets_of(setup: Setup) -> tuple[Budget, ...]:
    if setup.engine == "local":
        return local_budgets(setup)
    return cpu_worker_budgets(setup) if setup.layout.workers == "cpu" else megatron_budgets(setup)


def layout_faults(setup: Setup) -> Iterator[str]:
    """Layouts that cannot be, however large the memory."""
    layout, shape = setup.layout, setup.shape
    if setup.engine == "local":
        return
    if layout.reference.engine == "adapter_off" and not setup.model.lora:
        yield "reference adapter_off needs adapters, and model.lora is null"
    if layout.workers == "cpu":
        return
    parallel, generation, gpus = layout.parallel, layout.generation, layout.training_gpus
    cut = f"TP{parallel.tensor} x PP{parallel.pipeline} x CP{parallel.context}"
    if gpus < parallel.size or gpus % parallel.size:
        yield f"{cut} = {parallel.size} does not divide the {gpus} GPUs that train"
    if (generators := generation_gpus(setup)) < generation.tensor or generators % generation.tensor:
        yield f"generation's TP{generation.tensor} does not divide the {generators} GPUs that generate"
    if shape.heads % parallel.tensor or shape.heads % generation.tensor:
        yield f"{shape.heads} attention heads do not divide by TP{parallel.tensor} and TP{generation.tensor}"
    if shape.layers % parallel.pipeline:
        yield f"{shape.layers} layers do not divide by PP{parallel.pipeline}"


def shortages(budgets: tuple[Budget, ...]) -> Iterator[str]:
    for budget in budgets:
        if budget.short:
            yield f"{budget.place}: {budget.short}"
        elif budget.margin < 0:
            heaviest = max(budget.items, key=lambda item: item.gb)
            yield f"{budget.place} needs {budget.total:.1f} GB of {budget.limit:g}, {heaviest.gb:.1f} of them {heaviest.name}"


def _closeness(budgets: tuple[Budget, ...]) -> str:
    tight = [f"{budget.place} with {budget.margin:.1f} GB to spare of {budget.limit:g}" for budget in budgets if budget.tight]
    return f"tight: {', '.join(tight)}" if tight else ""
