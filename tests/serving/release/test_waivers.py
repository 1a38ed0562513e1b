"""The safety gate: what stands in for a good safety report is two people's signatures, and nothing else."""

from __future__ import annotations

import datetime as dt
import json

import msgspec
import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from agent_rft.contracts.agents import Agent
from agent_rft.contracts.errors import UserError
from agent_rft.contracts.releases import Policy, Turn
from observability import ledger, users
from observability.access import person_at_the_machine
from observability.registry import register_agent, report, report_by_hand, reports_to_look_at
from observability.release_tables import agent_reports, release_events
from observability.releases import Move, events, record
from observability.roots import LedgerFiles
from observability.signing import open_keys, public_keys, rotate
from observability.store import open_store
from observability.turns import add_turns
from observability.waivers import sign_waiver, waiver_in, waiver_statement
from serving.release import acts
from serving.release.controller import Controller
from serving.release.knowing import known_of
from serving.release.leadership import Leadership
from serving.release.waivers import safety_waived

TENANT = "acme"
ROOT = person_at_the_machine(TENANT, "root")
FIGURES = {"reward": 0.7, "regressed": 0.0}


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


@pytest.fixture
def store(tmp_path):
    store = open_store(f"sqlite:///{tmp_path}/cards.db")
    yield store
    store.close()


@pytest.fixture
def files(store):
    return LedgerFiles.of(store, None)


@pytest.fixture
def release(store):
    """Offline, with every report but safety's."""
    base, tuned = (register_agent(store, TENANT, Agent(checkpoint=name, tool_set="t"), name) for name in ("base", "tuned"))
    for agent in (base, tuned):
        for kind in ("evaluation", "holdout"):
            report(store, TENANT, agent, kind, passed=True, figures=FIGURES, by="trainer")
    report(store, TENANT, base, "safety", passed=True, figures={}, by="trainer")
    acts.begin_first(store, "root@cli", TENANT, "desk", base, Policy())
    return acts.begin(store, "root@cli", TENANT, "desk", tuned, Policy(shadow_sessions=0))


def person_with_a_key(store, name, maker=ROOT, role="approver"):
    if name not in {user.name for user in users.users_of(store, TENANT)}:
        users.add_user(store, maker, name, role, now())
    return users.caller_of_key(store, users.new_key(store, maker, name, now()).text, now())


def failing(store, release):
    report(store, TENANT, release.candidate, "safety", passed=False, figures={"failed": ["secret-1"]}, by="trainer")


def moved(store):
    """What the controller makes of it in a second."""
    Controller(store, None, Leadership(store)).tick(now())


def stage(store, release):
    return events(store, TENANT, release.id)[-1].stage


def test_two_people_sign_and_the_release_goes_on_under_their_names(store, release):
    acts.waive(store, person_with_a_key(store, "ann"), release.id, "safety", "a suite for this is being written")
    moved(store)
    assert stage(store, release) == "offline"
    acts.waive(store, person_with_a_key(store, "bob"), release.id, "safety", "I agree")
    moved(store)
    newest = events(store, TENANT, release.id)[-1]
    assert newest.stage == "canary" and newest.why.endswith("; safety waived by ann and bob")


@pytest.mark.parametrize("failed", [False, True])
def test_one_person_never_suffices_under_however_many_names_and_keys(store, release, failed):
    if failed:
        failing(store, release)
    ann = person_with_a_key(store, "ann", role="admin")
    acts.waive(store, ann, release.id, "safety", "I am sure")
    again = person_with_a_key(store, "ann")
    for name in ("Ann", "ａｎｎ", "\u0430nn"):  # in capitals, wide letters, with a Cyrillic a
        with pytest.raises(UserError, match="has a user ann already"):
            person_with_a_key(store, name)
    at_the_machine = person_at_the_machine(TENANT, "Ann")
    with_anns_key = person_with_a_key(store, "bob", maker=ann)
    session = users.caller_of_key(store, users.open_session(store, with_anns_key, now()).text, now())
    rotated = users.rotate_key(store, ann, person_with_a_key(store, "cyd").key_id, now())
    for one in (ann, again, at_the_machine, with_anns_key, session, users.caller_of_key(store, rotated.text, now())):
        with pytest.raises(UserError, match="another person has to sign"):
            acts.waive(store, one, release.id, "safety", "so am I")
    moved(store)
    assert stage(store, release) == "offline"
    with pytest.raises(UserError, match="signed so far by ann"):
        acts.to_canary(store, "ann", TENANT, release.id)
    acts.waive(store, person_with_a_key(store, "dan"), release.id, "safety", "looked at it myself")
    moved(store)
    assert stage(store, release) == "canary"


def test_who_makes_users_is_no_two_people_by_way_of_them(store, release):
    """Nor where one of them made a key of their own with the one that they were given: whoever gave it may have done that, too."""
    ann = person_with_a_key(store, "ann", role="admin")
    amy, ben = person_with_a_key(store, "amy", maker=ann, role="admin"), person_with_a_key(store, "ben", maker=ann)
    own = person_with_a_key(store, "amy", maker=amy)
    rotated = users.caller_of_key(store, users.rotate_key(store, own, own.key_id, now()).text, now())
    acts.waive(store, ben, release.id, "safety", "I am sure")
    for one in (ann, amy, own, rotated):
        with pytest.raises(UserError, match="made by ann: another person has to sign"):
            acts.waive(store, one, release.id, "safety", "so am I")
    moved(store)
    assert stage(store, release) == "offline"
    acts.waive(store, person_with_a_key(store, "dan"), release.id, "safety", "looked at it myself")
    moved(store)
    assert stage(store, release) == "canary"


def test_a_failed_report_waits_for_signatures_that_are_about_it(store, release):
    ann, bob = person_with_a_key(store, "ann"), person_with_a_key(store, "bob")
    acts.waive(store, ann, release.id, "safety", "there is none yet")
    failing(store, release)
    acts.waive(store, bob, release.id, "safety", "secret-1 is a false alarm")  # ann's was about there being none
    moved(store)
    assert stage(store, release) == "offline"
    acts.waive(store, ann, release.id, "safety", "seen")
    failing(store, release)  # another one: nobody has seen it
    moved(store)
    assert stage(store, release) == "offline"
    report(store, TENANT, release.candidate, "safety", passed=True, figures={}, by="trainer")
    with pytest.raises(UserError, match="there is nothing to waive"):
        acts.waive(store, bob, release.id, "safety", "once more")
    moved(store)
    assert stage(store, release) == "canary"


def test_a_candidate_on_trial_stays_where_it_is_when_a_newer_safety_report_fails(store, release):
    report(store, TENANT, release.candidate, "safety", passed=True, figures={}, by="trainer")
    moved(store)
    failing(store, release)
    acts.propose(store, "ann", TENANT, release.id)
    for act in (lambda: acts.approve(store, "bob", TENANT, release.id), lambda: acts.to_canary(store, "bob", TENANT, release.id, 0.5)):
        with pytest.raises(UserError, match=r"a safety report that passes: the candidate's did not \(secret-1\)"):
            act()
    assert stage(store, release) == "canary"


def test_the_signature_checks_with_the_public_key_alone(store, files, release):
    acts.waive(store, person_with_a_key(store, "ann"), release.id, "safety", "so be it")
    waiver = waiver_in(events(store, TENANT, release.id)[-1])
    [key] = json.loads(public_keys(open_keys(files.keys, "")))
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key["public"]))
    stated = msgspec.to_builtins(waiver) | {"statement": "agent-rft waiver 1"}
    signature = bytes.fromhex(stated.pop("signature"))
    public.verify(signature, json.dumps(stated, sort_keys=True, separators=(",", ":")).encode())  # by hand, not by our canonical_bytes
    assert waiver.key == key["id"] and waiver.by == "ann" and waiver.key_by == "root@cli" and waiver.release == release.id


def test_who_made_the_keys_of_who_made_the_keys_is_one_hand_with_them(store, release):
    """ann made bob's key, bob made cyd's; eve's, with which dan's was made, is from the machine."""
    ann, eve = person_with_a_key(store, "ann", role="admin"), person_with_a_key(store, "eve", role="admin")
    bob = person_with_a_key(store, "bob", maker=ann, role="admin")
    cyd, dan = person_with_a_key(store, "cyd", maker=bob), person_with_a_key(store, "dan", maker=eve)
    acts.waive(store, cyd, release.id, "safety", "I am sure")
    waiver = waiver_in(events(store, TENANT, release.id)[-1])
    assert (waiver.key_by, waiver.key_line) == ("bob", ("bob", "ann", "root@cli"))
    with pytest.raises(UserError, match="the key that cyd came in with goes back to one that was made by ann: another person has to sign"):
        acts.waive(store, ann, release.id, "safety", "so am I")
    acts.waive(store, dan, release.id, "safety", "looked at it myself")
    moved(store)
    assert stage(store, release) == "canary"


def test_a_key_that_opened_nothing_any_more_made_no_other(store):
    """bob had one from ann, which was revoked before he made cyd's with one from the machine."""
    ann = person_with_a_key(store, "ann", role="admin")
    old = person_with_a_key(store, "bob", maker=ann, role="admin")
    late = person_with_a_key(store, "cyd", maker=old)
    users.revoke_key(store, ROOT, old.key_id, now())
    cyd = person_with_a_key(store, "cyd", maker=person_with_a_key(store, "bob"))
    assert users.line_of_key(store, TENANT, late.key_id) == ("bob", "ann", "root@cli")
    assert users.line_of_key(store, TENANT, cyd.key_id) == ("bob", "root@cli")
    session = users.caller_of_key(store, users.open_session(store, late, now()).text, now())
    assert users.line_of_key(store, TENANT, session.key_id) == ("bob", "ann", "root@cli")
    assert users.line_of_key(store, TENANT, "nobody") == ()


def test_a_waiver_from_before_lines_were_told_still_holds(store, files, release):
    """What was signed is what stands there: without a line, no word of it."""
    made = waiver_in(acts.waive(store, person_with_a_key(store, "ann"), release.id, "safety", "so be it"))
    old = sign_waiver(open_keys(files.keys, ""), msgspec.structs.replace(made, by="bob", key_line=()))
    assert b"key_line" not in waiver_statement(old) and "key_line" not in msgspec.to_builtins(old)
    newest = events(store, TENANT, release.id)[-1]
    figures = {"report": "safety", "waiver": msgspec.to_builtins(old)}
    record(store, "bob", TENANT, release.id, Move(act="waive", stage=newest.stage, why="safety", figures=figures), newest.id)
    moved(store)
    assert stage(store, release) == "canary"


@pytest.mark.parametrize("field", ["why", "by", "about", "release", "at", "key", "key_by", "key_line", "signature"])
def test_a_changed_waiver_counts_for_nothing_and_the_ledger_finds_it(store, release, field):
    for name in ("ann", "bob"):
        event = acts.waive(store, person_with_a_key(store, name), release.id, "safety", "so be it")
    changed = {"release": 99, "signature": "00" * 64, "key_line": []}.get(field, "another")
    figures = event.figures | {"waiver": event.figures["waiver"] | {field: changed}}
    with store.writing() as connection:
        connection.execute(sa.update(release_events).where(release_events.c.id == event.id).values(figures=figures))
    assert [one.what for one in ledger.verify(store, TENANT)] == ["edited"]
    moved(store)
    assert stage(store, release) == "offline"
    assert "bob's counts for nothing" in said(store, release) or field in ("by", "release")


def said(store, release):
    waived = safety_waived(release, events(store, TENANT, release.id), LedgerFiles.of(store, None))
    return f"{waived.head}. {waived.words}"


def test_a_safety_report_that_was_made_a_good_one_in_the_database_lets_nothing_through(store, release):
    failing(store, release)
    with store.writing() as connection:
        connection.execute(sa.update(agent_reports).where(agent_reports.c.passed.is_(False)).values(passed=True))
    moved(store)
    assert stage(store, release) == "offline"
    with pytest.raises(UserError, match=f"the safety report of {release.candidate} .* is not what was recorded"):
        acts.to_canary(store, "ann", TENANT, release.id)
    (found,) = ledger.verify(store, TENANT)
    assert (found.kind, found.subject, found.what) == ("report", release.candidate, "edited")


def test_who_went_to_all_by_a_waiver_is_taken_back_whatever_became_of_its_reports(store, release):
    for name in ("ann", "bob"):
        acts.waive(store, person_with_a_key(store, name), release.id, "safety", "so be it")
    moved(store)
    acts.propose(store, "ann", TENANT, release.id)
    acts.approve(store, "bob", TENANT, release.id)
    assert stage(store, release) == "full"
    with store.writing() as connection:
        connection.execute(sa.update(agent_reports).values(figures={"reward": 0.1}))
    told = {"seconds": 1.0, "failed": False, "tool_calls": 0, "tool_failures": 0, "violations": ("critical:leaked:KEY",)}
    named = {"tenant": TENANT, "rollout_id": "r1", "release": release.id, "session": "s1", "arm": "candidate", "shadow": False}
    add_turns(store, [Turn(**named, **told, at=now())])
    moved(store)
    assert stage(store, release) == "rolled_back"


def test_a_waiver_that_was_put_in_with_an_entry_of_its_own_has_no_signature(store, files, release):
    """Whoever can write in the store can write in its ledger, too; the private key they do not have."""
    made = waiver_in(acts.waive(store, person_with_a_key(store, "ann"), release.id, "safety", "so be it"))
    forged = msgspec.to_builtins(msgspec.structs.replace(made, by="bob"))
    newest = events(store, TENANT, release.id)[-1]
    move = Move(act="waive", stage=newest.stage, why="safety: so be it", figures={"report": "safety", "waiver": forged})
    record(store, "bob", TENANT, release.id, move, newest.id)
    assert not list(ledger.verify(store, TENANT))
    moved(store)
    assert stage(store, release) == "offline" and "bob's counts for nothing, its signature is not one of key" in said(store, release)


def test_a_good_signature_does_not_go_over_to_another_release(store, files, release):
    """Copied out of the record of one that two people did sign for."""
    agent = register_agent(store, TENANT, Agent(checkpoint="other", tool_set="t"), "other")
    with pytest.raises(UserError, match="release 3 of chat waits"):
        acts.begin_first(store, "root@cli", TENANT, "chat", agent, Policy())
    for name in ("ann", "bob"):
        theirs = acts.waive(store, person_with_a_key(store, name), 3, "safety", "a toy").figures
        newest = events(store, TENANT, release.id)[-1]
        record(store, name, TENANT, release.id, Move(act="waive", stage=newest.stage, why="safety: a toy", figures=theirs), newest.id)
    moved(store)
    assert stage(store, release) == "offline" and "it is bob's of release 3 of acme, and stands under another" in said(store, release)


def test_signatures_of_another_key_count_for_nothing(store, files, release):
    for name in ("ann", "bob"):
        acts.waive(store, person_with_a_key(store, name), release.id, "safety", "so be it")
    files.keys.unlink()
    open_keys(files.keys, "2020-01-01T00:00:00+00:00")
    assert known_of(store, release, now()).safety_waivers == ()
    moved(store)
    assert stage(store, release) == "offline" and "which is not known" in said(store, release)


def test_what_was_signed_holds_when_the_key_is_rotated(store, files, release):
    for name in ("ann", "bob"):
        acts.waive(store, person_with_a_key(store, name), release.id, "safety", "so be it")
    rotate(files.keys, (now() + dt.timedelta(seconds=1)).isoformat(timespec="microseconds"))
    assert [one.by for one in known_of(store, release, now()).safety_waivers] == ["ann", "bob"]


def test_a_services_first_agent_needs_it_too_and_goes_on_when_two_have_signed(store):
    agent = register_agent(store, TENANT, Agent(checkpoint="base", tool_set="t"), "base")
    for _ in range(2):  # asked again, it is the same release
        with pytest.raises(UserError, match="release 1 of desk waits for the candidate's safety report"):
            acts.begin_first(store, "root@cli", TENANT, "desk", agent, Policy())
    for name in ("ann", "bob"):
        acts.waive(store, person_with_a_key(store, name), 1, "safety", "nobody but us uses it")
    acts.begin_first(store, "root@cli", TENANT, "desk", agent, Policy())
    newest = events(store, TENANT, 1)[-1]
    assert (newest.stage, newest.why) == ("full", "the service's first agent, by hand; safety waived by ann and bob")


# --- which safety report counts -------------------------------------------------------------------------------------------------


def tried(store, release, suite, *failed, cases=7):
    """A report as `rft agent check` makes it."""
    by_kind = {"injected": {"cases": cases, "failed": len(failed), "needed": 1.0, "answered": 1.0}}
    figures = {"suite": suite, "failed": list(failed), "by_kind": by_kind, "lacks": []}
    report(store, TENANT, release.candidate, "safety", passed=not failed, figures=figures, by="trainer")


def test_what_one_look_found_another_draw_of_luck_does_not_take_back(store, release):
    """The agent is the same. Two people may sign, and about what was found."""
    tried(store, release, "s1", "injected-link")
    tried(store, release, "s1")
    moved(store)
    assert stage(store, release) == "offline"
    with pytest.raises(UserError, match=r"the candidate's did not \(injected-link\)"):
        acts.to_canary(store, "ann", TENANT, release.id)
    for name in ("ann", "bob"):
        acts.waive(store, person_with_a_key(store, name), release.id, "safety", "the link is ours")
        tried(store, release, "s1")
    moved(store)
    assert stage(store, release) == "canary"


@pytest.mark.parametrize(
    "figures",
    [
        {"suite": "s1", "failed": [], "lacks": ["0% of the tries of secret ended with an answer, 50% have to"]},
        {"failed": ["as somebody wrote by hand"]},
        {"suite": "s0", "failed": ["x"], "by_kind": {"secret": {"cases": 2, "failed": 1, "needed": 1.0}}},
    ],
    ids=["what was not tried", "what a person wrote", "what another suite found"],
)
def test_a_look_that_found_nothing_by_this_suite_is_made_good_by_a_better_one(store, release, figures):
    report(store, TENANT, release.candidate, "safety", passed=False, figures=figures, by="trainer")
    moved(store)
    assert stage(store, release) == "offline"
    tried(store, release, "s1")
    moved(store)
    assert stage(store, release) == "canary"


@pytest.mark.parametrize(
    "figures",
    [
        {"failed": 3, "lacks": {"a": 1}},
        {"suite": "s1", "by_kind": 3},
        {"suite": ["s1"], "by_kind": {"a": {"cases": "x"}}},
    ],
)
def test_whatever_a_person_writes_of_an_agent_the_release_can_be_looked_at(store, release, figures):
    report_by_hand(store, TENANT, release.candidate, "safety", passed=False, figures=figures, by="ann")
    with pytest.raises(UserError, match="a safety report that passes: the candidate's did not, or a waiver"):
        acts.to_canary(store, "ann", TENANT, release.id)


def test_a_report_whose_row_cannot_be_read_is_named(store, release):
    with store.writing() as connection:
        connection.execute(sa.text("update agent_reports set figures = '{'"))
    with pytest.raises(UserError, match=f"a report of {release.candidate} is not what was recorded: its row cannot be read"):
        acts.to_canary(store, "ann", TENANT, release.id)
    [spoilt] = reports_to_look_at(store, TENANT, release.candidate)[1]
    assert spoilt.kind == "any" and release.candidate in spoilt.what


@pytest.fixture
def bound(store, release):
    """A release that was made on a server whose suite is s1."""
    acts.roll_back(store, "ann", TENANT, release.id)
    policy = acts.policy_wished({"shadow_sessions": 0, "safety_suite": "s1"}, {"sessions_per_step": 5})
    return acts.begin(store, "root@cli", TENANT, "desk", release.candidate, policy)


def test_an_easier_suite_than_the_servers_shows_nothing(store, bound):
    tried(store, bound, "easy", cases=1)
    moved(store)
    assert stage(store, bound) == "offline"
    with pytest.raises(UserError, match="waits for a safety report by the suite s1: the candidate's is by easy, or a waiver"):
        acts.to_canary(store, "ann", TENANT, bound.id)
    tried(store, bound, "s1")
    tried(store, bound, "easy", cases=1)
    moved(store)
    assert stage(store, bound) == "canary", "the one by s1 counts, whatever came after it"


def test_who_failed_the_servers_suite_passes_no_easier_one(store, bound):
    tried(store, bound, "s1", "secret-asked")
    tried(store, bound, "easy", cases=1)
    with pytest.raises(UserError, match=r"the candidate's did not \(secret-asked\)"):
        acts.to_canary(store, "ann", TENANT, bound.id)
    report(store, TENANT, bound.candidate, "safety", passed=True, figures={}, by="trainer")
    moved(store)
    assert stage(store, bound) == "offline", "one that names no suite is by none"


def test_what_a_person_found_holds_it_whatever_an_easier_suite_says_then(store, bound):
    tried(store, bound, "s1")
    report_by_hand(store, TENANT, bound.candidate, "safety", passed=False, figures={"failed": ["it told a caller's address"]}, by="ann")
    tried(store, bound, "easy", cases=1)
    moved(store)
    assert stage(store, bound) == "offline"
    tried(store, bound, "s1")
    moved(store)
    assert stage(store, bound) == "canary"


def test_a_release_does_not_choose_its_suite():
    served = {"safety_suite": "s1", "by_hand": True}
    for wished in ("", "easy"):
        with pytest.raises(UserError, match="the safety suite is not a release's to choose"):
            acts.policy_wished(served, {"safety_suite": wished})
    assert acts.policy_wished(served, {"safety_suite": "s1"}).by_hand and acts.policy_wished(served, {}).safety_suite == "s1"


def test_a_release_is_tried_as_often_as_the_server_says_or_more():
    served = {"safety_suite": "s1", "safety_tries": 3}
    with pytest.raises(UserError, match="safety_tries=2 is fewer than the 3 tries of each safety case"):
        acts.policy_wished(served, {"safety_tries": 2})
    assert [acts.policy_wished(served, wished).safety_tries for wished in ({}, {"safety_tries": 3}, {"safety_tries": 9})] == [3, 3, 9]


def test_a_report_of_one_try_a_case_waits_where_more_are_asked_for(store, release):
    acts.roll_back(store, "ann", TENANT, release.id)
    policy = acts.policy_wished({"shadow_sessions": 0, "safety_tries": 2}, {})
    bound = acts.begin(store, "root@cli", TENANT, "desk", release.candidate, policy)
    for tries, then in ((24, "offline"), (48, "canary")):
        figures = {"cases": 24, "tries": tries, "lost": 0}
        report(store, TENANT, bound.candidate, "safety", passed=True, figures=figures, by="trainer")
        moved(store)
        assert stage(store, bound) == then


def test_other_reports_are_waived_by_one_and_not_past_the_gate(store, release):
    report(store, TENANT, release.candidate, "safety", passed=True, figures={}, by="trainer")
    assert acts.waive(store, ROOT, release.id, "holdout", "none is wanted").figures["report"] == "holdout"
    moved(store)
    with pytest.raises(UserError, match="past the offline gate"):
        acts.waive(store, ROOT, release.id, "evaluation", "none is wanted")
