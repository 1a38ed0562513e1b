"""What a log and a terminal show of a run."""

import io
import re

import msgspec
import pytest
from rich.console import Console

from agent_rft.contracts.guards import Finding
from agent_rft.contracts.training import StepMetrics
from agent_rft.evaluation.live import LiveTable, progress, spell_seconds


class Clock:
    """Ten seconds pass from one look to the next: each step looks once."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 10.0
        return self.now


def metrics(step, val_reward=None, **rest):
    numbers = {
        "tool_calls": 5.04,
        "kl_to_ref": 0.0081,
        "loss": -0.27,
        "train_reward": 0.6,
        "tokens": 900,
        "seconds": 3.0,
        "rollouts": 16,
    } | rest
    return StepMetrics(step=step, val_reward=val_reward, **numbers)


def shown(steps, total, terminal):
    out = io.StringIO()
    with LiveTable(total, Console(file=out, force_terminal=terminal, width=120, height=200), Clock()) as table:
        for one in steps:
            table.step(one, total)
    return out.getvalue()


def test_a_log_gets_one_aligned_line_a_validation():
    steps = [
        metrics(0, 0.59, val_tool_calls=9.1, kl_to_ref=0.0, loss=-0.18),
        metrics(1),
        metrics(2, 0.61, val_tool_calls=8.4, kl_to_ref=0.003, loss=-0.211, infra_failures=2),
        metrics(3, 0.7, val_tool_calls=8.0, train_reward=None, tool_calls=None, kl_to_ref=None, loss=None, tokens=0),
    ]
    assert shown(steps, 3, terminal=False).splitlines() == [
        "step  val_reward  tool_calls  kl_to_ref    loss   infra   tok/s     left",
        "   0        0.59         9.1      0.000   -0.18    0.0%     300        ·",
        "   2        0.61         8.4      0.003   -0.21   12.5%     300      10s",  # 2 of 16
        "   3        0.70         8.0          ·       ·    0.0%       ·       0s",
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_a_finding_is_a_line_of_its_own_also_on_a_step_that_a_log_passes_over(terminal):
    found = Finding(guard="early_stop", step=1, figure=0.6, limit=0.5, action="warn", what="60% answer [at once]", cure="see why")
    ends = msgspec.structs.replace(found, guard="kl", action="halt", what="the policy has drifted")
    text = shown([metrics(0, 0.59), metrics(1, findings=[found, ends])], 3, terminal)
    assert "step 1, early_stop warns: 60% answer [at once] (see why)\n" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", text)
    assert "step 1, kl ends the run: the policy has drifted" in text


def test_a_rounded_nothing_has_no_minus():
    (_, line) = shown([metrics(0, 0.5, kl_to_ref=-0.0001, loss=-0.001)], 9, terminal=False).splitlines()
    assert line.split()[3:5] == ["0.000", "0.00"]


def test_a_terminal_keeps_every_validation_and_the_last_dozen_steps():
    steps = [metrics(step, 0.5 if step % 10 == 0 else None) for step in range(41)]
    words = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown(steps, 41, terminal=True))
    final_table = words.rsplit("val_reward", 1)[1]
    kept = [int(line.split()[0]) for line in final_table.splitlines() if re.match(r"\s*\d", line)]
    # of 36 steps without validation the last 12: 27 to 29 and 31 to 39
    assert kept == [0, 10, 20, 27, 28, 29, 30, *range(31, 40), 40]


def test_time_left_goes_by_the_pace_of_this_sitting():
    # A run resumed at step 50: one step took 10 s by the clock, 49 are left.
    (*_, line) = shown([metrics(50, 0.5), metrics(51, 0.5)], 100, terminal=False).splitlines()
    assert line.split()[-1] == "8m10s"


@pytest.mark.parametrize(("seconds", "words"), [(None, "·"), (9.6, "10s"), (61, "1m01s"), (3599.6, "1h00m"), (7260, "2h01m")])
def test_seconds_are_spelt_for_people(seconds, words):
    assert spell_seconds(seconds) == words


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_leaves_one_line_with_what_came_back(tried, terminal):
    out = io.StringIO()
    with progress("prior check", 3, Console(file=out, force_terminal=terminal, width=120)) as done:
        for one in tried("a", [1.0, 0.5, None]):
            done(one)
    assert out.getvalue().splitlines()[-1].endswith("prior check: 3 rollouts in 0s  reward 0.75  infra failures 1")
