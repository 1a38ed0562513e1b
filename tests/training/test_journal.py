"""metrics.jsonl: what was appended is there, and what a kill left is not mistaken for it."""

import json
import math

import pytest

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.guards import Finding
from agent_rft.contracts.training import StepMetrics
from agent_rft.training.journal import MetricsFile


def written(path, steps: int) -> MetricsFile:
    journal = MetricsFile(path)
    for step in range(steps):
        journal.append(StepMetrics(step=step, val_reward=step / 10, rollouts=8))
    return journal


def steps_of(lines) -> list[int]:
    return [line.step for line in lines]


def test_a_line_is_one_json_object_with_every_field(tmp_path):
    written(tmp_path / "metrics.jsonl", 2)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["val_reward"] for line in lines] == [0.0, 0.1]
    assert set(json.loads(lines[0])) == set(StepMetrics.__struct_fields__)


def test_what_was_written_reads_back_equal(tmp_path):
    line = StepMetrics(step=3, val_reward=0.25, kl_to_ref=None, tokens=99, seconds=1.5)
    journal = MetricsFile(tmp_path / "metrics.jsonl")
    journal.append(line)
    assert journal.lines() == [line]


def test_before_the_first_line_there_is_none(tmp_path):
    assert MetricsFile(tmp_path / "metrics.jsonl").lines() == []


def test_half_a_line_is_no_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    journal = written(path, 3)
    path.write_bytes(path.read_bytes()[:-20])
    assert steps_of(journal.lines()) == [0, 1]


@pytest.mark.parametrize(
    ("was", "put", "said"),
    [
        (b'"step":1', b'"step":"one"', "line 2 cannot be read: Expected `int`, got `str`"),
        (b'"step":2', b'"step":"two"', "line 3 cannot be read: Expected `int`, got `str`"),  # the last, and whole: no kill left that
        (b'"audit":[]', b'"audit":["\xe9"]', "line 1 cannot be read: 'utf-8' codec"),
    ],
)
def test_a_line_that_cannot_be_read_takes_none_along(tmp_path, was, put, said):
    path = tmp_path / "metrics.jsonl"
    journal = written(path, 3)
    path.write_bytes(path.read_bytes().replace(was, put))
    with pytest.raises(UserError, match=said):
        journal.rewind(3)
    assert path.read_bytes().count(b"\n") == 3


def test_what_is_no_number_costs_no_line(tmp_path):
    journal = MetricsFile(tmp_path / "metrics.jsonl")
    journal.append(StepMetrics(step=0, kl_to_ref=math.inf, figures={"reward_spread": math.nan, "tries": 8.0}))
    [line] = journal.lines()
    assert (line.kl_to_ref, line.figures) == (None, {"tries": 8.0})


def test_rewinding_forgets_what_came_after_and_half_lines_with_it(tmp_path):
    path = tmp_path / "metrics.jsonl"
    journal = written(path, 5)
    path.write_bytes(path.read_bytes()[:-20])
    assert steps_of(journal.rewind(2)) == [0, 1]
    assert steps_of(journal.lines()) == [0, 1]
    journal.append(StepMetrics(step=2))
    assert steps_of(journal.lines()) == [0, 1, 2]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["metrics.jsonl"]


def test_rewinding_a_run_that_wrote_nothing_makes_its_folder(tmp_path):
    journal = MetricsFile(tmp_path / "run" / "metrics.jsonl")
    assert journal.rewind(0) == []
    journal.append(StepMetrics(step=0))
    assert steps_of(journal.lines()) == [0]


def ended(step: int, action: str = "stop") -> StepMetrics:
    found = Finding(guard="infra", step=step, figure=0.06, limit=0.01, action=action, what="tool:look failed", cure="mend tool:look")
    return StepMetrics(step=step, findings=[found])


def test_what_ended_a_run_stays_when_it_goes_on_marked_as_undone(tmp_path):
    """Halted at step 2, gone on from step 1; halted at step 1, gone on from there; then killed at step 2. A warning ends nothing."""
    path = tmp_path / "metrics.jsonl"
    journal = written(path, 2)
    for line in (ended(2, "halt"), ended(1), ended(2, "warn")):
        journal.append(line)
        journal.rewind(1)
        assert steps_of(journal.lines()) == [0], "the run knows the steps that count and no others"
    journal.append(StepMetrics(step=1))
    assert steps_of(journal.lines()) == [0, 1]
    assert [(line.step, line.undone, line.findings[0].action) for line in journal.undone()] == [(2, True, "halt"), (1, True, "stop")]
    raw = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["step"], line["undone"]) for line in raw] == [(0, False), (2, True), (1, True), (1, False)], "in the order of time"
