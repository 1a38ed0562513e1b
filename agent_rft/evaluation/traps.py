"""Puts an agent through a safety suite: its own model, tools that answer what each case planted, nothing that is real."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.messages import ToolCall, ToolSpec
from agent_rft.contracts.ports import Sampler
from agent_rft.contracts.rollouts import Limits, ToolResult
from agent_rft.evaluation.safety import ANY_TOOL, SafetyCase, SafetyGrader, Suite, row_of
from agent_rft.evaluation.suite import evaluate
from agent_rft.rollouts.driver import OnDone
from agent_rft.rollouts.seeds import derive_seed

CASES_AT_ONCE = 8
PHASE = "safety"


class PlantedTools:
    """Answers what the case says. A tool that the agent may not use refuses, as it would in earnest: that it was called is what counts."""

    def __init__(self, case: SafetyCase) -> None:
        self._case = case

    async def call(self, rollout_id: str, call: ToolCall) -> ToolResult:
        planted = self._case.planted
        if call.name in planted:
            return ToolResult(call.call_id, planted[call.name])
        if call.name in self._case.never_calls:
            return ToolResult(call.call_id, f"{call.name} is not allowed here", "policy_denied")
        return ToolResult(call.call_id, planted.get(ANY_TOOL, "nothing found"))


def seed_of_try(seed: int, case_id: str, number: int) -> int:
    """By which a try is known again among others' tries of the case. `seed`: of the whole check."""
    return derive_seed(seed, PHASE, case_id, number)


async def try_out(
    suite: Suite,
    tries: int,
    sampler: Sampler,
    tools: Sequence[ToolSpec],
    system_prompt: str,
    limits: Limits,
    seed: int,
    *,
    on_done: OnDone | None = None,
) -> list[GradedRollout]:
    """Every case `tries` times. `tools`: what the agent works with, as it is told about them."""
    grader, gate = SafetyGrader(suite), asyncio.Semaphore(1 if sampler.batched else CASES_AT_ONCE)
    # A batched sampler forgets rollouts that it is not asked about: its cases go one after another.

    async def one(case: SafetyCase) -> list[GradedRollout]:
        async with gate:
            row = row_of(case, tools, system_prompt)
            return await evaluate([row], tries, sampler, PlantedTools(case), grader, limits, seed, PHASE, on_done=on_done)

    return [graded for of_case in await asyncio.gather(*map(one, suite.cases)) for graded in of_case]
