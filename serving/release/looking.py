"""What people and programs look at: drift, and what users got. One way for the pages and for the API."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

import msgspec

from agent_rft.release.drift import LARGE, MODERATE, NAMES, Comparison, Monitor
from observability import drift, levels
from observability.drift import Alarm
from observability.levels import Level
from observability.store import Store
from serving.gateway.quotas import Quotas, Slo
from serving.release.monitors import REFERENCES, Reading


class Promises(msgspec.Struct, frozen=True, kw_only=True):
    """What tenants were promised, and how much they may ask for."""

    slo: Slo = Slo()
    quotas: Quotas = Quotas()
    tenant_slos: Mapping[str, Slo] = {}
    tenant_quotas: Mapping[str, Quotas] = {}


# --- drift ------------------------------------------------------------------------------------------------------------------


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """One monitor of a service against one reference."""

    monitor: Monitor
    name: str
    reference: str
    figures: dict[str, Any]
    conclusion: str


class ServiceDrift(msgspec.Struct, frozen=True, kw_only=True):
    service: str
    looked_at: str
    """When it was last looked; UTC, ISO 8601."""
    agent: str
    runs: int
    """That were counted: the first of each session."""
    skipped: int
    """Looks at which more came than were looked at."""
    compared: list[Compared]
    missing: list[str]
    """References that there are not."""
    alarms: list[Alarm]
    """That began or ended, the newest first."""

    @property
    def standing(self) -> int:
        return sum(one.figures["alarmed"] for one in self.compared)


def drift_of(store: Store, tenant: str) -> list[ServiceDrift]:
    """Of each service that was looked at."""
    states = drift.states_of(store, tenant)
    return [_service(store, tenant, service, states) for service, name in states if name == drift.READING]


def _service(store: Store, tenant: str, service: str, states: Mapping[tuple[str, str], dict[str, Any]]) -> ServiceDrift:
    reading = msgspec.convert(states[service, drift.READING], Reading)
    known = {name: msgspec.convert(states[service, name], Comparison) for name in REFERENCES if states.get((service, name))}
    compared = [
        Compared(monitor=monitor, name=NAMES[monitor], reference=reference, figures=figures, conclusion=concluded(figures))
        for monitor in NAMES
        for reference, comparison in known.items()
        if monitor in comparison.watches and (figures := comparison.watches[monitor].figures())
    ]
    return ServiceDrift(
        service=service,
        looked_at=reading.at,
        agent=reading.agent,
        runs=reading.runs,
        skipped=reading.skipped,
        compared=compared,
        missing=[name for name in REFERENCES if name not in known],
        alarms=drift.alarms_of(store, tenant, service, 20),
    )


def concluded(figures: Mapping[str, Any]) -> str:
    """What to make of it, in words."""
    if figures["psi"] is None:
        return "No run yet."
    if figures["alarmed"]:
        return "It differs, beyond what chance and the tolerance explain. Look at the newest cards before trusting its other figures."
    beyond_chance = figures["psi"] - figures["psi_by_chance"]
    if size := "much" if beyond_chance >= LARGE else "somewhat" if beyond_chance >= MODERATE else "":
        return f"It looks {size} different, and the test is not sure of it: wait for more runs."
    return "Like the reference."


# --- what users got ---------------------------------------------------------------------------------------------------------


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    level: Level
    in_time: float | None
    """The share of turns that were answered within the promised seconds."""
    failed: float | None
    kept: bool
    """What was promised; where nothing came, it was."""


class ServiceLevels(msgspec.Struct, frozen=True, kw_only=True):
    slo: Slo
    quotas: Quotas
    levels: list[Judged]
    tokens_today: int
    """Since midnight, UTC; by the cards."""
    requests_last_minute: int


def levels_of(store: Store, tenant: str, promises: Promises, now: dt.datetime) -> ServiceLevels:
    slo, quotas = promises.tenant_slos.get(tenant, promises.slo), promises.tenant_quotas.get(tenant, promises.quotas)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    return ServiceLevels(
        slo=slo,
        quotas=quotas,
        levels=[_judged(level, slo) for level in levels.levels(store, tenant, slo.seconds, now)],
        tokens_today=levels.tokens_since(store, tenant, midnight),
        requests_last_minute=levels.turns_since(store, tenant, now - dt.timedelta(minutes=1)),
    )


def _judged(level: Level, slo: Slo) -> Judged:
    in_time, failed = (part / level.turns if level.turns else None for part in (level.in_time, level.failed))
    kept = (in_time is None or in_time >= slo.at_least) and (failed is None or failed <= slo.errors_at_most)
    return Judged(level=level, in_time=in_time, failed=failed, kept=kept)
