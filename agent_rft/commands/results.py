"""What a training run leaves in its folder: summary.json, curves.png, quadrants.png, report.html, and the last lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from agent_rft.commands.parts import Parts
from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.training import Outcome
from agent_rft.evaluation.compare import Comparison, compare, describe_comparison
from agent_rft.evaluation.next_step import next_step
from agent_rft.evaluation.plots import plot_curves, plot_quadrants
from agent_rft.evaluation.prior import PriorCheck
from agent_rft.evaluation.report import RunReport, write_report


class Results(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    folder: Path
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
        (self.folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        plot_curves(self.outcome.metrics, self.folder / "curves.png")
        write_report(self._report(), self.folder / "report.html")
        if self.comparison:
            plot_quadrants(self.comparison, self.folder / "quadrants.png")
            yield describe_comparison(self.comparison)
            yield (
                f"val_reward {self.comparison.base_reward:.2f} -> {self.comparison.tuned_reward:.2f}, "
                f"tool_calls {self.comparison.base_calls:.1f} -> {self.comparison.tuned_calls:.1f}, "
                f"kl_to_ref {summary['kl_to_ref'] or 0:.3f}, {self.seconds:.0f} s"
            )
        yield self._next_step

    @cached_property
    def comparison(self) -> Comparison | None:
        return compare(self.base, self.tuned) if self.tuned else None

    def summary(self) -> dict[str, Any]:
        compared, settings = self.comparison, self.parts.settings
        drift = [line.kl_to_ref for line in self.outcome.metrics if line.kl_to_ref is not None]
        return {
            "run_id": self.folder.name,
            "recipe": settings.recipe,
            "base_val_reward": compared.base_reward if compared else None,
            "val_reward": compared.tuned_reward if compared else None,
            "base_tool_calls": compared.base_calls if compared else None,
            "tool_calls": compared.tuned_calls if compared else None,
            "kl_to_ref": drift[-1] if drift else None,
            "seconds": round(self.seconds, 1),
            "steps": self.outcome.steps,
            "halted": self.outcome.halted,
            "prior": {bucket: getattr(self.prior, bucket) for bucket in ("verdict", "never", "sometimes", "always", "unmeasured")},
            "checkpoint": self.outcome.checkpoint,
            "cards_recorded": self.parts.recorder.acknowledged,
            "versions": msgspec.to_builtins(self._versions),
        }

    @property
    def _versions(self) -> Any:
        return msgspec.structs.replace(self.parts.versions, checkpoint=self.outcome.checkpoint)

    @property
    def _next_step(self) -> str:
        return next_step(str(self.folder), self.comparison, halted=self.outcome.halted, cure=self.outcome.cure)

    def _report(self) -> RunReport:
        return RunReport(
            run_id=self.folder.name,
            recipe=self.parts.settings.recipe,
            finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=self.seconds,
            versions=self._versions,
            settings=self.parts.settings.model_dump(mode="json"),
            prior=self.prior,
            metrics=self.outcome.metrics,
            comparison=self.comparison,
            base=tuple(self.base),
            tuned=tuple(self.tuned),
            halted=self.outcome.halted,
            next_step=self._next_step,
        )
