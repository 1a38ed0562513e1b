"""Runs beside each other: compared only on the same rows by the same grader, and what differs is said."""

import runpy
from pathlib import Path

import msgspec
import pytest

from agent_rft.evaluation.report.beside import beside, comparable, left_out, paired, render_beside

make_report = runpy.run_path(str(Path(__file__).with_name("sample_report.py")))["make_report"]


@pytest.fixture(scope="module")
def pair():
    return make_report("first", 0.5), make_report("second", 1.0)


def test_the_tuned_models_are_compared_row_by_row(pair):
    """20 of 30 rows: their second try earns 1.0 instead of 0.5, so each gains 0.25; the other 10 stay. Mean 1/6."""
    (found,) = paired(pair)
    assert found.name == "second" and len(found.rows) == 30 and found.verdict == "better"
    assert found.change.estimate == pytest.approx(20 * 0.25 / 30)
    assert "Beside first, on the same rows: second +0.167, better" in beside(pair)
    assert "0 rows worse and 20 better under second" in beside(pair)


def test_runs_of_other_rows_are_not_compared(pair):
    first, second = pair
    other = msgspec.structs.replace(second, versions=msgspec.structs.replace(second.versions, dataset="another"))
    assert comparable(pair) and not comparable((first, other))
    html = beside((first, other))
    assert "their rewards cannot be compared" in html and "The tuned models on the same rows" not in html


def test_only_what_differs_is_listed(pair):
    first, second = pair
    second = msgspec.structs.replace(second, settings={**second.settings, "seed": 43, "algorithm": {"learning_rate": 0.1}})
    html = beside((first, second))
    assert "<code>seed</code>" in html and "<code>algorithm.learning_rate</code>" in html and "store.url" not in html
    assert "first/40" in html and "d4ta" not in html
    assert "No setting differs." in beside((first, first))


def test_a_run_that_was_halted_stands_beside_the_others(pair):
    halted = msgspec.structs.replace(pair[1], comparison=None, halted="kl")
    html = render_beside((pair[0], halted))
    assert "None of the others was evaluated on rows of first" in html and "halted" in html


def test_runs_beyond_those_that_colours_tell_apart_are_named_as_left_out(pair):
    runs = [msgspec.structs.replace(pair[0], run_id=f"run-{number}") for number in range(8)]
    assert left_out(runs[:6]) == "" and "Left out" not in beside(runs[:6])
    said = "Left out: run-6, run-7. The first 6 are beside each other: more than that, colours do not tell apart."
    assert left_out(runs) == said and said in beside(runs)
