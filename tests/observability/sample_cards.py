"""Cards to record. A plain module, so that the child processes of these tests can import it too."""

from __future__ import annotations

from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.jobcards import Cost, JobCard, Versions
from agent_rft.contracts.messages import Message, ToolCall, ToolSpec
from agent_rft.contracts.rollouts import Ending, Limits, Rollout, ToolResult, Turn

OPENING = (
    Message("system", "You answer questions about company filings."),
    Message("user", "What was the operating margin of Henderson Hotels in Q3 2025?"),
)


def make_card(rollout_id: str = "card-1", **changed: object) -> JobCard:
    """A rollout that searched and read in parallel, then answered right."""
    calls = (
        ToolCall("call-1-1", "search", {"query": "Henderson Hotels operating margin Q3 2025"}),
        ToolCall("call-1-2", "read", {"path": "filings/henderson-hotels-10q-2025-q3.html"}),
    )
    results = {
        "call-1-1": ToolResult(
            "call-1-1", "filings/henderson-hotels-10q-2025-q3.html (score 8.21)\n  operating margin: 13.4%", None, 0.012
        ),
        "call-1-2": ToolResult("call-1-2", "Henderson Hotels Q3 2025\nrevenue: $842M\noperating margin: 13.4%", None, 0.25, 2),
    }
    searched = Turn("I look it up.", [1, 2, 3], [4, 5], [-0.1, -0.2], 3, 2, calls, results)
    answered = Turn("The operating margin was 13.4%.", [6], [7, 8, 9], [-0.3, -0.1, 0.0], 1, 3)
    rollout = Rollout(
        rollout_id,
        OPENING,
        (ToolSpec("search", "Search by words.", {"type": "object"}), ToolSpec("read")),
        Limits(),
        seed=7,
        turns=[searched, answered],
        ending=Ending.ANSWERED,
        reason="the model answered",
        answer="The operating margin was 13.4%.",
        started_at="2026-11-21T04:00:12.250000+00:00",
        seconds=1.93,
    )
    grade = Grade(GraderRef("numeric", "1", "a1b2c3d4e5f60718"), 1.0, True, {"found": "13.4%", "wanted": "13.4%"})
    card = {
        "kind": "eval",
        "tenant": "local",
        "run_id": "research_tiny-42",
        "step": 120,
        "row_id": "numerical-0412",
        "sample_index": 0,
        "started_at": rollout.started_at,
        "rollout": rollout,
        "reference_answer": "13.4%",
        "metadata": {"task_type": "numerical_qa", "difficulty": "medium", "metric": "operating margin"},
        "grade": grade,
        "advantage": 0.5,
        "cost": Cost(context_tokens=4, sampled_tokens=5, tool_calls=2, seconds=1.93, tool_seconds=0.262),
        "versions": Versions(code="0.1.0", checkpoint="tiny/120", dataset="d1", tool_set="t1", grader="numeric/1", seed=42),
    }
    return JobCard(rollout_id=rollout_id, **(card | changed))
