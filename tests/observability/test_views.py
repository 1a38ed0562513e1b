"""Saved views and the lineage of cards: names that a team gives, and what they stand for."""

from __future__ import annotations

import datetime as dt

import pytest

from agent_rft.contracts.errors import FaultsFound
from agent_rft.contracts.jobcards import Versions
from observability import views
from observability.artifacts import lineage, register
from observability.dossier import Artifact, NotThere

NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)


def test_a_view_is_checked_when_it_is_saved_and_stands_for_what_was_typed(store):
    mine = store.of("local")
    views.save(mine, "ann", "local", "low.grades", "grade<0.5 after:7d")
    views.save(mine, "bob", "local", "low.grades", "grade<0.4 after:7d")
    assert [(one.name, one.query, one.by) for one in views.listed(mine, "local")] == [("low.grades", "grade<0.4 after:7d", "bob")]
    assert views.query_of(mine, "local", " @low.grades ") == "grade<0.4 after:7d"
    assert str(views.read_query(mine, "local", "@low.grades", NOW)) == "grade<0.4 started>=2026-11-14T12:00:00Z"
    for mixed in ("@low.grades kind:eval", "kind:eval @low.grades", "@low.grades!"):  # it would be looked for as a word
        with pytest.raises(FaultsFound, match=r"names a saved view, which is asked for by itself"):
            views.read_query(mine, "local", mixed, NOW)
    assert str(views.read_query(mine, "local", '"@low.grades" kind:eval', NOW)) == '"@low.grades" kind:eval'
    with pytest.raises(FaultsFound) as found:
        views.save(mine, "ann", "local", "a b", "grade<low kindd:x")
    assert [fault.where for fault in found.value.faults] == ["name", "character 1", "character 11"]
    with pytest.raises(NotThere, match=r"no view low.grade\b") as missing:
        views.query_of(mine, "local", "@low.grade")
    assert missing.value.cure == "did you mean 'low.grades'?"
    assert views.listed(store.of("other"), "other") == []
    with pytest.raises(NotThere):
        views.remove(store.of("other"), "other", "low.grades")
    views.remove(mine, "local", "low.grades")
    assert views.listed(mine, "local") == []


def test_a_lineage_goes_from_the_checkpoint_to_all_that_it_was_made_from(store):
    made = [
        Artifact(kind="run", id="r1", name="r1", run_id="r1", parents=(("checkpoint", "base"), ("dataset", "d1"))),
        Artifact(kind="checkpoint", id="base", name="models/tiny", run_id="r1"),
        Artifact(kind="dataset", id="d1", name="data/research", run_id="r1", facts={"train": 800}),
        Artifact(kind="checkpoint", id="r1/step-40", name="r1/step-40", run_id="r1", parents=(("run", "r1"),)),
        Artifact(kind="tool_set", id="", name="none"),
    ]
    register(store, "local", made)
    register(store, "local", [Artifact(kind="dataset", id="d1", name="another", run_id="r2")])
    found = lineage(store.of("local"), "local", Versions(code="1", checkpoint="r1/step-40", dataset="d1", grader="numeric@1#ab"))
    assert [(one.kind, one.name, one.known) for one in found] == [
        ("checkpoint", "r1/step-40", True),
        ("dataset", "data/research", True),
        ("grader", "numeric@1#ab", False),
        ("run", "r1", True),
        ("checkpoint", "models/tiny", True),
    ]
    unsaved = lineage(store, "local", Versions(code="1", checkpoint="r1/step-17"))
    assert [(one.kind, one.id, one.known) for one in unsaved][:2] == [("checkpoint", "r1/step-17", False), ("run", "r1", True)]
    assert [one.known for one in lineage(store.of("other"), "other", Versions(code="1", checkpoint="r1/step-40"))] == [False, False]


def test_a_lineage_that_names_itself_ends(store):
    register(store, "local", [Artifact(kind="checkpoint", id="a", name="a", parents=(("checkpoint", "a"),))])
    assert len(lineage(store, "local", Versions(code="1", checkpoint="a"))) == 1
