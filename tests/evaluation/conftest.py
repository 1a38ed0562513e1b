"""A graded try in one line."""

import pytest

from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.messages import ToolCall
from agent_rft.contracts.rollouts import Ending, Limits, Rollout, ToolResult, Turn
from agent_rft.contracts.rows import Row

GRADER = GraderRef("numeric", "1", "abc")


def one_try(
    row_id, reward, calls=1, index=0, *, failed_part="tool:search", output="Revenue: $842M", answer="$842M", prompt="", metadata=None
):
    """A try with this reward and number of calls; reward None is an infrastructure failure."""
    made = tuple(ToolCall(f"call-{i}", "search", {"query": f"{row_id} {i}"}) for i in range(calls))
    turns = [Turn("<tool_call>…</tool_call>", calls=made, results={c.call_id: ToolResult(c.call_id, output) for c in made})]
    ending = Ending.INFRA_FAILED if reward is None else Ending.ANSWERED
    if reward is not None:
        turns.append(Turn(answer))
    rollout = Rollout(
        rollout_id=f"{row_id}/{index}",
        opening=(),
        tools=(),
        limits=Limits(),
        turns=turns,
        ending=ending,
        answer=answer if reward is not None else "",
        failed_part=failed_part if reward is None else "",
    )
    row = Row(id=row_id, prompt=prompt or f"What was the revenue in {row_id}?", reference_answer="$842M", metadata=metadata or {})
    return GradedRollout(row, index, rollout, None if reward is None else Grade(GRADER, reward))


@pytest.fixture(scope="session")
def tried():
    """tried("row-1", [1.0, 0.0, None], calls=[3, 4, 2]): one try a reward."""

    def build(row_id, rewards, calls=None, **rest):
        many = calls if isinstance(calls, list) else [1 if calls is None else calls] * len(rewards)
        return [one_try(row_id, reward, n, i, **rest) for i, (reward, n) in enumerate(zip(rewards, many, strict=True))]

    return build
