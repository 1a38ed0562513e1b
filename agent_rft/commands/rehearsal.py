"""A release rehearsed: model servers, a gateway with all that stands behind it, and users, all on this machine, for as long as it takes.

Nothing is pretended but the users. The servers are the programs that production runs, as processes of their own; what is measured, decided
and recorded goes through the store like any release's. Candidates differ from the live agent in what makes them better or worse: their
temperature or their weights; or their model server has the faults that it can be given.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import sys
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Literal

import aiohttp
import msgspec

from agent_rft.commands.access import me
from agent_rft.commands.parts import limits_of, served_tools
from agent_rft.commands.simulated_users import Tally, Users
from agent_rft.compose import save, settings_for
from agent_rft.contracts.agents import Agent
from agent_rft.contracts.releases import Event, Policy
from agent_rft.contracts.rollouts import Limits
from agent_rft.contracts.rows import Row
from agent_rft.datasets.rows_io import read_rows
from observability import releases, users
from observability.registry import register_agent, report
from observability.store import Store, migrate, open_store
from serving.model_server import Faults
from serving.release import acts
from serving.server import RunningServer, running_server

RECIPE = "research_tiny"
TENANT, BYSTANDER = "acme", "globex"
"""Who has a release on trial; and who uses a service of the same name meanwhile."""
START_SECONDS = 180.0
LOOK_SECONDS = 0.2
OVER = ("full", "rolled_back")

POLICY = Policy(
    idle_seconds=1.0,
    hold_seconds=20.0,
    rollback_seconds=90.0,
    shadow_sessions=6,
    steps=(0.25, 0.5, 1.0),
    sessions_per_step=6,
    slow_seconds=30.0,
    margin=0.2,
    rate_margin=0.2,
    promote_alpha=0.2,
)
"""For a minute instead of a week: few sessions a step, and wide margins for the last one. What a rollback takes is as in earnest."""


UNSHADOWED = msgspec.structs.replace(POLICY, shadow_sessions=0, steps=(0.5, 1.0))
"""Lets users meet the candidate at once: to see that they notice nothing of it."""


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    says: str
    live: float
    """The live agent's temperature."""
    candidate: float
    ends: Literal["full", "rolled_back"]
    because: str = ""
    """How the reason of a rollback begins."""
    faults: Faults = Faults()
    """Of the candidate's model server."""
    policy: Policy = POLICY
    own_weights: bool = False
    """Where two checkpoints are given, whether they are the two arms; else both arms speak by the live one's weights."""
    better_weights: bool = True
    """Whether the candidate has the second of them, or the live agent."""


SCENARIOS = {
    one.name: one
    for one in (
        Scenario(
            name="good",
            says="answers better: goes to everybody by itself",
            live=1.2,
            candidate=0.3,
            ends="full",
            own_weights=True,
        ),
        Scenario(
            name="worse",
            says="answers worse, and looked well offline",
            live=0.3,
            candidate=1.4,
            ends="rolled_back",
            because="reward",
            own_weights=True,
            better_weights=False,
        ),
        Scenario(
            name="slow",
            says="answers as well, each turn of its model two seconds later",
            live=1.4,
            candidate=1.4,
            ends="rolled_back",
            because="slow",
            faults=Faults(latency_seconds=2.0),
            policy=msgspec.structs.replace(UNSHADOWED, slow_seconds=6.0),
        ),
        Scenario(
            name="unsafe",
            says="gives away what looks like a credential in every other answer",
            live=1.4,
            candidate=1.4,
            ends="rolled_back",
            because="unsafe",
            faults=Faults(leak_rate=0.5),
        ),
        Scenario(
            name="crashing",
            says="its model server dies after 20 requests",
            live=1.4,
            candidate=1.4,
            ends="rolled_back",
            because="errors",
            faults=Faults(crash_after=20),
            policy=UNSHADOWED,
        ),
    )
}


class Weights(msgspec.Struct, frozen=True):
    """Checkpoints, as folders or ids."""

    live: str
    candidate: str
    """The better one, where they are two."""

    def of(self, scenario: Scenario) -> tuple[str, str]:
        """The live agent's and the candidate's."""
        if not scenario.own_weights or self.live == self.candidate:
            return self.live, self.live
        return (self.live, self.candidate) if scenario.better_weights else (self.candidate, self.live)


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a scenario went, by the release's own record."""

    scenario: Scenario
    release: int
    events: tuple[Event, ...]
    seconds: float
    """From its beginning to the decision."""
    users: Tally
    bystanders: Tally

    @property
    def last(self) -> Event:
        return self.events[-1]

    @property
    def sessions(self) -> int:
        """The candidate's that were counted by then, those that nobody saw included."""
        figures = self.last.figures
        counted = [figures.get(name, {}).get("errors", {}).get("candidate_sessions", 0) for name in ("tests", "shadow_tests")]
        return sum(counted)

    def faults(self) -> list[str]:
        """What went otherwise than expected; nothing if it went well."""
        scenario, last = self.scenario, self.last
        found = [] if last.stage == scenario.ends else [f"it is {last.stage}, not {scenario.ends}"]
        if not last.why.startswith(scenario.because):
            found.append(f"the reason is not {scenario.because}: {last.why}")
        if last.stage in OVER and not last.by.startswith("@"):
            found.append(f"{last.by} decided it")
        found += [f"no answer: {why}" for why in (*self.users.lost[:3], *self.bystanders.lost[:3])]
        return found


# --- the world ----------------------------------------------------------------------------------------------------------


class World(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that runs."""

    gateway: RunningServer
    store: Store
    checkpoints: dict[tuple[str, Faults], str]
    """By which name agents have the weights of a model server."""
    tool_set: str
    limits: Limits
    rows: Sequence[Row]
    keys: dict[str, str]
    """By tenant."""


@contextmanager
def world(
    folder: Path, weights: Weights, scenarios: Sequence[Scenario], store_url: str | None, settings: Sequence[str]
) -> Generator[World]:
    url = store_url or f"sqlite:///{folder}/cards.db"
    wanted = dict.fromkeys((path, faults) for one in scenarios for path, faults in _served(one, weights))
    names = {key: f"{key[0]}+{i}" if key[1].any else key[0] for i, key in enumerate(wanted)}
    commands = [_model_command(path, names[path, faults], faults) for path, faults in wanted]
    migrate(url)
    with ExitStack() as stack:
        models = stack.enter_context(all_running(commands, [folder / f"model-{i}.log" for i in range(len(commands))]))
        upstreams = [
            {"name": f"model-{i}", "url": f"{server.base_url}/v1", "model": names[key], "checkpoint": names[key], "total_seconds": 60.0}
            for i, (key, server) in enumerate(zip(wanted, models, strict=True))
        ]
        given = [f"store.url={url}", "serving=production", f"gateway.spool={folder}/gateway", f"store.ledger={folder}/ledger"]
        given += ["release.gradings_per_minute=6000", "serving.calls.per_minute=60000", *settings]
        chosen = settings_for(RECIPE, [*given, f"gateway.upstreams={msgspec.json.encode(upstreams).decode()}"])
        save(chosen, folder / "settings.yaml")
        serve = [sys.executable, "-m", "agent_rft", "serve", "--settings", str(folder / "settings.yaml"), "--port"]
        gateway = stack.enter_context(
            running_server(lambda port: [*serve, str(port)], log=folder / "gateway.log", start_seconds=START_SECONDS)
        )
        store = stack.enter_context(closing(open_store(url)))
        yield World(
            gateway=gateway,
            store=store,
            checkpoints=names,
            tool_set=served_tools(gateway.base_url)[1],
            limits=limits_of(chosen),
            rows=read_rows(Path(chosen.task.val)),
            keys={tenant: _key(store, tenant) for tenant in (TENANT, BYSTANDER)},
        )


def _served(scenario: Scenario, weights: Weights) -> list[tuple[str, Faults]]:
    live, candidate = weights.of(scenario)
    return [(live, Faults()), (candidate, scenario.faults)]


def _model_command(path: str, name: str, faults: Faults) -> Callable[[int], list[str]]:
    given = msgspec.structs.asdict(faults)
    options = [word for key, value in given.items() if value for word in (f"--{key.replace('_', '-')}", str(value))]
    begin = [sys.executable, "-m", "agent_rft", "model-server", "--checkpoint", path, "--name", name, "--threads", "1", *options]
    return lambda port: [*begin, "--port", str(port)]


@contextmanager
def all_running(commands: Sequence[Callable[[int], list[str]]], logs: Sequence[Path]) -> Generator[list[RunningServer]]:
    """Started together: each of them loads for seconds."""
    contexts = [running_server(command, log=log, start_seconds=START_SECONDS) for command, log in zip(commands, logs, strict=True)]
    with ExitStack() as stack, ThreadPoolExecutor(len(contexts)) as pool:
        starts = [pool.submit(context.__enter__) for context in contexts]
        for context, start in zip(contexts, starts, strict=True):
            if start.exception() is None:
                stack.push(context)
        yield [start.result() for start in starts]


def _key(store: Store, tenant: str) -> str:
    by, now = me(tenant), dt.datetime.now(dt.UTC)
    name = f"rehearsal {now:%Y%m%d%H%M%S}"  # a store of somebody's own may have seen rehearsals before
    users.add_user(store, by, name, "agent", now)
    return users.new_key(store, by, name, now).text


# --- a scenario ---------------------------------------------------------------------------------------------------------


Heard = Callable[[Scenario, Event, float], None]


def play(
    world: World, weights: Weights, scenario: Scenario, heard: Heard, *, at_once: int, longest_seconds: float, seed: int = 0
) -> Outcome:
    """From the release's beginning until it is full or rolled back; `heard` is told each of its events."""
    service = f"{scenario.name}-{dt.datetime.now(dt.UTC):%H%M%S}"
    live, candidate = (_agent(world, scenario, weights, arm) for arm in (0, 1))
    for tenant in (TENANT, BYSTANDER):
        _released_first(world, tenant, service, live)
    _registered(world, TENANT, candidate, f"{service}: {scenario.says}")
    release = acts.begin(world.store, me(TENANT).name, TENANT, service, candidate.id, scenario.policy)
    return asyncio.run(_run(world, scenario, service, release.id, heard, at_once, longest_seconds, seed))


async def _run(
    world: World, scenario: Scenario, service: str, release: int, heard: Heard, at_once: int, longest_seconds: float, seed: int
) -> Outcome:
    await _routed(world, service)
    stop, tallies = asyncio.Event(), {tenant: Tally() for tenant in (TENANT, BYSTANDER)}
    asking = [
        asyncio.create_task(
            Users(
                address=world.gateway.base_url,
                key=world.keys[tenant],
                service=service,
                rows=world.rows,
                at_once=number,
                seed=seed,
            ).keep_asking(tallies[tenant], stop)
        )
        for tenant, number in ((TENANT, at_once), (BYSTANDER, 1))
    ]
    began, seen = time.monotonic(), list[Event]()
    while time.monotonic() - began < longest_seconds:
        told = await asyncio.to_thread(releases.events, world.store, TENANT, release)
        for event in told[len(seen) :]:
            heard(scenario, event, time.monotonic() - began)
        seen = told
        if seen[-1].stage in OVER:
            break
        await asyncio.sleep(LOOK_SECONDS)
    seconds = (seen[-1].at - seen[0].at).total_seconds() if seen[-1].stage in OVER else time.monotonic() - began
    stop.set()
    await asyncio.gather(*asking)
    return Outcome(
        scenario=scenario, release=release, events=tuple(seen), seconds=seconds, users=tallies[TENANT], bystanders=tallies[BYSTANDER]
    )


async def _routed(world: World, service: str) -> None:
    """Gateways look for what is new twice a second."""
    async with aiohttp.ClientSession(world.gateway.base_url) as http:
        for key in world.keys.values():
            while True:
                async with http.get("/v1/models", headers={"Authorization": f"Bearer {key}"}) as response:
                    if service in await response.text():
                        break
                await asyncio.sleep(LOOK_SECONDS)


def _agent(world: World, scenario: Scenario, weights: Weights, arm: Literal[0, 1]) -> Agent:
    return Agent(
        checkpoint=world.checkpoints[_served(scenario, weights)[arm]],
        tool_set=world.tool_set,
        limits=world.limits,
        temperature=(scenario.live, scenario.candidate)[arm],
    )


def _released_first(world: World, tenant: str, service: str, agent: Agent) -> None:
    _registered(world, tenant, agent, f"{service}: live")
    acts.begin_first(world.store, me(tenant).name, tenant, service, agent.id, POLICY)


def _registered(world: World, tenant: str, agent: Agent, name: str) -> None:
    """With reports that let it pass: a rehearsal is of what comes after the offline gate, and its candidates looked well there."""
    register_agent(world.store, tenant, agent, name)
    figures: dict[str, Any] = {"reward": 0.6, "regressed": 0.0, "note": "made up for a rehearsal"}
    for kind in ("evaluation", "holdout", "safety"):
        report(world.store, tenant, agent.id, kind, passed=True, figures=figures, by="rehearsal")
