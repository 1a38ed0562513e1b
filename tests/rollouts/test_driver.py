"""The driver: machines meet samplers, tools and a grader; whatever breaks outside becomes data, never an exception."""

import asyncio
import threading
import time

import pytest

from agent_rft.contracts.errors import InfraError, UserError
from agent_rft.contracts.events import AskModel, InfraFailed
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.jobcards import Versions
from agent_rft.contracts.messages import ToolCall
from agent_rft.contracts.rollouts import Ending, Limits, ToolResult
from agent_rft.contracts.rows import Row
from agent_rft.rollouts.cards import card_of
from agent_rft.rollouts.driver import Try, collect, new_rollout_id
from agent_rft.rollouts.in_process import ScriptedSampler

CALL = '<tool_call>\n{"name": "search", "arguments": {"query": "x"}}\n</tool_call>'
ROW = Row(id="val-0001", prompt="Q?", reference_answer="13.4%")


class Tools:
    """Counts its calls; sleeps or fails as told."""

    def __init__(self, seconds: float = 0.0, fails: Exception | None = None) -> None:
        self.seconds, self.fails, self.seen = seconds, fails, list[tuple[str, str]]()
        self.now = self.most = 0

    async def call(self, rollout_id: str, call: ToolCall) -> ToolResult:
        self.seen.append((rollout_id, call.call_id))
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(self.seconds)
            if self.fails:
                raise self.fails
            return ToolResult(call.call_id, "operating margin: 13.4%")
        finally:
            self.now -= 1


class Exact:
    """1 for the reference to the letter."""

    ref = GraderRef("exact", "1", "0" * 16)

    def grade(self, item: dict, sample: dict) -> Grade:
        right = sample["output_text"] == item["reference_answer"]
        return Grade(self.ref, float(right), right)


class Broken(Exact):
    def grade(self, item: dict, sample: dict) -> Grade:
        raise RuntimeError("judge unreachable")


class Waiting(Exact):
    """Asks somebody else, and waits for the answer."""

    waits = True

    def __init__(self, wait=lambda: None) -> None:
        self.wait = wait

    def grade(self, item: dict, sample: dict) -> Grade:
        self.wait()
        return super().grade(item, sample)


def tries(count: int) -> list[Try]:
    return [Try(ROW, index, seed=index) for index in range(count)]


def search_then(answer: str, calls: int = 1):
    return lambda ask: CALL if ask.turn < calls else answer


BOTH = pytest.mark.parametrize("batched", [True, False])


@BOTH
async def test_a_rollout_calls_its_tools_answers_and_is_graded(batched: bool):
    tools = Tools()
    [graded] = await collect(tries(1), ScriptedSampler(search_then("13.4%"), batched), tools, Exact(), Limits())
    assert (graded.rollout.ending, graded.reward, graded.rollout.tool_calls) == (Ending.ANSWERED, 1.0, 1)
    assert tools.seen == [(graded.rollout.rollout_id, "call-1-1")]
    assert graded.rollout.started_at
    assert graded.rollout.seconds > 0


@BOTH
async def test_answers_come_in_the_order_of_the_tries_whoever_ends_first(batched: bool):
    sampler = ScriptedSampler(lambda ask: CALL if ask.turn < 4 - ask.seed else str(ask.seed), batched)
    done: list[int] = []
    graded = await collect(tries(4), sampler, Tools(), Exact(), Limits(), on_done=lambda g: done.append(g.sample_index))
    assert [g.rollout.answer for g in graded] == ["0", "1", "2", "3"]
    assert done[0] == 3, "told of at once, not at the end"


@BOTH
async def test_a_failing_tool_fails_its_rollout_alone(batched: bool):
    class Picky(Tools):
        async def call(self, rollout_id: str, call: ToolCall) -> ToolResult:
            if call.arguments["query"] == "1":
                raise InfraError("tool:search", "503 after 5 attempts")
            return await super().call(rollout_id, call)

    def script(ask: AskModel) -> str:
        return CALL.replace('"x"', f'"{ask.seed}"') if ask.turn == 0 else "13.4%"

    graded = await collect(tries(3), ScriptedSampler(script, batched), Picky(), Exact(), Limits())
    assert [g.rollout.ending for g in graded] == [Ending.ANSWERED, Ending.INFRA_FAILED, Ending.ANSWERED]
    assert graded[1].grade is None
    assert graded[1].reward is None
    assert graded[1].rollout.failed_part == "tool:search"


@BOTH
async def test_a_model_server_that_fails_is_infrastructure(batched: bool):
    sampler = ScriptedSampler(lambda ask: InfraFailed("model", "connection refused"), batched)
    [graded] = await collect(tries(1), sampler, Tools(), Exact(), Limits())
    assert (graded.rollout.ending, graded.rollout.failed_part) == (Ending.INFRA_FAILED, "model")


@BOTH
async def test_a_grader_that_fails_is_infrastructure_not_a_zero(batched: bool):
    [graded] = await collect(tries(1), ScriptedSampler(search_then("13.4%"), batched), Tools(), Broken(), Limits())
    assert (graded.rollout.ending, graded.rollout.failed_part, graded.reward) == (Ending.INFRA_FAILED, "grader:exact", None)
    assert "judge unreachable" in graded.rollout.reason


@BOTH
async def test_a_grader_that_waits_is_asked_for_all_finished_rollouts_at_once(batched: bool):
    together = threading.Barrier(8, timeout=10)  # passes only when eight wait in it at the same time
    grader = Waiting(together.wait)
    sampler = ScriptedSampler(lambda ask: "13.4%" if ask.seed % 2 else "12%", batched)
    graded = await collect(tries(8), sampler, Tools(), grader, Limits())
    assert [g.reward for g in graded] == [0, 1, 0, 1, 0, 1, 0, 1], "in the order of the tries"


@BOTH
async def test_the_other_rollouts_go_on_while_a_grader_waits(batched: bool):
    others_done = threading.Event()
    grader = Waiting(lambda: None if others_done.wait(10) else pytest.fail("the other rollout was held up"))

    class Telling(Tools):
        async def call(self, rollout_id: str, call: ToolCall) -> ToolResult:
            if call.call_id == "call-2-1":
                others_done.set()
            return await super().call(rollout_id, call)

    # the first answers at once, the second calls a tool in two turns first
    sampler = ScriptedSampler(lambda ask: CALL if ask.seed == 1 and ask.turn < 2 else "13.4%", batched)
    graded = await collect(tries(2), sampler, Telling(), grader, Limits())
    assert [g.reward for g in graded] == [1, 1]


@BOTH
async def test_a_waiting_grader_that_fails_is_infrastructure_for_its_own_rollout_alone(batched: bool):
    class Unreachable(Waiting):
        def grade(self, item: dict, sample: dict) -> Grade:
            if sample["output_text"] == "1":
                return Grade(self.ref, None, errors={"model_grader_server_error": "down"})
            return super().grade(item, sample)

    graded = await collect(tries(3), ScriptedSampler(lambda ask: str(ask.seed), batched), Tools(), Unreachable(), Limits())
    assert [(g.rollout.ending, g.rollout.failed_part, g.reward) for g in graded] == [
        (Ending.ANSWERED, "", 0.0),
        (Ending.INFRA_FAILED, "grader:exact", None),
        (Ending.ANSWERED, "", 0.0),
    ]


@BOTH
async def test_what_on_done_raises_is_not_lost_where_the_grader_waits(batched: bool):
    def refuse(_) -> None:
        raise UserError("the store refuses the card")

    with pytest.raises(UserError, match="refuses the card"):
        await collect(tries(2), ScriptedSampler(lambda ask: "x", batched), Tools(), Waiting(), Limits(), on_done=refuse)


@BOTH
async def test_a_grader_that_does_not_wait_stays_in_the_one_thread(batched: bool):
    seen = set()

    class Pure(Exact):
        def grade(self, item: dict, sample: dict) -> Grade:
            seen.add(threading.get_ident())
            return super().grade(item, sample)

    await collect(tries(4), ScriptedSampler(lambda ask: "x", batched), Tools(), Pure(), Limits())
    assert seen == {threading.get_ident()}


@BOTH
async def test_a_tool_that_hangs_past_the_rollouts_seconds_is_infrastructure(batched: bool):
    began = time.monotonic()
    [graded] = await collect(tries(1), ScriptedSampler(search_then("x"), batched), Tools(seconds=30), Exact(), Limits(max_seconds=0.1))
    assert (graded.rollout.ending, graded.rollout.failed_part) == (Ending.INFRA_FAILED, "tool:search")
    assert time.monotonic() - began < 20


@BOTH
async def test_a_timeout_inside_a_tool_is_not_told_as_the_rollouts_time_being_up(batched: bool):
    with pytest.raises(TimeoutError, match="its own"):
        await collect(tries(1), ScriptedSampler(search_then("x"), batched), Tools(fails=TimeoutError("its own")), Exact(), Limits())


async def test_a_timeout_inside_a_sampler_costs_the_model_no_grade():
    class TimesOut(ScriptedSampler):
        async def sample(self, asks):
            raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        await collect(tries(1), TimesOut(search_then("x"), False), Tools(), Exact(), Limits())


@BOTH
async def test_a_siblings_hanging_tool_costs_the_others_none_of_their_seconds(batched: bool):
    class OneHangs(Tools):
        async def call(self, rollout_id: str, call: ToolCall) -> ToolResult:
            if call.arguments["query"] == "0":
                await asyncio.sleep(30)
            return await super().call(rollout_id, call)

    def script(ask: AskModel) -> str:
        return CALL.replace('"x"', f'"{ask.seed}"') if ask.turn == 0 else "13.4%"

    graded = await collect(tries(3), ScriptedSampler(script, batched), OneHangs(), Exact(), Limits(max_seconds=0.2))
    assert [g.rollout.ending for g in graded] == [Ending.INFRA_FAILED, Ending.ANSWERED, Ending.ANSWERED]


@BOTH
async def test_a_model_that_takes_too_long_is_out_of_budget_and_its_tools_are_not_blamed(batched: bool):
    class Slow(ScriptedSampler):
        async def sample(self, asks):
            await asyncio.sleep(0.3)
            return await super().sample(asks)

    [graded] = await collect(tries(1), Slow(search_then("13.4%"), batched), Tools(), Exact(), Limits(max_seconds=0.1))
    assert graded.rollout.ending is Ending.OUT_OF_BUDGET
    assert graded.reward == 0.0, "graded: an agent must live within its means"


@BOTH
async def test_calls_of_one_turn_and_of_many_rollouts_run_at_once(batched: bool):
    tools = Tools(seconds=0.05)
    sampler = ScriptedSampler(lambda ask: f"{CALL}\n{CALL}" if ask.turn == 0 else "13.4%", batched)
    await collect(tries(8), sampler, tools, Exact(), Limits())
    assert tools.most == 16


@BOTH
async def test_no_more_rollouts_are_in_flight_than_allowed(batched: bool):
    tools = Tools(seconds=0.01)
    graded = await collect(tries(10), ScriptedSampler(search_then("13.4%"), batched), tools, Exact(), Limits(), in_flight=3)
    assert len(graded) == 10
    assert tools.most <= 3


@BOTH
async def test_a_users_mistake_stops_everything_at_once(batched: bool):
    with pytest.raises(UserError, match="wrong bearer"):
        await collect(tries(3), ScriptedSampler(search_then("x"), batched), Tools(fails=UserError("wrong bearer")), Exact(), Limits())


async def test_the_card_tells_the_whole_rollout():
    [graded] = await collect(tries(1), ScriptedSampler(search_then("13.4%", calls=2)), Tools(), Exact(), Limits())
    card = card_of(graded, kind="train", run_id="run", step=3, advantage=0.5, versions=Versions(code="1", checkpoint="base"), tenant="t")
    # Words stand for tokens here: "Q?" is 1, each result 3 of context; each call turn 7 and the answer 1, plus an end of turn each.
    assert (card.cost.context_tokens, card.cost.sampled_tokens, card.cost.tool_calls) == (7, 18, 2)
    assert card.rollout is graded.rollout
    assert (card.row_id, card.step, card.advantage, card.grade) == ("val-0001", 3, 0.5, graded.grade)


def test_rollout_ids_are_unique_uuids_sorted_by_time():
    first = new_rollout_id()
    time.sleep(0.002)
    later = [new_rollout_id() for _ in range(1000)]
    assert len(set(later)) == 1000
    assert all(first < one for one in later)
    assert first[14] == "7"
    assert first[19] in "89ab"
