"""The last line names the most pressing thing."""

import re
import shlex
import subprocess
from pathlib import Path

import msgspec
import pytest

from agent_rft.evaluation.compare import compare
from agent_rft.evaluation.next_step import next_step

ROOT = Path(__file__).parents[2]
GAIN = [(0.0, 1.0)] * 8
"""Beyond luck."""


@pytest.fixture
def after(tried):
    """The line after an evaluation, by (base, tuned) reward of each row."""

    def line(*pairs):
        base = [one for i, (before, _) in enumerate(pairs) for one in tried(str(i), [before])]
        tuned = [one for i, (_, after) in enumerate(pairs) for one in tried(str(i), [after])]
        return next_step("runs/r1", compare(base, tuned))

    return line


def test_every_command_it_names_is_a_target_of_the_makefile(after):
    compared = after((1.0, 1.0), (None, 1.0), (1.0, None))
    said = " ".join((next_step("runs/r1"), next_step("runs/r1", halted="a tool fails"), compared, after(*GAIN), after((0.0, 1.0))))
    named = set(re.findall(r"`make ([a-z-]+)", said))
    assert named == {"resume", "evaluate", "inspect", "serve"}
    assert named <= set(re.findall(r"^([a-z-]+):", ROOT.joinpath("Makefile").read_text(), re.MULTILINE))


def test_a_clean_gain_is_served(after):
    assert after(*GAIN) == (
        "Next: open runs/r1/report.html, then `make inspect RUN=r1` (no row got worse: what is suspiciously right); then `make serve`"
    )


def test_what_is_served_is_the_recipe_that_was_trained(tried):
    base, tuned = ([one for i in range(8) for one in tried(str(i), [reward])] for reward in (0.0, 1.0))
    assert next_step("runs/r1", compare(base, tuned), recipe="my units").endswith("then `make serve CONF='my units'`")


@pytest.mark.parametrize(
    ("worse", "told"),
    [
        ([(1.0, 0.5)], "(the row that got worse: 20)"),
        ([(1.0, 0.5), (1.0, 0.25)], "(the 2 rows that got worse: 21, 20)"),
        ([(1.0, 0.5), (1.0, 0.25), (0.5, 0.4), (1.0, 0.0)], "(the 4 rows that got worse, first 23, 21, 20)"),
    ],
)
def test_regressions_are_read_first_the_worst_before_the_others(after, worse, told):
    """They lost 0.5, 0.75, 0.1 and 1."""
    line = after(*[(0.0, 1.0)] * 20, *worse)
    assert line == f"Next: open runs/r1/report.html, then `make inspect RUN=r1` {told}; then `make serve`"


@pytest.mark.parametrize(
    "pairs",
    [GAIN, [*GAIN, (1.0, 0.5)], [(0.0, 1.0), (0.0, 1.0), (1.0, 0.5)], [(1.0, 0.5), (1.0, 0.5), (0.0, 1.0)], [(1.0, 1.0)]],
    ids=["gain", "a regression", "luck", "more regressions", "no gain"],
)
def test_whatever_came_out_the_line_leads_to_the_report_and_to_single_rows(after, pairs):
    assert after(*pairs).startswith("Next: open runs/r1/report.html, then `make inspect RUN=r1` (")


def test_a_rise_that_may_be_luck_is_not_served(after):
    line = after((0.0, 1.0), (0.0, 1.0), (1.0, 0.5))
    assert "may be luck on 3 rows" in line and "serve" not in line


def test_a_slice_that_got_worse_under_a_gain_is_read_first(tried):
    """24 easy rows turn right, 10 hard ones wrong: the whole gains 14 of 34, and 2 x 1/2^10 is beyond luck among four slices."""
    moves = {"easy": (0.0, 1.0, 24), "hard": (1.0, 0.0, 10)}

    def side(at):
        return [
            one
            for name, move in moves.items()
            for row in range(move[2])
            for one in tried(f"{name}{row}", [move[at]], metadata={"task_type": "qa", "difficulty": name})
        ]

    line = next_step("runs/r1", compare(side(0), side(1)))
    assert line.endswith(
        "(the 10 rows that got worse, first hard0, hard1, hard2): the rows of difficulty=hard got worse while the whole "
        "got better; do not serve it yet"
    )


def test_more_regressions_than_gains_point_at_the_grader_not_at_serving(after):
    line = after((1.0, 0.5), (1.0, 0.5), (0.0, 1.0))
    assert "2 got worse, 1 better" in line and "grader" in line and "serve" not in line


def test_no_gain_is_said(after):
    assert "did not rise" in after((1.0, 1.0))


def test_unscored_rows_point_at_the_infrastructure(after):
    assert "mend the infrastructure" in after((1.0, 1.0), (None, 1.0), (1.0, None))


def test_a_halted_run_says_the_cure(tried):
    line = next_step("runs/r1", halted="tool:search failed 3% of calls", cure="mend tool:search, then resume")
    assert line == "Next: mend tool:search, then resume: `make resume RUN=r1`"


def test_a_run_that_a_guard_would_end_again_at_once_is_told_how_to_go_on(tried):
    line = next_step("runs/r1", halted="gamed", cure="mend the grader", look_at=("a",), guard="holdout_divergence")
    assert line == (
        "Next: `make inspect RUN=r1`, first a: mend the grader. Another grader or other rows are a new run, `make train`; where the "
        'guard is wrong: `make resume RUN=r1 ARGS="guards.watch.holdout_divergence.action=warn"`'
    )


def test_without_a_comparison_it_asks_for_one():
    assert "make evaluate RUN=r1" in next_step("runs/r1")


def test_a_run_elsewhere_is_named_by_its_folder():
    assert "make evaluate RUN=/data/runs/r1`" in next_step("/data/runs/r1")


def test_a_name_with_spaces_and_umlauts_is_one_word_of_the_command_and_of_the_command_that_make_runs():
    run = "Maße & Größen/it's one"
    told = re.search(r"`make (evaluate RUN=.*)`", next_step(f"/{run}"))
    assert told and shlex.split(told[1]) == ["evaluate", f"RUN=/{run}"]
    shown = "RFT=printf '[%s]'"
    for target, given in {"resume": "", "evaluate": "", "inspect": "", "regrade": "[--run]"}.items():
        words = ["make", "--silent", "-o", ".make/local", "-o", ".make/data", target, f"RUN=/{run}", shown]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.startswith(f"[{target}]{given}[/{run}]"), done.stdout


def test_it_is_one_line(after):
    assert all("\n" not in after(*pairs) for pairs in ([(0.0, 1.0)], [(1.0, 0.0)], [(1.0, 1.0)]))
    assert msgspec.json.encode(after((0.0, 1.0)))
