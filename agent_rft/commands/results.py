"""What a training run leaves in its folder: summary.json, curves.png, quadrants.png, report.html, and the last lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import msgspec

from agent_rft.commands.lineage import (
    findings_as_facts,
    halt_flagged,
    pointed_at,
    queue_filled,
    register_agents,
    register_checkpoint,
    speaks_again,
)
from agent_rft.commands.parts import Parts, guards_of, model_of
from agent_rft.commands.report import REPORT, keep_in, told_of
from agent_rft.commands.run_folder import RunFolder
from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.jobcards import Versions
from agent_rft.contracts.training import Outcome, StepMetrics
from agent_rft.evaluation.compare import Comparison, compare
from agent_rft.evaluation.figures import watched_by
from agent_rft.evaluation.next_step import next_step
from agent_rft.evaluation.plots import plot_curves, plot_quadrants
from agent_rft.evaluation.prior import PriorCheck
from agent_rft.evaluation.report.page import render_report
from agent_rft.evaluation.scoreboard import describe_comparison
from agent_rft.evaluation.suite import summarise
from agent_rft.training.journal import MetricsFile
from observability.cards import count_cards


def written_metrics(folder: RunFolder) -> tuple[StepMetrics, ...]:
    return tuple(MetricsFile(folder.path / "metrics.jsonl").lines())


def undone_metrics(folder: RunFolder) -> tuple[StepMetrics, ...]:
    return tuple(MetricsFile(folder.path / "metrics.jsonl").undone())


class Results(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    parts: Parts
    prior: PriorCheck
    outcome: Outcome
    base: list[GradedRollout]
    tuned: list[GradedRollout]
    """Empty where a guard halted the run."""
    seconds: float

    def leave(self) -> Iterator[str]:
        """Write everything; the lines to print are the outcome in words."""
        summary = self.summary()
        folder = self.parts.folder
        plot_curves(self.outcome.metrics, folder.path / "curves.png", watched_by(guards_of(self.parts.settings)))
        folder.keep("summary.json", json.dumps(summary, indent=2).encode() + b"\n")
        told = told_of(folder)
        folder.keep(REPORT, render_report(told).encode())
        if self.comparison:
            plot_quadrants(self.comparison, folder.path / "quadrants.png")
            yield describe_comparison(self.comparison)
            yield (
                f"val_reward {self.comparison.base_reward:.2f} -> {self.comparison.tuned_reward:.2f}, "
                f"tool_calls {self.comparison.base_calls:.1f} -> {self.comparison.tuned_calls:.1f}, "
                f"kl_to_ref {summary['kl_to_ref'] or 0:.3f}, {self.seconds:.0f} s"
            )
        figures = {name: summary[name] for name in ("steps", "base_val_reward", "val_reward")}
        facts = {"folder": self.outcome.checkpoint, **figures, **findings_as_facts((*undone_metrics(folder), *self.outcome.metrics))}
        register_checkpoint(self.parts, self._versions.checkpoint, facts)
        if self.comparison:
            yield from register_agents(self.parts, self._versions.checkpoint, self.comparison)
        yield from halt_flagged(self.parts, self.outcome)
        yield from keep_in(self.parts.store, told, self.parts.settings.store)
        yield from queue_filled(self.parts)
        yield self._next_step

    @cached_property
    def comparison(self) -> Comparison | None:
        return compare(self.base, self.tuned) if self.tuned else None

    def summary(self) -> dict[str, Any]:
        compared, base = self.comparison, summarise(self.base)
        self.parts.recorder.flush()
        drift = [line.kl_to_ref for line in self.outcome.metrics if line.kl_to_ref is not None]
        return {
            "run_id": self.parts.folder.run_id,
            "recipe": self.parts.settings.recipe,
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "base_val_reward": compared.base_reward if compared else base.mean_reward,
            "val_reward": compared.tuned_reward if compared else None,
            "base_tool_calls": compared.base_calls if compared else base.mean_tool_calls,
            "tool_calls": compared.tuned_calls if compared else None,
            "kl_to_ref": drift[-1] if drift else None,
            "seconds": round(self.seconds, 1),
            "steps": self.outcome.steps,
            "halted": self.outcome.halted,
            "next_step": self._next_step,
            "prior": {bucket: getattr(self.prior, bucket) for bucket in ("verdict", "never", "sometimes", "always", "unmeasured")},
            "checkpoint": self.outcome.checkpoint,
            "cards_in_store": self._cards_in_store(),
            "cards_refused": self.parts.recorder.refused,
            "versions": msgspec.to_builtins(self._versions),
        }

    def _cards_in_store(self) -> int:
        store = self.parts.store
        return count_cards(store, self.parts.folder.run_id) if store else self.parts.recorder.acknowledged

    @property
    def _versions(self) -> Versions:
        tuned = self.parts.backend.name_of(model_of(self.parts.settings), self.outcome.checkpoint)
        return msgspec.structs.replace(self.parts.versions, checkpoint=tuned)

    @property
    def _next_step(self) -> str:
        outcome, folder = self.outcome, str(self.parts.folder.path)
        look_at = pointed_at(outcome, but="infra")
        recipe, guard = self.parts.settings.recipe, speaks_again(outcome)
        return next_step(folder, self.comparison, halted=outcome.halted, cure=outcome.cure, look_at=look_at, guard=guard, recipe=recipe)
