"""Releases over HTTP: `/v1/releases`, `/v1/agents`. What an operator does at the machine, they do here without a shell."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import msgspec
from litestar import Request, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, JSONBody

from agent_rft.contracts.agents import Agent
from agent_rft.contracts.releases import Event, Release
from agent_rft.release.rules import waits_for
from observability import outbox, registry, releases, turns
from observability.access import Caller, Scope
from observability.accesses import note
from observability.outbox import Word
from observability.registry import Changed, Registered, Report
from observability.roots import LedgerFiles
from observability.store import Store
from serving.gate import Gate, caller_of
from serving.openapi import BEARER
from serving.release import acts
from serving.release.acts import policy_wished
from serving.release.knowing import known_of
from serving.release.waivers import SafetyWaived, safety_waived

Asking = Request[Any, Any, Any]
Number = Annotated[int, msgspec.Meta(ge=1, le=2**62)]


class NewRelease(msgspec.Struct, forbid_unknown_fields=True):
    service: str
    agent: str
    """Its id, the first digits of it, or its name."""
    first: bool = False
    """The service's first agent, straight to all."""
    policy: dict[str, Any] = {}
    """Rules other than the server's own."""


class Wish(msgspec.Struct, forbid_unknown_fields=True):
    why: str = ""


class Share(msgspec.Struct, forbid_unknown_fields=True):
    share: float | None = None
    """Null: the policy's next one."""


class Waiver(msgspec.Struct, forbid_unknown_fields=True):
    report: str
    why: str


class Back(msgspec.Struct, forbid_unknown_fields=True):
    why: str = ""
    cut: bool = False
    """Whether what it is still saying is cut off."""


class NewAgent(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    agent: Agent


class NewReport(msgspec.Struct, forbid_unknown_fields=True):
    kind: str
    passed: bool
    figures: dict[str, Any] = {}
    """evaluation and holdout: reward, and rows or regressed."""


class Standing(msgspec.Struct):
    """Where a release stands."""

    release: Release
    event: Event
    """The newest."""
    waits_for: str
    """What has to happen before it moves; empty where it is to move now, or is over."""
    sessions: Mapping[str, int]
    """That were counted, by arm."""
    grading: turns.Grading
    safety_waived: SafetyWaived | None
    """Where somebody signed that it goes on without a good safety report."""


class Told(msgspec.Struct):
    """All there is to know of a release."""

    standing: Standing
    events: list[Event]
    """Oldest first."""
    figures: dict[str, Any]
    """Of the canary, by KPI, with the curve of each test."""
    shadow_figures: dict[str, Any]


class Known(msgspec.Struct):
    """An agent and the reports of it, oldest first."""

    registered: Registered
    reports: list[Report]
    changed: list[Changed]
    """Reports that are not what was recorded."""


def release_routes(gate: Gate, files: LedgerFiles, policy: Mapping[str, Any] | None = None) -> list[HTTPRouteHandler]:
    """`policy`: the rules of a release that says nothing else. `files`: whose keys sign waivers."""
    return [*_reading(gate, files), *_making(gate, files, policy or {}), *_acting(gate, files), *_agents(gate)]


def _for(gate: Gate, scope: Scope, **more: Any) -> dict[str, Any]:
    return {"guards": [gate.needs(scope)], "security": BEARER, "tags": ["releases"], "sync_to_thread": True, **more}


def _reading(gate: Gate, files: LedgerFiles) -> list[HTTPRouteHandler]:
    store, sees = gate.store, _for(gate, "read")

    @get("/v1/releases", summary="Of each service what is on trial, what is live, and what was rolled back last", **sees)
    def list_releases(request: Asking) -> list[Standing]:
        mine = store.of(caller_of(request).tenant)
        return [_standing(mine, release, event, files) for release, event in releases.current(mine, caller_of(request).tenant)]

    @get("/v1/releases/{number:int}", summary="A release: its events, and the figures that they were decided on", **sees)
    def show(request: Asking, number: Number) -> Told:
        tenant = caller_of(request).tenant
        mine = store.of(tenant)
        release = releases.release_of(mine, tenant, number)
        told = releases.events(mine, tenant, number)
        tests = known_of(mine, release, _now()).tests
        return Told(_standing(mine, release, told[-1], files), told, tests.figures(), tests.figures(shadow=True))

    @get("/v1/webhooks", summary="What was to be told, newest first, and whether it was taken", **sees)
    def words(request: Asking) -> list[Word]:
        tenant = caller_of(request).tenant
        return outbox.of_tenant(store.of(tenant), tenant)

    return [list_releases, show, words]


def _making(gate: Gate, files: LedgerFiles, policy: Mapping[str, Any]) -> list[HTTPRouteHandler]:
    store = gate.store

    @post("/v1/releases", summary="Put an agent on trial beside the live one", **_for(gate, "operate"))
    def create(request: Asking, data: JSONBody[NewRelease]) -> Release:
        caller = caller_of(request)
        mine, rules = store.of(caller.tenant), policy_wished(policy, data.policy)
        if data.first:
            made = acts.begin_first(mine, caller.name, caller.tenant, data.service, data.agent, rules, files)
        else:
            made = acts.begin(mine, caller.name, caller.tenant, data.service, data.agent, rules)
        note(store, caller, "release made", f"{made.id} of {made.service}")
        return made

    return [create]


def _acting(gate: Gate, files: LedgerFiles) -> list[HTTPRouteHandler]:
    store = gate.store
    operates, approves = _for(gate, "operate", status_code=200), _for(gate, "approve", status_code=200)

    def done(request: Asking, number: int, what: str, act: Callable[[Store, Caller], Event]) -> Event:
        caller = caller_of(request)
        event = act(store.of(caller.tenant), caller)
        note(store, caller, f"release {what}", str(number))
        return event

    @post("/v1/releases/{number:int}/shadow", summary="Mirror live runs to it", **operates)
    def shadow(request: Asking, number: Number) -> Event:
        return done(request, number, "to shadow", lambda mine, who: acts.to_shadow(mine, who.name, who.tenant, number, files))

    @post("/v1/releases/{number:int}/canary", summary="Give it a share of the sessions", **operates)
    def canary(request: Asking, number: Number, data: JSONBody[Share]) -> Event:
        return done(request, number, "to canary", lambda mine, who: acts.to_canary(mine, who.name, who.tenant, number, data.share, files))

    @post("/v1/releases/{number:int}/promote", summary="Propose that everybody gets it; another person approves", **operates)
    def promote(request: Asking, number: Number, data: JSONBody[Wish]) -> Event:
        return done(request, number, "proposed", lambda mine, who: acts.propose(mine, who.name, who.tenant, number, data.why))

    @post("/v1/releases/{number:int}/approve", summary="Approve what another person proposed", **approves)
    def approve(request: Asking, number: Number, data: JSONBody[Wish]) -> Event:
        return done(request, number, "approved", lambda mine, who: acts.approve(mine, who.name, who.tenant, number, data.why, files))

    @post(
        "/v1/releases/{number:int}/waive",
        summary="Do without a report; without a good safety report once two people have signed",
        **approves,
    )
    def waive(request: Asking, number: Number, data: JSONBody[Waiver]) -> Event:
        return done(request, number, "report waived", lambda mine, who: acts.waive(mine, who, number, data.report, data.why, files))

    @post("/v1/releases/{number:int}/hold", summary="Nothing goes forward until it is resumed", **operates)
    def hold(request: Asking, number: Number, data: JSONBody[Wish]) -> Event:
        return done(request, number, "held", lambda mine, who: acts.hold(mine, who.name, who.tenant, number, data.why))

    @post("/v1/releases/{number:int}/resume", summary="Let it go on", **operates)
    def resume(request: Asking, number: Number, data: JSONBody[Wish]) -> Event:
        return done(request, number, "resumed", lambda mine, who: acts.resume(mine, who.name, who.tenant, number, data.why))

    @post("/v1/releases/{number:int}/rollback", summary="Take it back, now", **operates)
    def rollback(request: Asking, number: Number, data: JSONBody[Back]) -> Event:
        return done(
            request, number, "rolled back", lambda mine, who: acts.roll_back(mine, who.name, who.tenant, number, data.why, cut=data.cut)
        )

    return [shadow, canary, promote, approve, waive, hold, resume, rollback]


def _agents(gate: Gate) -> list[HTTPRouteHandler]:
    store = gate.store
    sees, operates = _for(gate, "read"), _for(gate, "operate")

    @get("/v1/agents", summary="Every registered agent, the newest first", **sees)
    def list_agents(request: Asking) -> list[Registered]:
        tenant = caller_of(request).tenant
        return registry.agents(store.of(tenant), tenant)

    @get("/v1/agents/{agent:str}", summary="An agent and what was found out about it", **sees)
    def show_agent(request: Asking, agent: FromPath[str]) -> Known:
        tenant = caller_of(request).tenant
        mine = store.of(tenant)
        one = registry.found(mine, tenant, agent)
        return Known(one, *registry.reports_to_look_at(mine, tenant, one.id))

    @post("/v1/agents", summary="Register an agent: checkpoint, prompt, tools and limits under one hash", **operates)
    def register(request: Asking, data: JSONBody[NewAgent]) -> Registered:
        caller = caller_of(request)
        mine = store.of(caller.tenant)
        made = registry.register_agent(mine, caller.tenant, data.agent, data.name)
        note(store, caller, "agent registered", made)
        return registry.found(mine, caller.tenant, made)

    @post("/v1/agents/{agent:str}/reports", summary="What was found out about an agent offline", **operates)
    def report(request: Asking, agent: FromPath[str], data: JSONBody[NewReport]) -> Report:
        caller = caller_of(request)
        mine = store.of(caller.tenant)
        one = registry.found(mine, caller.tenant, agent)
        made = registry.report_by_hand(mine, caller.tenant, one.id, data.kind, passed=data.passed, figures=data.figures, by=caller.name)
        note(store, caller, "agent reported on", f"{one.id} {data.kind}")
        return made

    return [list_agents, show_agent, register, report]


def _standing(store: Store, release: Release, event: Event, files: LedgerFiles) -> Standing:
    known = known_of(store, release, _now(), files=files)
    sessions = {"candidate": known.candidate_sessions_in_step, "shadow": known.sessions_in_shadow}
    waived = safety_waived(release, releases.events(store, release.tenant, release.id), files)
    return Standing(release, event, waits_for(release.policy, known), sessions, turns.grading(store, release.id), waived)


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
