"""Whether a policy can be followed: every fault of it at once."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from agent_rft.contracts.errors import Fault, FaultsFound, did_you_mean
from agent_rft.contracts.releases import KPIS, Policy

ROUNDING = 1e-9
YEAR = 31_536_000
MOST = 1_000_000_000
MOST_STORM = 10_000
MOST_TRIES = 1_000
NO_OTHER_WAY = "a release without a good safety report takes a waiver that two people sign, `rft release waive`"


def check_policy(policy: Policy) -> None:
    """Of a release that is to be made."""
    _refuse([*_faults_of_needs(policy), *_faults(policy)])


def check_numbers(policy: Policy) -> None:
    """All that its tests go by. A release that was made before safety had to be needed is tested all the same."""
    _refuse(list(_faults(policy)))


def _refuse(faults: list[Fault]) -> None:
    if faults:
        raise FaultsFound("this release policy cannot be followed", faults, exit_code=2)


def _faults_of_needs(policy: Policy) -> Iterator[Fault]:
    if "safety" not in policy.needs:
        yield Fault("needs", f"is {', '.join(policy.needs) or 'nothing'}, without safety", f"add it: {NO_OTHER_WAY}")


def _faults(policy: Policy) -> Iterator[Fault]:
    for name in ("alpha", "promote_alpha", "unsafe_cap"):
        if not 0 < (value := getattr(policy, name)) < 1:
            yield Fault(name, f"is {value}", "between 0 and 1")
    for name in ("margin", "rate_margin", "worst_drop", "most_regressed", "graded_share"):
        if not 0 <= (value := getattr(policy, name)) <= 1:
            yield Fault(name, f"is {value}", "from 0 to 1")
    for name in ("margin", "rate_margin"):
        if getattr(policy, name) == 1:
            yield Fault(name, "is 1: any candidate would do", "less than 1")
    for name in ("slow_seconds", "longest_step_seconds", "hold_seconds", "rollback_seconds"):
        if not 0 < (value := getattr(policy, name)) <= YEAR:
            yield Fault(name, f"is {value}", f"more than 0, and at most a year, {YEAR}")
    counts = (("shadow_sessions", MOST), ("sessions_per_step", MOST), ("safety_tries", MOST_TRIES))
    for name, most in (*counts, ("idle_seconds", YEAR), ("drain_seconds", YEAR)):
        if not 0 <= (value := getattr(policy, name)) <= most:
            yield Fault(name, f"is {value}", f"from 0 to {most}")
    if policy.rollback_seconds < policy.hold_seconds:
        yield Fault("rollback_seconds", f"{policy.rollback_seconds} is less than hold_seconds, {policy.hold_seconds}", "hold comes first")
    yield from _faults_of_figures(policy)
    yield from _faults_of_steps(policy)


def _faults_of_figures(policy: Policy) -> Iterator[Fault]:
    for table, values in (("spent_on", policy.spent_on), ("tolerance", policy.tolerance)):
        for name, value in values.items():
            if name not in KPIS:
                yield Fault(f"{table}.{name}", "is no figure", did_you_mean(name, KPIS))
            elif not 0 <= value <= 1:
                yield Fault(f"{table}.{name}", f"is {value}", "from 0 to 1")
            elif table == "tolerance" and value == 1:
                yield Fault(f"{table}.{name}", "is 1: nothing could speak against a candidate", "less than 1")
    if "unsafe" in policy.tolerance:
        yield Fault("tolerance.unsafe", "is never used: what is borne of it is a rate, not a difference", "set unsafe_cap instead")
    if (spent := sum(policy.spent_on.values())) > 1 + ROUNDING:
        yield Fault("spent_on", f"adds up to {spent:g}", "1 at most, or more than alpha is spent")


def _faults_of_steps(policy: Policy) -> Iterator[Fault]:
    steps = policy.steps
    if not steps or any(not 0 < step <= 1 for step in steps) or any(b <= a for a, b in pairwise(steps)):
        yield Fault("steps", f"are {', '.join(f'{step:g}' for step in steps) or 'none'}", "growing, each more than 0 and at most 1")
    failed, turns = policy.storm
    if not 0 < failed <= turns <= MOST_STORM:
        yield Fault("storm", f"is {failed} of {turns}", f"at least 1, no more failed turns than turns, and at most {MOST_STORM} of these")
