"""Runs beside each other: compared only on the same rows by the same grader, and what differs is said."""

import itertools
import re
import runpy
from pathlib import Path

import msgspec
import numpy as np
import pytest

from agent_rft.evaluation.report import beside as module
from agent_rft.evaluation.report.beside import beside, comparable, left_out, paired, render_beside
from agent_rft.evaluation.report.style import STYLE

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
    assert (
        "These runs were judged by different data sets: their rewards cannot be compared" in html
        and "The tuned models on the same rows" not in html
    )
    assert "Validation reward, each under its own grader and rows: not to be compared" in html and "Validation reward ends" not in html


def test_only_what_differs_is_listed(pair):
    first, second = pair
    second = msgspec.structs.replace(second, settings={**second.settings, "seed": 43, "algorithm": {"learning_rate": 0.1}})
    html = beside((first, second))
    assert "<code>seed</code>" in html and "<code>algorithm.learning_rate</code>" in html and "store.url" not in html
    assert "first/40" in html and "d4ta" not in html
    assert "No setting differs." in beside((first, first))


def test_a_run_that_was_halted_stands_beside_the_others(pair):
    """The sample's last line is of a guard that stops."""
    ended = msgspec.structs.replace(pair[1], comparison=None, halted="the graders part")
    assert "<h1>Beside first, on the same rows: second was stopped and not evaluated</h1>" in render_beside((pair[0], ended))
    html = render_beside((ended, pair[0]))
    assert "<h1>second was stopped and not evaluated: there is nothing to hold the others against; name another run first</h1>" in html


def test_among_several_runs_a_change_is_clear_only_if_it_is_so_among_them_all(pair, monkeypatch):
    """A change whose own interval leaves zero out, and whose p is 0.02: doubled for having looked at two it is 0.04, for three 0.06."""
    monkeypatch.setattr(module, "wilcoxon", lambda _: 0.02)
    first, second = pair
    runs = [first, *(msgspec.structs.replace(second, run_id=name) for name in "abc")]
    assert [(one.p, one.verdict) for one in paired(runs[:3])] == [(0.04, "better")] * 2
    assert [(one.p, one.verdict) for one in paired(runs)] == [(0.06, "perhaps better")] * 3


def test_the_sides_are_not_called_base_and_tuned_where_they_are_two_tuned_models(pair):
    html = beside(pair)
    slices = html[html.index("No kind of row moved more than luck explains under second") :]
    assert '<th scope="col">first</th><th scope="col">this</th>' in slices and '<th scope="col">base</th>' not in slices


COLOUR_BLINDNESS = {
    "green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
"""What is seen of linear red, green and blue where a kind of cone is missing: Machado, Oliveira and Fernandes (2009)."""


@pytest.mark.parametrize("place", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("kind", COLOUR_BLINDNESS)
def test_no_two_runs_look_alike_with_any_colour_vision(kind, place):
    """The last three runs are dashed; among runs drawn alike colours stay apart by 9 in Lab's unit: 2 is just seen, 10 at a glance."""
    assert "polyline:is(.run-3, .run-4, .run-5) { stroke-dasharray" in STYLE
    names = ("better", "worse", "run-2", "run-3", "run-4", "run-5")
    seen = {name: _lab(np.array(COLOUR_BLINDNESS[kind]) @ _light(re.findall(rf"--{name}: (#\w+)", STYLE)[place])) for name in names}
    pairs = [pair for alike in (names[:3], names[3:]) for pair in itertools.combinations(alike, 2)]
    assert {pair: apart for pair in pairs if (apart := np.linalg.norm(seen[pair[0]] - seen[pair[1]])) < 9} == {}


def _light(colour):
    shares = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)


def _lab(light):
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ light.clip(0, 1) / [0.9505, 1, 1.089]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_runs_beyond_those_that_colours_tell_apart_are_named_as_left_out(pair):
    runs = [msgspec.structs.replace(pair[0], run_id=f"run-{number}") for number in range(8)]
    assert left_out(runs[:6]) == "" and "Left out" not in beside(runs[:6])
    said = "Left out: run-6, run-7. The first 6 are beside each other: more than that, colours do not tell apart."
    assert left_out(runs) == said and said in beside(runs)
