"""The teacher's flaws are chances at the rates it names; its honesty (only paths it has seen) is not."""

import random

import pytest

from agent_rft.datasets.filings import METRICS, ask_higher_of_two, ask_one_figure, draw_question
from agent_rft.training.local.tiny.teacher import BRISK, MISTAKEN_FOR, MOST_CALLS, RIGHT_LINE, SLOW, write_trace


@pytest.fixture
def trace_of(crown_optics, call_tool):
    def trace_of(question, seed=0, pace=SLOW):
        return write_trace(question, crown_optics, call_tool, random.Random(seed), pace)

    return trace_of


@pytest.fixture(scope="module")
def traces(crown_optics, call_tool):
    """Three hundred of any shape."""
    rng = random.Random(1)
    asked = [draw_question(crown_optics, rng.choice(("easy", "medium", "hard")), 0.3, rng) for _ in range(300)]
    return [(question, write_trace(question, crown_optics, call_tool, rng, SLOW)) for question in asked]


def test_it_reads_no_path_that_it_has_not_seen(traces):
    for _, trace in traces:
        seen = ""
        for turn in trace.turns:
            assert all(argument in seen for name, argument in turn.calls if name == "read")
            seen += "\n".join(turn.results)


def test_it_stays_within_its_calls_and_needs_many(traces):
    counts = [trace.tool_calls for _, trace in traces]
    assert max(counts) <= MOST_CALLS
    assert 6 < sum(counts) / len(counts) < 9


def test_it_uses_every_tool_and_now_and_then_two_at_once(traces):
    turns = [turn for _, trace in traces for turn in trace.turns]
    assert {name for turn in turns for name, _ in turn.calls} == {"search", "list", "read"}
    assert 0.02 < sum(len(turn.calls) == 2 for turn in turns) / len(turns) < 0.15
    assert all(len(turn.results) == len(turn.calls) for turn in turns)


@pytest.mark.parametrize("metric", METRICS)
def test_it_takes_the_right_line_as_often_as_it_says(metric, crown_optics, trace_of):
    filing = crown_optics[0]
    answers = [trace_of(ask_one_figure(filing, metric, random.Random(0)), seed).answer for seed in range(200)]
    figures = {filing.figure(metric): 0, filing.figure(MISTAKEN_FOR[metric]): 0}
    for answer in answers:
        figure = answer.removeprefix("about ")
        figures[figure] = figures.get(figure, 0) + 1
    from_lines = figures[filing.figure(metric)] + figures[filing.figure(MISTAKEN_FOR[metric])]
    assert from_lines > 180  # of the others, a few come from another filing
    # A search's snippet shows the line asked for, so the right one is taken somewhat oftener than from a filing.
    assert RIGHT_LINE[metric] - 0.1 < figures[filing.figure(metric)] / from_lines < RIGHT_LINE[metric] + 0.25


def test_brisk_it_needs_fewer_calls_than_slow(crown_optics, trace_of):
    question = ask_one_figure(crown_optics[0], "revenue", random.Random(0))
    brisk, slow = (sum(trace_of(question, seed, pace).tool_calls for seed in range(200)) for pace in (BRISK, SLOW))
    assert brisk + 100 < slow


def test_some_answers_are_hedged(traces):
    hedged = sum(trace.answer.startswith("about ") for _, trace in traces)
    assert 5 < hedged < 40  # 6% of 300 is 18


def test_without_flaws_it_searches_reads_and_is_right(crown_optics, trace_of):
    question = ask_one_figure(crown_optics[1], "free cash flow", random.Random(0))
    trace = trace_of(question, pace=None)
    assert [turn.calls[0][0] for turn in trace.turns] == ["search", "read"]
    assert trace.turns[1].calls[0][1] == crown_optics[1].path
    assert trace.answer == question.answer


def test_without_flaws_it_reads_both_of_two_periods(crown_optics, trace_of):
    question = ask_higher_of_two(crown_optics[0], crown_optics[2], "revenue")
    trace = trace_of(question, pace=None)
    assert {argument for turn in trace.turns for name, argument in turn.calls if name == "read"} == {
        crown_optics[0].path,
        crown_optics[2].path,
    }
    assert trace.answer == question.answer


def test_the_same_seed_writes_the_same_trace(crown_optics, trace_of):
    question = ask_one_figure(crown_optics[2], "net margin", random.Random(0))
    assert trace_of(question, seed=5) == trace_of(question, seed=5)
    assert len({trace_of(question, seed=seed).tool_calls for seed in range(20)}) > 3
