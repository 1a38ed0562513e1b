"""From the settings to what moves releases, grades live sessions and tells people, beside a server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from agent_rft.commands.grading import grader_named, holdouts_named
from agent_rft.commands.safety_suite import policy_of, suite_of
from agent_rft.contracts.errors import FaultsFound, UserError
from agent_rft.contracts.ports import Grader
from agent_rft.graders.registry import Services
from agent_rft.release.policies import check_policy
from agent_rft.settings import Settings
from observability.redaction.detectors import detectors_of
from observability.roots import LedgerFiles
from observability.store import Store
from serving.release.acts import read_policy
from serving.release.control import ControlPlan, ReleaseControl
from serving.release.evaluator import Budget
from serving.release.monitors import Monitors
from serving.release.routing import Routing

SECRET_VARIABLE = "RFT_WEBHOOK_SECRET"


def control_of(settings: Settings, store: Store, routing: Routing, *, trained_against: Grader, services: Services) -> ReleaseControl:
    wanted, kept = settings.release, settings.store
    grader = grader_named(wanted.grader, services, kept.url) if wanted.grader else trained_against
    holdouts = holdouts_named("release.holdout_graders", wanted.holdout_graders, grader, services, kept.url)
    detectors = detectors_of(kept.redact, kept.patterns, kept.tenant_patterns)
    monitors = [lambda leadership: Monitors(store, leadership, wanted.monitor_seconds)]
    files = LedgerFiles.of(store, kept.ledger)
    return ReleaseControl(plan_of(settings), store, routing, grader, holdouts, detectors, monitors, files)


def release_policy_of(settings: Settings) -> dict[str, Any]:
    """Where the suite is not there a server serves its tools all the same, and no report of another one lets a release of it through."""
    path = Path(settings.release.safety_suite)
    suite = suite_of(settings.release).hash if path.exists() else f"{path}, which is not there"
    policy = policy_of(settings.release, suite)
    try:
        check_policy(read_policy(policy))
    except FaultsFound as error:
        raise FaultsFound("release.policy has faults:", error.faults, exit_code=2) from None
    return policy


def plan_of(settings: Settings) -> ControlPlan:
    wanted = settings.release
    secret = os.environ.get(SECRET_VARIABLE, "")
    if wanted.webhook.url and not secret:
        what = f"release.webhook.url is {wanted.webhook.url}, and {SECRET_VARIABLE} is not set"
        raise UserError(what, f"export {SECRET_VARIABLE}=..., which whoever receives the words checks them with")
    budget = Budget(per_minute=wanted.gradings_per_minute, in_flight=wanted.gradings_in_flight, most_waiting=wanted.most_waiting)
    return ControlPlan(budget=budget, webhook=wanted.webhook.url or "", secret=secret)
