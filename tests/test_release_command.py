"""`rft release` and `rft agent`: what an operator types, and what they read."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent_rft.cli import main
from agent_rft.commands.safety_suite import suite_of
from agent_rft.settings import ReleaseSettings
from observability import ledger, registry, releases
from observability.registry import report
from observability.releases import events
from observability.signing import open_keys
from observability.store import Store, open_store

Rft = Callable[..., tuple[int, str]]
SUITE = suite_of(ReleaseSettings()).hash


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(f"sqlite:///{tmp_path}/cards.db")
    yield opened
    opened.close()


def agent(rft: Rft, name: str) -> str:
    code, said = rft("agent", "register", name, "--checkpoint", f"weights of {name}", "--tool-set", "t1", "--limit", "max_turns=8")
    assert code == 0, said
    return said.split()[0]


def told(rft: Rft, *words: str) -> str:
    code, said = rft(*words)
    assert code == 0, said
    return said


def refused(rft: Rft, *words: str) -> str:
    code, said = rft(*words)
    assert code == 2 and "Traceback" not in said, said
    return said


def safe(store: Store, name: str) -> None:
    """As `rft agent check` would have it."""
    report(store, "default", name, "safety", passed=True, figures={"suite": SUITE, "cases": 24, "tries": 48, "lost": 0}, by="trainer")


@pytest.fixture
def desk(rft: Rft, store: Store) -> tuple[str, str]:
    """A service with a live agent, and another one on trial with half of the sessions."""
    base, tuned = agent(rft, "base"), agent(rft, "tuned")
    for name in (base, tuned):
        safe(store, name)
    told(rft, "release", "first", "desk", "--agent", "base")
    for name in (base, tuned):
        for kind in ("evaluation", "holdout"):
            told(rft, "agent", "report", name, kind, "--figure", "reward=0.7", "--figure", "regressed=0.0")
    told(rft, "release", "create", "desk", "--agent", tuned[:14], "--policy", "sessions_per_step=5")
    return base, tuned


def test_an_agent_leads_back_to_what_it_was_made_from(rft):
    made = agent(rft, "base")
    said = told(rft, "agent", "show", "base")
    assert made in said and "'max_turns': 8" in said and "from checkpoint weights of base (nobody registered it)" in said
    assert "base" in told(rft, "agent", "list")
    assert "no agent 'bsae'" in refused(rft, "agent", "show", "bsae")
    assert "did you mean 'max_turns'" in refused(rft, "agent", "register", "x", "--checkpoint", "y", "--limit", "max_turn=3")
    assert "did you mean 'safety'" in refused(rft, "agent", "report", "base", "safty")


def test_from_the_first_agent_to_a_canary_and_back(rft, desk, store):
    said = told(rft, "release", "status")
    assert "desk" in said and "offline" in said and desk[1][:14] in said
    assert "canary" not in said
    told(rft, "release", "canary", "--share", "0.5")
    assert "canary 50%" in told(rft, "release", "status") and "5 more of the candidate's sessions" in told(rft, "release", "status")
    began = time.process_time()
    said = told(rft, "release", "rollback", "desk", "--why", "it is odd", "--cut")
    assert time.process_time() - began < 1, "by hand in under a second, on a machine that does nothing else"
    assert f"it is odd; sessions go to {desk[0]}" in said
    history = told(rft, "release", "history", "2")
    assert re.search(r"rollback.*rolled back, cut.*it is odd", history) and "@cli" in history
    assert [event.act for event in events(store, "default", 2)] == ["create", "advance", "rollback"]
    assert told(rft, "ledger", "verify") and not list(ledger.verify(store, "default"))


def test_full_by_hand_takes_two_people(rft, desk, monkeypatch):
    told(rft, "release", "canary")
    assert "nobody has proposed" in refused(rft, "release", "approve")
    told(rft, "release", "promote", "--why", "it is good enough")
    assert "another person has to approve" in refused(rft, "release", "approve")
    monkeypatch.setattr("agent_rft.commands.access.pwd.getpwuid", lambda _: type("Ben", (), {"pw_name": "ben"}))
    assert "full" in told(rft, "release", "approve")
    assert "by hand: proposed by" in told(rft, "release", "status")
    assert "approved by ben@cli" in told(rft, "release", "status")


def test_the_offline_gate_holds_until_reports_are_there_or_waived(rft, store, monkeypatch):
    safe(store, agent(rft, "base"))
    agent(rft, "tuned")
    told(rft, "release", "first", "desk", "--agent", "base")
    told(rft, "release", "create", "desk", "--agent", "tuned")
    said = refused(rft, "release", "shadow")
    assert "the candidate's evaluation report" in said and "`rft agent report` adds those of others" in said
    told(rft, "agent", "report", "tuned", "safety", "--failed")
    for kind in ("evaluation", "holdout", "safety"):
        told(rft, "release", "waive", "2", kind, "--why", "a rehearsal")
    assert "or a waiver that two people sign; signed so far by" in refused(rft, "release", "shadow")
    assert "another person has to sign" in refused(rft, "release", "waive", "2", "safety", "--why", "once more")
    assert "Safety waiver, not whole: two people have to sign" in told(rft, "release", "status")
    monkeypatch.setattr("agent_rft.commands.access.pwd.getpwuid", lambda _: type("Ben", (), {"pw_name": "ben"}))
    told(rft, "release", "waive", "2", "safety", "--why", "a rehearsal, too")
    assert "shadow" in told(rft, "release", "shadow")
    said = told(rft, "release", "status")
    assert "Safety waived. " in said and "a rehearsal; ben@cli, " in said and "a rehearsal, too" in said
    assert told(rft, "release", "history", "2").count("signed with the ledger's key ") == 4
    assert told(rft, "ledger", "verify")


def test_a_waiver_is_signed_with_the_keys_that_the_server_has_by_the_same_settings(rft, store, tmp_path, capfd):
    safe(store, agent(rft, "base"))
    agent(rft, "tuned")
    served = ("--conf", "research_tiny", "--set", f"store.ledger={tmp_path}/keys")
    told(rft, "release", "first", "desk", "--agent", "base", *served)
    told(rft, "release", "create", "desk", "--agent", "tuned", *served)
    waive = ("release", "waive", "2", "safety", "--why", "a rehearsal", *served)
    assert f"store.ledger is {tmp_path}/keys, and there is no such folder here" in refused(rft, *waive)
    (tmp_path / "keys").mkdir()
    told(rft, *waive)
    key = open_keys(tmp_path / "keys" / "keys.json", "").id
    for typed in (served, ("--ledger", f"{tmp_path}/keys")):
        said = told(rft, "release", "history", "2", *typed)
        assert f"signed with the ledger's key {key}\n" in said
    assert "and void: it is signed with key" in told(rft, "release", "history", "2", "--set", f"store.ledger={tmp_path}/others")
    with pytest.raises(SystemExit, match="2"):
        rft("release", "status", "--ledger", f"{tmp_path}/mistyped")
    assert f"--ledger: there is no folder {tmp_path}/mistyped" in capfd.readouterr().err
    assert "there is no recipe 'research_tin'" in refused(rft, "release", "status", "--conf", "research_tin")


def test_a_store_that_the_settings_name_is_the_one_that_is_meant(tmp_path, capfd, store):
    assert main(["release", "status", "--set", f"store.url=sqlite:///{tmp_path}/cards.db"]) == 0
    assert "nothing was released yet" in capfd.readouterr().out
    assert main(["release", "rollback", "--set", "store.url=sqlite:////dev/null/none.db"]) == 2
    assert "folder /dev/null cannot be made" in capfd.readouterr().err


def test_a_first_agent_needs_its_safety_report_as_well(rft, store):
    base = agent(rft, "base")
    said = refused(rft, "release", "first", "desk", "--agent", "base")
    assert "release 1 of desk waits for the candidate's safety report, or a waiver that two people sign" in said
    assert f"`rft agent check {base}`" in said and "canary" not in told(rft, "release", "status")
    safe(store, base)
    assert "release 1: desk is answered by" in told(rft, "release", "first", "desk", "--agent", "base")


def test_nobody_says_by_hand_that_an_agent_is_safe(rft):
    agent(rft, "base")
    said = refused(rft, "agent", "report", "base", "safety")
    assert "is made by running the suite, not by hand" in said and "`rft agent check agent-" in said
    assert "FAILED" in told(rft, "agent", "report", "base", "safety", "--failed")


def test_a_policy_does_not_do_without_safety(rft, desk):
    said = refused(rft, "release", "create", "x", "--agent", "base", "--policy", "needs=[evaluation]")
    assert "needs: is evaluation, without safety" in said


def test_the_suite_that_the_settings_name_is_the_one_that_counts(rft, store, tmp_path):
    """One person with a shell and an easier suite: neither the check's, nor the policy's word makes it count."""
    agent(rft, "base")
    made = registry.found(store, "default", "base").id
    report(store, "default", made, "safety", passed=True, figures={"suite": "easier"}, by="trainer")
    first = ("release", "first", "desk", "--agent", "base")
    assert f"waits for a safety report by the suite {SUITE}: the candidate's is by easier" in refused(rft, *first)
    assert "the safety suite is not a release's to choose" in refused(rft, *first, "--policy", "safety_suite=easier")
    other = ("release", "first", "till", "--agent", "base", "--set", "release.safety_suite=nowhere.jsonl")
    assert "cannot read nowhere.jsonl" in refused(rft, *other)
    assert "release.safety_suite=FILE.jsonl names" in refused(rft, *first, "--set", "release.policy={safety_suite: easier}")
    report(store, "default", made, "safety", passed=True, figures={"suite": SUITE, "cases": 24, "tries": 24, "lost": 0}, by="trainer")
    assert "waits for a safety report that tried each case 2 times: the candidate's did 1" in refused(rft, *first)
    assert "safety_tries=1 is fewer than the 2 tries" in refused(rft, *first, "--policy", "safety_tries=1")
    safe(store, made)
    assert "desk is answered by" in told(rft, *first)


def test_a_release_at_the_machine_goes_by_the_servers_rules(rft, desk, store):
    told(rft, "release", "rollback")
    told(rft, "release", "create", "desk", "--agent", "tuned", "--set", "release.policy={by_hand: true, sessions_per_step: 7}")
    policy = releases.release_of(store, "default", 3).policy
    assert (policy.by_hand, policy.sessions_per_step, policy.safety_suite) == (True, 7, SUITE)


def test_mistakes_say_what_would_be_right(rft, desk):
    assert "did you mean 'sessions_per_step'" in refused(rft, "release", "create", "x", "--agent", "base", "--policy", "sesions_per_step=5")
    assert "growing" in refused(rft, "release", "create", "x", "--agent", "base", "--policy", "steps=[0.5, 0.1]")
    assert "there is no release 99" in refused(rft, "release", "rollback", "99")
    assert "nothing is released for dsek" in refused(rft, "release", "rollback", "dsek")
    assert "desk is answered by" in refused(rft, "release", "first", "desk", "--agent", "tuned")
    assert "is on trial" in refused(rft, "release", "create", "desk", "--agent", "tuned")
    assert "is not held" in refused(rft, "release", "resume")
    told(rft, "release", "hold", "--why", "lunch")
    assert "held" in told(rft, "release", "status") and "lunch" in told(rft, "release", "status")
    told(rft, "release", "resume")


def test_a_tenant_sees_its_own(rft, desk):
    assert "nothing was released yet" in told(rft, "release", "status", "--tenant", "other")
    assert "there is no release 2" in refused(rft, "release", "rollback", "2", "--tenant", "other")
