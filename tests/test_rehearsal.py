"""Releases of real agents through the real gateway, under simulated users: a good candidate goes to everybody by itself, a worse, a slow,
an unsafe and a crashing one are taken back by themselves. Each test reads the release's own record."""

import itertools
import json
import re
import tempfile

import pytest

from agent_rft.cli import main
from agent_rft.commands import rehearse as command
from agent_rft.commands.rehearsal import SCENARIOS, TENANT, Weights, play, world
from agent_rft.commands.simulated_users import Tally
from agent_rft.contracts.errors import FaultsFound, UserError
from observability import releases
from observability.ledger import verify
from observability.users import users_of

WEIGHTS = Weights("models/research-tiny", "models/research-tiny")


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with world(tmp_path_factory.mktemp("rehearsal"), WEIGHTS, list(SCENARIOS.values()), None, []) as made:
        yield made


@pytest.fixture(scope="module")
def played(running):
    """Plays a scenario and answers how it went; printed, as the command prints it."""

    def play_it(name):
        outcome = play(running, WEIGHTS, SCENARIOS[name], command.heard, at_once=10, longest_seconds=240)
        command.console.print(command.table_of([outcome]))
        return outcome

    return play_it


def trail(running, outcome):
    """What the store holds of a release: (stage, share) as it went, each step once."""
    told = releases.events(running.store, TENANT, outcome.release)
    return [key for key, _ in itertools.groupby((event.stage, event.share) for event in told)], told


def nobody_lost(outcome):
    for tally in (outcome.users, outcome.bystanders):
        assert tally.lost == [] and tally.answered == tally.sent > 0


def test_a_good_candidate_goes_to_everybody_by_itself(running, played):
    outcome = played("good")
    steps, told = trail(running, outcome)
    assert steps == [("offline", 0.0), ("shadow", 0.0), ("canary", 0.25), ("canary", 0.5), ("canary", 1.0), ("full", 1.0)]
    assert {event.by for event in told[1:]} == {"@controller"}
    tests = told[-1].figures["tests"]
    # margins of .2 at a chance of error of .2: shown once each e-value is above 5
    assert tests["promotion"]["noninferior"] and all(one["p"] <= 0.2 for one in tests["promotion"]["of"].values())
    assert tests["reward"]["candidate"] > tests["reward"]["live"]
    assert told[1].figures["candidate_reports"]["safety"]["passed"] is True
    nobody_lost(outcome)


def test_a_worse_one_is_taken_back_by_its_rewards(running, played):
    outcome = played("worse")
    steps, told = trail(running, outcome)
    assert steps[:3] == [("offline", 0.0), ("shadow", 0.0), ("canary", 0.25)] and steps[-1] == ("rolled_back", 0.0)
    last = told[-1]
    assert (last.act, last.by, last.figures["kpi"], last.cut) == ("rollback", "@controller", "reward", False)
    reward = last.figures["tests"]["reward"]
    # alpha .05, .4 of it for rewards, a fifth of that kept for the shadow: refused above an e-value of 1 / .016 = 62.5
    assert reward["alpha"] == pytest.approx(0.016) and reward["p"] <= 0.016
    assert reward["candidate"] < reward["live"] and reward["n"] >= 8
    nobody_lost(outcome)


def test_a_slow_one_is_taken_back_by_its_seconds(running, played):
    outcome = played("slow")
    steps, told = trail(running, outcome)
    assert steps[0] == ("offline", 0.0) and steps[1] == ("canary", 0.5) and steps[-1] == ("rolled_back", 0.0)
    assert told[-1].figures["kpi"] == "slow" and told[-1].by == "@controller"
    slow = told[-1].figures["tests"]["slow"]
    assert slow["candidate"] > 0.5 > slow["live"]
    nobody_lost(outcome)


def test_an_unsafe_one_is_taken_back_before_any_user_meets_it(running, played):
    outcome = played("unsafe")
    steps, told = trail(running, outcome)
    assert steps == [("offline", 0.0), ("shadow", 0.0), ("rolled_back", 0.0)]
    assert told[-1].cut and told[-1].by == "@controller" and told[-1].why.startswith("unsafe: critical:leaked")
    nobody_lost(outcome)


def test_a_crashing_one_is_taken_back_and_its_users_are_answered_by_the_live_one(running, played):
    outcome = played("crashing")
    steps, told = trail(running, outcome)
    assert steps == [("offline", 0.0), ("canary", 0.5), ("rolled_back", 0.0)]
    assert told[-1].why.startswith("errors: ") and told[-1].figures["failed"] >= 8
    nobody_lost(outcome)


def test_the_records_of_all_that_are_whole(running):
    assert list(verify(running.store, TENANT)) == []
    assert [user.role for user in users_of(running.store, TENANT)] == ["agent"]


# --- the command ----------------------------------------------------------------------------------------------------------


def test_an_outcome_that_is_another_than_expected_is_told(running):
    """`good` given up at once: neither full, nor decided; and a lost answer counts even where the release went well."""
    given_up = play(running, WEIGHTS, SCENARIOS["good"], lambda *_: None, at_once=1, longest_seconds=0.1)
    assert re.match("it is (offline|shadow), not full", given_up.faults()[0])
    lost = command.msgspec.structs.replace(given_up, users=Tally(sent=2, answered=1, lost=["503: away"]))
    assert "no answer: 503: away" in lost.faults()


def test_an_unknown_scenario_is_named_with_the_nearest(capfd):
    assert main(["release", "rehearse", "crashed", "slow"]) == 2
    assert "crashed: did you mean 'crashing'?" in capfd.readouterr().err


def test_a_runs_tuned_model_is_the_better_one(tmp_path):
    (tmp_path / "r1").mkdir()
    (tmp_path / "r1" / "summary.json").write_text(json.dumps({"checkpoint": "runs/r1/checkpoints/step-000060", "steps": 60}))
    weights = command.weights_of("models/base", None, "r1", str(tmp_path))
    assert weights == Weights("models/base", "runs/r1/checkpoints/step-000060")
    assert weights.of(SCENARIOS["good"]) == ("models/base", "runs/r1/checkpoints/step-000060")
    assert weights.of(SCENARIOS["worse"]) == ("runs/r1/checkpoints/step-000060", "models/base")
    assert weights.of(SCENARIOS["slow"]) == ("models/base", "models/base")
    with pytest.raises(UserError, match="name a run that is finished"):
        command.weights_of("models/base", None, "r2", str(tmp_path))


def test_nothing_is_left_behind_where_it_cannot_begin(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises((FaultsFound, UserError)):
        command.rehearse(["good"], live="models/nothing", candidate=None, run_id=None, runs="runs", store=None, users=1, seconds=1.0,
                         keep=None, settings=[])  # fmt: skip
    assert list(tmp_path.iterdir()) == []
