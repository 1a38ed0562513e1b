"""What runs came to, kept in the store: the newest report of each, a tenant's own only, and without what nobody should read."""

import runpy
from pathlib import Path

import msgspec
import pytest

from agent_rft.evaluation.report.contents import RunReport, without_words
from observability.redaction.detectors import BUILT_IN
from observability.run_reports import Made, keep, newest, run_of, runs

make_report = runpy.run_path(str(Path(__file__).parents[1] / "evaluation" / "sample_report.py"))["make_report"]


def put(store, run_id, told=None, headline="Better", tenant="acme"):
    keep(store, tenant, Made(run_id, "research_tiny", headline, told or {"seed": 42}), BUILT_IN)


def test_the_newest_report_of_a_run_is_the_one_that_is_shown(store):
    put(store, "a", {"seed": 1}, "first")
    put(store, "a", {"seed": 2}, "second")
    put(store, "b", {"seed": 3}, "other")
    assert newest(store, "acme", "a") == {"seed": 2} and newest(store, "acme", "nothing") is None
    assert [(line.run_id, line.recipe, line.headline) for line in runs(store, "acme")] == [
        ("b", "research_tiny", "other"), ("a", "research_tiny", "second"),
    ]  # fmt: skip


def test_another_tenants_runs_are_not_there(store):
    put(store, "a")
    assert runs(store, "beta") == [] and newest(store, "beta", "a") is None and run_of(store, "beta", "a") is None
    assert run_of(store, "acme", "a").recipe == "research_tiny"


@pytest.mark.parametrize("place", ["said", "within", "as a name"])
def test_sentences_are_redacted_and_names_and_numbers_are_not(store, place):
    said = "write to jane.doe@example.com about it"
    told = {"said": {"what": said}, "within": {"every": [{"deep": said}]}, "as a name": {said: 3}}[place]
    put(store, "a", told | {"hash": "8f53b88b40b26462", "share": 0.123456789}, said)
    kept = newest(store, "acme", "a")
    assert "jane.doe" not in str(kept) and "write to [EMAIL] about it" in str(kept)
    assert (kept["hash"], kept["share"]) == ("8f53b88b40b26462", 0.123456789)
    assert runs(store, "acme")[0].headline == "write to [EMAIL] about it"


def test_a_whole_report_comes_back_as_it_was(store):
    told = without_words(make_report())
    put(store, "r1", msgspec.to_builtins(told))
    assert msgspec.convert(newest(store, "acme", "r1"), RunReport, str_keys=True) == told
