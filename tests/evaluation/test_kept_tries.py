"""What was run once is not run again, whatever stopped the evaluation, and whatever a killed process left half written."""

import asyncio
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_rft.contracts.agents import Agent
from agent_rft.contracts.errors import UserError
from agent_rft.contracts.events import InfraFailed, ModelSpoke
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.rollouts import Ending, Limits, ToolResult
from agent_rft.contracts.rows import Row
from agent_rft.evaluation.kept_tries import KeptTries
from agent_rft.evaluation.suite import evaluate, tries_at
from agent_rft.rollouts.in_process import ScriptedSampler

ROWS = [Row(id=name, prompt=f"What is {name}?", reference_answer=name) for name in ("a", "b", "c")]
AGENT = Agent(checkpoint="w", tool_set="t")


class Model:
    """Answers the letter that it is asked for, and notes each question; those in `down` meet a dead server."""

    def __init__(self, down=()):
        self.asked, self.down = [], down

    def __call__(self, ask):
        letter = ask.conversation[-1].content[8]
        self.asked.append(letter)
        spoke = ModelSpoke(letter, context_ids=[1, 2], sampled_ids=[3], logprobs=[float("nan")])
        return InfraFailed("model", "gone") if letter in self.down else spoke


class SameText:
    def __init__(self, name="same", fails=False):
        self.ref, self.fails, self.graded = GraderRef(name, "1", f"hash-of-{name}"), fails, 0

    def grade(self, item, sample):
        self.graded += 1
        if self.fails:
            raise RuntimeError("no judge")
        return Grade(self.ref, float(sample["output_text"] == item["reference_answer"]))


class NoTools:
    async def call(self, rollout_id, call):
        return ToolResult(call.call_id, "")


async def run(folder, model, grader=None, rows=ROWS, tries=2, weights="", seed=42, agent=AGENT, batched=False):
    grader = grader or SameText()
    with KeptTries.opened(folder, agent, grader.ref, weights) as kept:
        sampler = ScriptedSampler(model, batched)
        return await evaluate(rows, tries, sampler, NoTools(), grader, Limits(), seed, "eval", kept=kept)


def told(graded):
    return [(one.row.id, one.sample_index, one.rollout.rollout_id, one.rollout.ending, one.rollout.answer, one.reward) for one in graded]


@pytest.mark.parametrize("batched", [False, True])
async def test_what_is_kept_is_neither_run_nor_graded_again_and_tells_the_same(tmp_path, batched):
    first, model, grader = await run(tmp_path, Model(), batched=batched), Model(), SameText()
    again = await run(tmp_path, model, grader, batched=batched)
    assert told(again) == told(first) and [one.reward for one in again] == [1.0] * 6
    assert (model.asked, grader.graded) == ([], 0)
    assert [one.rollout.total_tokens for one in again] == [3] * 6, "two of context and one sampled are still counted"


async def test_more_tries_and_more_rows_are_run_alone(tmp_path):
    await run(tmp_path, Model(), rows=ROWS[:2])
    more_tries, more_rows = Model(), Model()
    assert len(await run(tmp_path, more_tries, rows=ROWS[:2], tries=3)) == 6
    assert len(await run(tmp_path, more_rows, tries=3)) == 9
    assert (sorted(more_tries.asked), more_rows.asked) == (["a", "b"], ["c"] * 3)


async def test_what_infrastructure_spoilt_is_run_again_and_nothing_else(tmp_path):
    spoilt = await run(tmp_path, Model(down="b"))
    assert [one.rollout.ending for one in spoilt].count(Ending.INFRA_FAILED) == 2
    model = Model()
    assert [one.reward for one in await run(tmp_path, model)] == [1.0] * 6
    assert model.asked == ["b", "b"]


async def test_a_grader_that_fails_costs_no_rollout_and_is_asked_again(tmp_path):
    failed = await run(tmp_path, Model(), SameText(fails=True))
    assert {one.rollout.failed_part for one in failed} == {"grader:same"}
    still, model = SameText(fails=True), Model()
    await run(tmp_path, model, still)
    mended = SameText()
    again = await run(tmp_path, model, mended)
    assert (still.graded, mended.graded, model.asked) == (6, 6, []), "its failure was never taken for a grade"
    assert [(one.rollout.ending, one.rollout.failed_part, one.reward) for one in again] == [(Ending.ANSWERED, "", 1.0)] * 6


async def test_another_grader_and_a_mended_answer_are_graded_without_a_rollout(tmp_path):
    await run(tmp_path, Model())
    model, other, same = Model(), SameText("other"), SameText()
    await run(tmp_path, model, other)
    mended = [ROWS[0], msgspec.structs.replace(ROWS[1], reference_answer="x"), ROWS[2]]
    graded = await run(tmp_path, model, same, rows=mended)
    assert (other.graded, same.graded, model.asked) == (6, 2, [])
    assert [one.reward for one in graded] == [1.0, 1.0, 0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize(
    "other",
    [
        {"weights": "of other weights under this name"},
        {"seed": 43},
        {"agent": Agent(checkpoint="w", tool_set="t", temperature=0.5)},
        {"rows": [msgspec.structs.replace(row, messages=(*row.opening(), *row.opening())) for row in ROWS]},
    ],
)
async def test_what_decides_a_rollout_otherwise_makes_it_another_one(tmp_path, other):
    await run(tmp_path, Model())
    model = Model()
    await run(tmp_path, model, **other)
    assert len(model.asked) == 6


async def test_a_record_that_the_disk_has_lost_is_made_again(tmp_path):
    await run(tmp_path, Model())
    tries = tmp_path / AGENT.id / "tries.jsonl"
    lines = tries.read_bytes().splitlines(keepends=True)
    lines[2] = b"\0" * (len(lines[2]) - 1) + b"\n"
    tries.write_bytes(b"".join(lines))
    with KeptTries.opened(tmp_path, AGENT, SameText().ref) as kept:
        assert kept.unreadable == 1
    model = Model()
    assert len(await run(tmp_path, model)) == 6
    assert len(model.asked) == 1


async def test_a_try_that_is_run_again_is_graded_again(tmp_path):
    """A disk that lost its power may keep the grade and lose the rollout that it is of."""
    await run(tmp_path, Model())
    (tmp_path / AGENT.id / "tries.jsonl").write_bytes(b"")

    def wrong(_):
        return ModelSpoke("wrong")

    assert [one.reward for one in await run(tmp_path, wrong)] == [0.0] * 6
    assert [one.reward for one in await run(tmp_path, Model())] == [0.0] * 6, "not the lost answers' grades"


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1), of_grades=st.floats(0, 1))
async def test_wherever_a_kill_cut_the_files_off_only_what_is_not_whole_is_made_again(tmp_path_factory, share, of_grades):
    folder = tmp_path_factory.mktemp("kept")
    await run(folder, Model())
    whole = dict[str, int]()
    for name, part in (("tries.jsonl", share), (f"grades-{SameText().ref.hash}.jsonl", of_grades)):
        file = folder / AGENT.id / name
        content = file.read_bytes()
        left = content[: int(part * len(content))]
        file.write_bytes(left)
        whole[name[:5]] = left.count(b"\n")
    model = Model()
    assert [one.reward for one in await run(folder, model)] == [1.0] * 6
    assert len(model.asked) == 6 - whole["tries"]
    last, grader = Model(), SameText()
    assert [one.reward for one in await run(folder, last, grader)] == [1.0] * 6
    assert (last.asked, grader.graded) == ([], 0), "and what was added after the cut is whole"


HOLDS = """
import sys
from pathlib import Path
from pathlib import Path
from agent_rft.contracts.agents import Agent
from agent_rft.contracts.grades import GraderRef
from agent_rft.evaluation.kept_tries import KeptTries
with KeptTries.opened(Path(sys.argv[1]), Agent(checkpoint="w", tool_set="t"), GraderRef("g", "1", "h")):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_at_once_are_refused_with_the_process_that_is_at_it(tmp_path):
    first = asyncio.run(run(tmp_path, Model()))
    other = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert other.stdout and other.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=f"process {other.pid} is evaluating this agent just now"):
            asyncio.run(run(tmp_path, Model()))
    finally:
        other.kill()  # as by kill -9: the system takes the lock back
        other.communicate()
    assert told(asyncio.run(run(tmp_path, Model()))) == told(first)


def keeps_on_a_full_disk(folder):
    with KeptTries.opened(folder, AGENT, SameText().ref) as kept:
        kept._tries._file = Path("/dev/full").open("ab", buffering=0)  # noqa: SIM115
        asyncio.run(evaluate(ROWS, 2, ScriptedSampler(Model()), NoTools(), SameText(), Limits(), 42, "eval", kept=kept))


def test_a_full_disk_is_one_clear_error_and_what_was_kept_stays(tmp_path):
    asyncio.run(run(tmp_path, Model(), rows=ROWS[:1]))
    with pytest.raises(UserError, match=r"tries cannot be kept in .*: No space left on device"):
        keeps_on_a_full_disk(tmp_path)
    model = Model()
    asyncio.run(run(tmp_path, model))
    assert sorted(model.asked) == ["b", "b", "c", "c"]


async def test_only_grades_that_an_acknowledged_card_holds_count_as_recorded(tmp_path):
    first, *_ = tries_at(ROWS, 2, 42, "eval")
    await run(tmp_path, Model())
    with KeptTries.opened(tmp_path, AGENT, SameText().ref) as kept:
        assert not kept.recorded(first), "nobody has said so"
        kept.note_recorded(tries_at(ROWS, 1, 42, "eval"))  # an earlier command was killed before the store had the second tries
    await run(tmp_path, Model(), tries=3)
    with KeptTries.opened(tmp_path, AGENT, SameText().ref) as kept:
        assert [kept.recorded(one) for one in tries_at(ROWS, 3, 42, "eval")] == [True, False, False] * 3
        kept.note_recorded(tries_at(ROWS[:1], 3, 42, "eval"))
    with KeptTries.opened(tmp_path, AGENT, SameText().ref) as kept:
        assert [kept.recorded(one) for one in tries_at(ROWS, 3, 42, "eval")] == [True, True, True, *[True, False, False] * 2]
    with KeptTries.opened(tmp_path, AGENT, SameText("other").ref) as kept:
        assert not kept.recorded(first)
