"""What runs beside a server that has a store: who leads, who moves releases, who grades, who tells."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, Protocol

import msgspec
import structlog
from litestar import Litestar

from agent_rft.contracts.ports import Grader
from observability.redaction.detectors import BUILT_IN_ONLY, Detectors
from observability.roots import LedgerFiles
from observability.store import Store
from serving.release.controller import Controller
from serving.release.evaluator import Budget, Evaluator
from serving.release.leadership import Leadership
from serving.release.routing import Routing
from serving.release.webhooks import OldWords, Webhooks
from serving.workers import at_work

AGAIN_SECONDS = 1.0
log = structlog.get_logger("serving.control")


class ControlPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator says of it."""

    budget: Budget = Budget()
    webhook: str = ""
    """An address; empty: nobody is told."""
    secret: str = ""
    """That signs what is sent there."""


class Part(Protocol):
    def run(self) -> Coroutine[Any, Any, None]: ...


async def _kept_running(part: Part) -> None:
    """A part that ends by a fault of ours begins again: nobody is there at night to see that releases are moved by nothing."""
    while True:
        try:
            await part.run()
        except Exception as error:
            log.error("part_begins_again", part=type(part).__name__, exc_info=error)
        await asyncio.sleep(AGAIN_SECONDS)


class ReleaseControl:
    """`running` surrounds the time in which the server answers."""

    def __init__(
        self,
        plan: ControlPlan,
        store: Store,
        routing: Routing,
        grader: Grader,
        holdouts: Sequence[Grader],
        detectors: Detectors = BUILT_IN_ONLY,
        more: Sequence[Callable[[Leadership], Part]] = (),
        files: LedgerFiles | None = None,
    ) -> None:
        """`routing`: the gateway's, which keeps it fresh. `more`: what else only the one that leads does. `files`: whose keys sign
        waivers."""
        self.plan, self.routing = plan, routing
        self.leadership = Leadership(store)
        self.parts: list[Part] = [
            self.leadership,
            Controller(store, routing, self.leadership, files),
            Evaluator(store, grader, holdouts, self.leadership, plan.budget, detectors),
            OldWords(store, self.leadership),
            *([Webhooks(store, plan.webhook, plan.secret, self.leadership)] if plan.webhook else []),
            *(make(self.leadership) for make in more),
        ]

    def running(self, _: Litestar) -> AbstractAsyncContextManager[None]:
        return at_work(*(partial(_kept_running, part) for part in self.parts))
