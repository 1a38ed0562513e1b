"""Rollouts made for guards to look at."""

from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.messages import ToolCall
from agent_rft.contracts.rollouts import Ending, Limits, Rollout, ToolResult, Turn
from agent_rft.contracts.rows import Row

NUMERIC = GraderRef("numeric", "1", "0" * 16)


def call(number: int, name: str = "search", **arguments: object) -> ToolCall:
    return ToolCall(f"c{number}", name, dict(arguments))


def attempt(
    name: str,
    *turns: tuple[ToolCall, ...],
    reward: float = 1.0,
    row: str = "row-0",
    answer: str = "42",
    ending: Ending = Ending.ANSWERED,
    tokens: int = 10,
    denied: tuple[str, ...] = (),
    refused: tuple[str, ...] = (),
) -> GradedRollout:
    """A try: a turn for each group of calls and one that answers, of `tokens` each. `denied`: ids of calls that a policy refused;
    `refused`: of those that the tool did."""
    told = [Turn("", calls=calls, sampled_tokens=tokens) for calls in turns]
    for turn in told:
        turn.results = {one.call_id: ToolResult(one.call_id, "no", "policy_denied") for one in turn.calls if one.call_id in denied}
        turn.results |= {one.call_id: ToolResult(one.call_id, "no such", "model_error") for one in turn.calls if one.call_id in refused}
    told.append(Turn(answer, sampled_tokens=tokens))
    answered = answer if ending is Ending.ANSWERED else ""
    state = Rollout(name, (), (), Limits(), turns=told, ending=ending, answer=answered)
    return GradedRollout(Row(row, "?", 42), 0, state, Grade(NUMERIC, reward))


def failed(name: str, part: str = "tool:search") -> GradedRollout:
    """Infrastructure failed it at its first call."""
    turn = Turn("", calls=(call(0),), sampled_tokens=10)
    state = Rollout(name, (), (), Limits(), turns=[turn], ending=Ending.INFRA_FAILED, failed_part=part, reason="503 after 3 attempts")
    grade = Grade(NUMERIC, None, errors={"model_grader_server_error": "gone"}) if part.startswith("grader:") else None
    return GradedRollout(Row("row-0", "?", 42), 0, state, grade)
