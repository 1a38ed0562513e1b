"""Drives the runs that were accepted, whatever happens to this process, to another gateway, or to the candidate that runs them.

A run is durable before its caller hears of it, and after each of its steps before anybody is shown what came of the step. So whoever
takes it up goes on from what was shown, under the same rollout id and with the same ids of its calls: a tool that had done its work
before says the same again. Its arm is fixed as it is accepted. One thing changes it: a candidate that is withdrawn, or whose model
fails, gives up, and the live agent begins anew. What the candidate did has a card of its own, and counts against it.

                     keep          person is needed           person has decided
    accept -> running ----> running ----------------> parked ---------------------> running -> done
                 lease over: any gateway goes on        no lease, no owner
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import os
import random
import socket
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
import structlog
from sqlalchemy import exc

from agent_rft.contracts.agents import Agent, Arm, Route
from agent_rft.contracts.errors import NeedsApproval, UserError
from agent_rft.contracts.events import AskModel, CallTools, Command, InfraFailed, ToolReturned
from agent_rft.contracts.messages import Message, ToolCall
from agent_rft.contracts.ports import ToolBox
from agent_rft.contracts.rollouts import Ending, Rollout, ToolResult
from agent_rft.release.assignment import arm_of
from agent_rft.rollouts.driver import Clock, new_rollout_id, run_tools, speak
from agent_rft.rollouts.machine import advance, go_on
from observability import runs, states
from observability.ingest import is_away
from observability.intake import Away, Outcome
from observability.records import RecordedCard
from observability.runs import Decided, Kept, Run
from observability.turns import add_turns
from serving import metrics
from serving.gateway.ending import Ran, job_card, release_turn
from serving.gateway.events import RunEvent, Story, Waiting, opening_of, packed, unpacked
from serving.gateway.saving import Saving
from serving.gateway.world import World
from serving.threads import in_daemon_thread

SOURCE = "gateway"
BY = "@gateway"
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
"""Between tries of what must come into the store, while that is away."""
log = structlog.get_logger("serving.gateway")


class Mirror(Protocol):
    """Takes what is to be tried on the candidate too, off the path: it never waits and never fails."""

    def offer(self, ran: Ran, route: Route) -> bool: ...


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    lease_seconds: float = 5.0
    renew_seconds: float = 1.0
    look_seconds: float = 1.0
    """Between looks into the store for runs that were left and approvals that were decided."""
    cut_seconds: float = 0.25
    """Between looks, in memory, for candidates that were withdrawn."""
    kept_seconds: float = 3600.0
    """For how long a run that is over can be asked for by its id; then its card is what is left."""
    most: int = 1000
    """In hand at a time."""
    accept_seconds: float = 10.0
    """That a caller waits for the store."""


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller asks for."""

    tenant: str
    caller: str
    service: str
    session: str
    said: tuple[Message, ...]
    item: dict[str, Any]
    metadata: dict[str, Any]
    client_id: str | None
    hash: str
    """Over all of it: the same id with another hash is another request."""


class Unknown(UserError):
    """There is no such service, or no such run."""


class Conflict(UserError):
    """The same id came with another request."""


class Full(Exception):
    """No room for more runs."""

    retry_after_seconds = 1


class _Lost(Exception):
    """Another gateway has taken the run up."""


class _NotNow(Exception):
    """Its agent is not known here, or not yet: when the lease is over, whoever knows it goes on."""


@dataclass(eq=False)
class InHand:
    """A run that this process drives."""

    run: Run
    story: Story
    leave: Callable[[int], None]
    shown: int = 0
    """Events that are durable, and may be shown."""
    cut: asyncio.Event = field(default_factory=asyncio.Event)
    withdrawn_at: float | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def show(self) -> None:
        self.shown = len(self.story.events)
        self.wake()

    def wake(self) -> None:
        """Whoever waits for something new looks again."""
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()


class _Asking:
    """A tool box that remembers which call a person has to allow."""

    def __init__(self, tools: ToolBox) -> None:
        self._tools = tools
        self.waiting: Waiting | None = None

    async def call(self, rollout_id: str, call: ToolCall) -> ToolResult:
        try:
            return await self._tools.call(rollout_id, call)
        except NeedsApproval as needed:
            if self.waiting is not None:  # one at a time: this one asks again after the first
                await asyncio.Event().wait()
            self.waiting = Waiting(call.call_id, needed.approval_id, needed.expires_at)
            raise


class Runner:
    def __init__(self, world: World, mirror: Mirror | None = None, pace: Pace | None = None) -> None:
        self._world, self._mirror, self._pace = world, mirror, pace or Pace()
        self.owner = f"{socket.gethostname()}-{os.getpid()}-{random.randrange(2**32):08x}"
        self._hands: dict[tuple[str, str], InHand] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._saving = Saving(world.store)
        self._forget_at = 0.0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Left, what is in hand is for others to go on with, at once."""
        loops = [asyncio.create_task(self._each(self._pace.renew_seconds, self._renew))]
        loops.append(asyncio.create_task(self._each(self._pace.look_seconds, self._look)))
        loops.append(asyncio.create_task(self._each(self._pace.cut_seconds, self._cut_withdrawn)))
        try:
            yield
        finally:
            working = [*loops, *self._tasks]
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)
            with contextlib.suppress(exc.SQLAlchemyError):
                await in_daemon_thread(runs.let_go, self._world.store, self.owner, _now())

    # --- what callers ask for -----------------------------------------------------------------------------------------------

    async def submit(self, asked: Accepted, leave: Callable[[int], None] = lambda _: None) -> tuple[Run, bool]:
        """Durable when it returns, and whether it is new. `leave` is told the tokens of a new one once this process has no more to do
        with it. Raises Unknown, Full, Conflict, TimeoutError, or the database's error."""
        if len(self._hands) >= self._pace.most:
            raise Full
        run, story = self._begun(asked)
        async with asyncio.timeout(self._pace.accept_seconds):
            stored = await self._saving.do(lambda connection: runs.accept(connection, run))
        if stored.rollout_id == run.rollout_id:
            self._take(run, story, leave)
            return run, True
        if stored.request != run.request:
            what = f"the id {asked.client_id!r} was sent with another request before"
            raise Conflict(what, "send another id with another request; the same request may be sent again")
        return stored, False

    async def events(self, tenant: str, rollout_id: str, after: int, quiet_seconds: float) -> AsyncGenerator[tuple[int, list[RunEvent]]]:
        """The number of the first and the events themselves, those after `after` first; nothing new for so long is an empty list."""
        quiet_since = time.monotonic()
        while True:
            hand = self._hands.get((tenant, rollout_id))
            changed = hand.changed if hand else None
            told, over = (hand.story.events[: hand.shown], False) if hand else await self._told(tenant, rollout_id)
            if news := told[after:]:
                yield after + 1, news
                after, quiet_since = len(told), time.monotonic()
            if over:
                return
            if time.monotonic() - quiet_since >= quiet_seconds:
                yield after + 1, []
                quiet_since = time.monotonic()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), quiet_seconds) if changed else await asyncio.sleep(self._pace.look_seconds)

    async def found(self, tenant: str, rollout_id: str) -> tuple[Run, Story]:
        """As it is durable. Raises Unknown."""
        run = await in_daemon_thread(runs.found, self._world.store, tenant, rollout_id)
        if run is None:
            raise Unknown(f"there is no run {rollout_id[:60]}", "its card, if it is over: GET /v1/cards")
        return run, unpacked(run.rollout)

    async def settled(self, tenant: str, rollout_id: str, seconds: float) -> None:
        """Waits until the run is done or waits for a person, but no longer than so many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    hand = self._hands.get((tenant, rollout_id))
                    if hand is None:
                        if (await self.found(tenant, rollout_id))[0].state != "running":
                            return
                        await asyncio.sleep(self._pace.look_seconds)
                    else:
                        await hand.changed.wait()

    @property
    def in_hand(self) -> int:
        return len(self._hands)

    # --- the beginning ------------------------------------------------------------------------------------------------------

    def _begun(self, asked: Accepted) -> tuple[Run, Story]:
        route = self._world.routes.route(asked.tenant, asked.service)
        if route is None or not route.live:
            raise Unknown(f"there is no service '{asked.service[:60]}'", "GET /v1/models shows those that there are")
        arm: Arm = arm_of(asked.tenant, asked.service, asked.session, route.share) if route.candidate else "live"
        agent_id = route.candidate if arm == "candidate" else route.live
        rollout = self._rollout(self._world.routes.agent(asked.tenant, agent_id), asked.said)
        story = Story(rollout=rollout, said=asked.said, item=asked.item, metadata=asked.metadata, caller=asked.caller)
        now = _now()
        story.tell("run", id=rollout.rollout_id, model=asked.service, session=asked.session, arm=arm, at=now.isoformat())
        run = Run(
            tenant=asked.tenant,
            rollout_id=rollout.rollout_id,
            client_id=asked.client_id,
            service=asked.service,
            session=asked.session,
            agent=agent_id,
            arm=arm,
            release=route.release,
            state="running",
            request={"hash": asked.hash},
            rollout=packed(story),
            waits_for=None,
            owner=self.owner,
            lease_until=self._lease(),
            at=now,
            changed_at=now,
        )
        return run, story

    def _rollout(self, agent: Agent, said: tuple[Message, ...]) -> Rollout:
        opening = opening_of(agent.system_prompt, said)
        return Rollout(new_rollout_id(), opening, self._world.tool_set.specs, agent.limits, random.randrange(2**31))

    def _take(self, run: Run, story: Story, leave: Callable[[int], None] = lambda _: None) -> None:
        hand = InHand(run, story, leave, shown=len(story.events))
        self._hands[run.tenant, run.rollout_id] = hand
        task = asyncio.create_task(self._drive(hand))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        metrics.RUNS.set(len(self._hands))

    # --- the drive ----------------------------------------------------------------------------------------------------------

    async def _drive(self, hand: InHand) -> None:
        try:
            while await self._to_an_end(hand):
                if self._gives_up(hand):
                    await self._begin_anew(hand)
                else:
                    await self._finish(hand)
                    return
        except _Lost:
            log.info("run_lost", tenant=hand.run.tenant, run=hand.run.rollout_id)
        except _NotNow as error:
            log.warning("run_left", tenant=hand.run.tenant, run=hand.run.rollout_id, why=str(error))
        except Exception as error:  # a fault of ours: met again by whoever took the run up, so it ends here
            log.error("run_failed", tenant=hand.run.tenant, run=hand.run.rollout_id, exc_info=error)
            await self._end_in_failure(hand, error)
        finally:
            if self._hands.get(key := (hand.run.tenant, hand.run.rollout_id)) is hand:  # and not one that was unparked meanwhile
                del self._hands[key]
            metrics.RUNS.set(len(self._hands))
            hand.leave(hand.story.rollout.total_tokens)
            hand.wake()

    async def _to_an_end(self, hand: InHand) -> bool:
        """False where it waits for a person now."""
        story, agent, rollout = hand.story, self._agent(hand), hand.story.rollout
        clock = Clock(rollout, time.monotonic() - rollout.seconds)  # neither parked time nor that of a gateway's death counts
        command: Command | None = go_on(rollout)
        while rollout.ending is None:
            self._cut_if_withdrawn(hand)
            command, waiting = await self._step(hand, agent, command or go_on(rollout), clock)
            clock.stop()
            story.tell_news()
            if is_answered(rollout):
                story.tell("answer", text=rollout.answer)
            if waiting:
                await self._park(hand, waiting)
                return False
            await self._keep(hand)
        return True

    async def _step(self, hand: InHand, agent: Agent, command: Command, clock: Clock) -> tuple[Command | None, Waiting | None]:
        """One word of the model or one round of tools, unless the agent is withdrawn meanwhile."""
        step = asyncio.create_task(self._do(hand, agent, command, clock))
        cut = asyncio.create_task(hand.cut.wait())
        try:
            await asyncio.wait((step, cut), return_when=asyncio.FIRST_COMPLETED)
            if not step.done() or hand.cut.is_set():
                return advance(hand.story.rollout, InfraFailed("release", "the agent was withdrawn")), None
            return step.result()
        finally:
            step.cancel()
            cut.cancel()
            await asyncio.gather(step, cut, return_exceptions=True)

    async def _do(self, hand: InHand, agent: Agent, command: Command, clock: Clock) -> tuple[Command | None, Waiting | None]:
        rollout, run = hand.story.rollout, hand.run
        part = "model"
        try:
            if isinstance(command, AskModel):
                arm: Arm = run.arm if self._instead_of(run) else "live"  # alone, it is given all the time and tries there are
                return advance(rollout, await speak(self._world.sampler_for(agent, arm), command, clock)), None
            if isinstance(command, CallTools):
                part, asking = "tools", _Asking(self._world.tools_for(run.tenant, hand.story.caller))
                try:
                    return await run_tools(rollout, command, asking, clock), None
                except NeedsApproval:
                    return None, asking.waiting
        except Exception as error:
            log.error("step_failed", tenant=run.tenant, run=run.rollout_id, part=part, exc_info=error)
            return advance(rollout, InfraFailed(part, f"{type(error).__name__}: {error}")), None
        return None, None

    def _agent(self, hand: InHand) -> Agent:
        try:
            return self._world.routes.agent(hand.run.tenant, hand.run.agent)
        except UserError as error:
            raise _NotNow(error.what) from None

    async def _keep(self, hand: InHand, state: runs.State = "running", waits_for: int | None = None) -> None:
        """Tried until the store takes it: meanwhile the run stands still. Raises _Lost."""
        run = hand.run
        kept = Kept(run.tenant, run.rollout_id, state, run.agent, run.arm, packed(hand.story), waits_for)
        if not await _until_taken(
            lambda: self._saving.do(lambda connection: runs.keep(connection, kept, self.owner, _now(), self._lease()))
        ):
            raise _Lost
        hand.show()

    # --- a person is needed -------------------------------------------------------------------------------------------------

    async def _park(self, hand: InHand, waiting: Waiting) -> None:
        hand.story.tell_waiting(waiting)
        await self._keep(hand, "parked", waiting.approval)
        await self._note(hand.run, "needs_human", f"approval {waiting.approval} of a call of {_tool(hand.story, waiting)}")

    async def _note(self, run: Run, state: str, why: str) -> None:
        try:
            await in_daemon_thread(states.note, self._world.store, BY, run.tenant, run.rollout_id, state, why, self._world.intake.detectors)
        except (UserError, exc.SQLAlchemyError) as error:
            log.warning("state_not_noted", run=run.rollout_id, state=state, why=str(error).partition("\n")[0])

    async def _unpark(self, decided: Decided) -> None:
        run = await in_daemon_thread(runs.unpark, self._world.store, decided.tenant, decided.rollout_id, self.owner, self._lease())
        if run is None:
            return
        story = unpacked(run.rollout)
        waiting, story.waiting = story.waiting, None
        if waiting and decided.decision != "approve":
            advance(story.rollout, ToolReturned(ToolResult(waiting.call_id, _refusal(decided), "policy_denied")))
        await self._note(run, "in_progress", f"the call was {'allowed' if decided.decision == 'approve' else 'not allowed'}")
        self._take(run, story)

    # --- a candidate gives up -----------------------------------------------------------------------------------------------

    def _gives_up(self, hand: InHand) -> bool:
        """Whether the live agent answers instead: never after a tool has changed something, which would then happen twice."""
        rollout, run = hand.story.rollout, hand.run
        if rollout.ending is not Ending.INFRA_FAILED or rollout.failed_part not in ("model", "release") or run.arm != "candidate":
            return False
        changed = any(call.name in self._world.tool_set.changing for turn in rollout.turns for call in turn.calls)
        return not changed and bool(self._instead_of(run))

    def _instead_of(self, run: Run) -> str:
        """The live agent that can answer in the place of this run's; empty where there is none, as after it went to full."""
        route = self._world.routes.route(run.tenant, run.service)
        return route.live if route and route.live != run.agent else ""

    async def _begin_anew(self, hand: InHand) -> None:
        story, run = hand.story, hand.run
        withdrawn, why = story.rollout.failed_part == "release", story.rollout.reason
        await self._record(hand, counts=not withdrawn)
        hand.run = msgspec.structs.replace(run, agent=self._instead_of(run) or run.agent, arm="live")
        hand.cut, hand.withdrawn_at = asyncio.Event(), None
        story.begin_anew(self._rollout(self._agent(hand), story.said), why)
        metrics.FALLBACKS.labels(run.tenant, run.service).inc()
        await self._keep(hand)

    # --- the end ------------------------------------------------------------------------------------------------------------

    async def _finish(self, hand: InHand) -> None:
        """What the live agent answered in a candidate's place counts for neither."""
        await self._record(hand, counts=not hand.story.given_up)
        hand.story.tell("end", **hand.story.result())
        await self._keep(hand, "done")
        run, rollout = hand.run, hand.story.rollout
        metrics.RUNS_OVER.labels(run.tenant, run.service, run.arm, str(rollout.ending)).inc()
        metrics.RUN_SECONDS.labels(run.tenant, run.service, run.arm).observe(rollout.seconds)

    async def _end_in_failure(self, hand: InHand, error: Exception) -> None:
        advance(hand.story.rollout, InfraFailed("gateway", f"{type(error).__name__}: {error}"))
        try:
            await self._finish(hand)
        except Exception as again:
            log.error("run_not_ended", tenant=hand.run.tenant, run=hand.run.rollout_id, exc_info=again)

    async def _record(self, hand: InHand, *, counts: bool) -> None:
        """The card and what it adds to its release: both once, however often this is done."""
        run, story, world = hand.run, hand.story, self._world
        ran = Ran(
            tenant=run.tenant,
            service=run.service,
            session=run.session,
            run_id=run.rollout_id,
            agent=self._agent(hand),
            agent_id=run.agent,
            arm=run.arm,
            release=run.release,
            caller=story.caller,
            said=story.said,
            rollout=story.rollout,
            item=story.item,
            metadata=story.metadata,
            asked_for=tuple(story.asked_for),
            given_up=story.given_up,
        )
        route = world.routes.route(run.tenant, run.service)
        mirrored = self._mirrored(ran, route) if counts else False
        now = _now()
        card = RecordedCard(job_card(ran, "production", world.code, world.tool_set.version), now, source=SOURCE)
        outcome: Outcome = await _until_taken(lambda: in_daemon_thread(world.intake.submit, run.tenant, [card]))
        for refused in outcome.refused:
            log.error("card_refused", tenant=run.tenant, run=run.rollout_id, why=refused.why)
        if counts and run.release:
            share = route.graded_share if route else 1.0
            turn = release_turn(ran, now, shadow=mirrored, graded_share=share, watch=world.watch)
            await _until_taken(lambda: in_daemon_thread(add_turns, world.store, [turn]))

    def _mirrored(self, ran: Ran, route: Route | None) -> bool:
        if self._mirror is None or route is None or not route.shadow or ran.arm != "live" or route.release != ran.release:
            return False
        return ran.rollout.ending is not Ending.INFRA_FAILED and self._mirror.offer(ran, route)

    # --- what is looked after -----------------------------------------------------------------------------------------------

    async def _each(self, seconds: float, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await work()
            except exc.SQLAlchemyError as error:
                log.warning("runs_wait_for_the_store", trouble=str(error).partition("\n")[0])
            except Exception as error:
                log.error("runs_not_looked_after", exc_info=error)

    async def _renew(self) -> None:
        if self._hands:
            await in_daemon_thread(runs.renew, self._world.store, self.owner, list(self._hands), self._lease())

    async def _cut_withdrawn(self) -> None:
        """By what is in memory alone: a store that says nothing holds up no rollback."""
        for hand in self._hands.values():
            self._cut_if_withdrawn(hand)

    async def _look(self) -> None:
        room = min(self._pace.most - len(self._hands), runs.AT_ONCE)
        left, decided = await in_daemon_thread(self._waiting_for_somebody, room)
        for run in left:
            if (run.tenant, run.rollout_id) not in self._hands:
                self._take_up(run)
        for each in decided:
            await self._unpark(each)
        if time.monotonic() >= self._forget_at:
            self._forget_at = time.monotonic() + self._pace.kept_seconds / 10
            await in_daemon_thread(runs.forget, self._world.store, _now() - dt.timedelta(seconds=self._pace.kept_seconds))

    def _waiting_for_somebody(self, room: int) -> tuple[list[Run], list[Decided]]:
        store, now = self._world.store, _now()
        left = runs.take_over(store, self.owner, now, self._lease(), room) if room > 0 else []
        return left, runs.decided(store, now)

    def _take_up(self, run: Run) -> None:
        """One that cannot be read, such as another version's, is left for whoever can, and holds up no other."""
        try:
            story = unpacked(run.rollout)
        except (msgspec.MsgspecError, ValueError) as error:
            log.error("run_unreadable", tenant=run.tenant, run=run.rollout_id, why=str(error))
            return
        self._take(run, story)

    def _cut_if_withdrawn(self, hand: InHand) -> None:
        """Stops what a candidate still does that was withdrawn: at once where the release says so, else when its time is over."""
        route = self._world.routes.route(hand.run.tenant, hand.run.service)
        if route is None or hand.run.arm != "candidate" or hand.run.agent in (route.candidate, route.live):
            return
        now = time.monotonic()
        hand.withdrawn_at = hand.withdrawn_at or now
        if route.cut or now - hand.withdrawn_at >= route.drain_seconds:
            hand.cut.set()

    async def _told(self, tenant: str, rollout_id: str) -> tuple[list[RunEvent], bool]:
        """Of a run that another gateway drives, or that is over or parked: the store says how far it is."""
        try:
            run, story = await self.found(tenant, rollout_id)
        except exc.SQLAlchemyError:
            return [], False
        return story.events, run.state == "done"

    def _lease(self) -> dt.datetime:
        return _now() + dt.timedelta(seconds=self._pace.lease_seconds)


async def _until_taken(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    pause = FIRST_PAUSE
    while True:
        try:
            return await work()
        except Away as error:
            log.warning("runs_wait_for_the_store", trouble=str(error))
        except exc.SQLAlchemyError as error:
            if not is_away(error):
                raise
            log.warning("runs_wait_for_the_store", trouble=str(error).partition("\n")[0])
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def is_answered(rollout: Rollout) -> bool:
    return rollout.ending is Ending.ANSWERED


def _tool(story: Story, waiting: Waiting) -> str:
    return next((call.name for call in story.rollout.turns[-1].calls if call.call_id == waiting.call_id), "a tool")


def _refusal(decided: Decided) -> str:
    if decided.decision == "expired":
        return "Refused: nobody allowed this call in time. Do without it."
    said = f": {decided.note}" if decided.note else "."
    return f"Refused: a person does not allow this call{said} Do without it."


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
