"""Does a run fit, and if not, what is the smallest change that makes it fit?"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from agent_rft.contracts.errors import Fault
from agent_rft.planning.cost import Step, step_of
from agent_rft.planning.cures import Change, ways_out
from agent_rft.planning.in_process import cpu_worker_budgets, local_budgets
from agent_rft.planning.megatron import megatron_budgets
from agent_rft.planning.setup import Budget, Setup
from agent_rft.training.nemo.layout import arrangement_faults


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    setup: Setup
    faults: tuple[Fault, ...]
    """Of the layout, which no memory mends."""
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
        if self.cures:
            return ", or ".join(change.words for change in self.cures)
        if self.faults:
            return "; ".join(f"{fault.where}: {fault.cure}" for fault in self.faults)
        return "no change that the plan knows makes it fit: take a smaller model"

    def budget(self, place: str) -> Budget | None:
        return next((budget for budget in self.budgets if budget.place == place), None)


def plan(setup: Setup) -> Plan:
    faults, budgets = layout_faults(setup), budgets_of(setup)
    fits = not faults and all(budget.fits for budget in budgets)
    return Plan(
        setup=setup,
        faults=faults,
        budgets=budgets,
        step=step_of(setup),
        fits=fits,
        why="; ".join([*(f"{fault.where}: {fault.what}" for fault in faults), *shortages(budgets)]) or _closeness(budgets),
        cures=() if fits else ways_out(setup, does_fit),
    )


def does_fit(setup: Setup) -> bool:
    return not layout_faults(setup) and all(budget.fits for budget in budgets_of(setup))


def budgets_of(setup: Setup) -> tuple[Budget, ...]:
    if setup.engine == "local":
        return local_budgets(setup)
    return cpu_worker_budgets(setup) if setup.layout.workers == "cpu" else megatron_budgets(setup)


def layout_faults(setup: Setup) -> tuple[Fault, ...]:
    """What the engine refuses before it starts. The local one has no layout."""
    if setup.engine == "local":
        return ()
    return tuple(arrangement_faults(setup.model, setup.algorithm, setup.limits, setup.layout, setup.shape))


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
