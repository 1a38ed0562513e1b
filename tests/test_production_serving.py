"""`rft serve serving=production`: which settings fit together, and which tools wait for a person."""

from __future__ import annotations

import datetime as dt

import pytest

from agent_rft.commands.parts import known_tools
from agent_rft.commands.serve import provider_of, rules_of
from agent_rft.compose import settings_for
from agent_rft.contracts.errors import FaultsFound, UserError
from observability.store import open_store


@pytest.fixture
def store(tmp_path):
    store = open_store(f"sqlite:///{tmp_path}/cards.db")
    yield store
    store.close()


def rules(store, tmp_path, *overrides):
    (tmp_path / "filings").mkdir(exist_ok=True)
    (tmp_path / "filings" / "a.html").write_text("Atlas")
    settings = settings_for("research_tiny", [f"tools.corpus={tmp_path}/filings", *overrides])
    return rules_of(settings, provider_of(settings), store)


def test_training_is_the_default_and_has_no_rules(store, tmp_path):
    assert rules(store, tmp_path) is None


def test_in_production_all_that_changes_something_waits_for_a_person_unless_told_otherwise(store, tmp_path):
    offered = ("serving=production", f"tools.outbox={tmp_path}", "tools.notebook=true")
    found = rules(store, tmp_path, *offered, "approvals.minutes=5", "serving.calls.queue=7")
    assert found is not None
    assert (found.high_impact, found.approval, found.queue, found.in_flight) == ({"publish"}, dt.timedelta(minutes=5), 7, 16)
    assert rules(store, tmp_path, *offered, "tools.high_impact=[search]").high_impact == {"search"}
    assert rules(store, tmp_path, "serving=production").high_impact == frozenset()
    assert known_tools(settings_for("research_tiny", list(offered))) == ["search", "list", "read", "remember", "recall", "publish"]


def test_settings_that_do_not_fit_together_are_told(store, tmp_path):
    with pytest.raises(FaultsFound, match="each rollout would publish in earnest"):
        settings_for("research_tiny", [f"tools.outbox={tmp_path}"])
    with pytest.raises(FaultsFound, match=r"tools.high_impact: there is no tool 'serch' \(did you mean 'search'\?\)"):
        rules(store, tmp_path, "serving=production", "tools.high_impact=[serch]")
    with pytest.raises(UserError, match="takes the store itself"):
        rules(None, tmp_path, "serving=production")
    with pytest.raises(UserError, match="there is no folder"):
        rules(store, tmp_path, "serving=production", f"tools.outbox={tmp_path}/gone")
