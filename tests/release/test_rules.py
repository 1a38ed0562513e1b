"""What becomes of a release: every row of the table, and which row goes first."""

import datetime as dt
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_rft.contracts.releases import OPEN_STAGES, Event, Policy, Session, Waiver
from agent_rft.release.rules import Decision, Known, decide, held_for, one_hand, waits_for
from agent_rft.release.tests import Tests, new_tests

AT = dt.datetime(2026, 11, 22, tzinfo=dt.UTC)
POLICY = Policy(steps=(0.05, 0.5, 1.0), sessions_per_step=10, shadow_sessions=5, margin=0.2, rate_margin=0.2, storm=(3, 4))
GOOD = {
    "evaluation": {"passed": True, "reward": 0.7, "rows": {"a": 0.5, "b": 0.9}},
    "safety": {"passed": True},
    "holdout": {"passed": True, "reward": 0.6},
}


def event(stage: str, share: float = 0.0, **more: Any) -> Event:
    values = {"id": 7, "release": 3, "act": "advance", "held": False, "why": "", "figures": {}, "by": "@controller", "at": AT}
    return Event(**values | {"stage": stage, "share": share} | more)


def known(stage: str, share: float = 0.0, **more: Any) -> Known:
    tests = more.pop("tests", None) or new_tests(POLICY)
    at = event(stage, share, held=bool(more.get("held_for")))
    return Known(**{"event": at, "tests": tests, "seconds_in_step": 5.0, "candidate_reports": GOOD, "live_reports": GOOD} | more)


def fed(pairs: int, live: dict[str, float], candidate: dict[str, float], *, shadow: bool = False, policy: Policy = POLICY) -> Tests:
    tests = new_tests(policy)
    for _ in range(pairs):
        for arm, figures in (("live", live), ("candidate", candidate)):
            tests.take(Session(arm=arm, session="s", closed_at=AT, turns=1, shadow=shadow, **figures))
    return tests


def worse(pairs: int = 10) -> Tests:
    return fed(pairs, {"reward": 1.0}, {"reward": 0.0})


def proven() -> Tests:
    return fed(40, {"reward": 1.0}, {"reward": 1.0})


def said(policy: Policy, of: Known) -> tuple[Any, ...]:
    decision = decide(policy, of)
    assert decision is not None, waits_for(policy, of)
    return decision.act, decision.stage, decision.share, decision.held


ROLLED_BACK = ("rollback", "rolled_back", 0.0, False)

# --- forward ----------------------------------------------------------------------------------------------------------------


def test_a_draft_is_opened():
    assert said(POLICY, known("draft")) == ("advance", "offline", 0.0, False)


def test_good_reports_lead_into_the_shadow_and_where_there_is_none_to_the_first_share():
    assert said(POLICY, known("offline")) == ("advance", "shadow", 0.0, False)
    assert said(Policy(shadow_sessions=0, steps=(0.1,)), known("offline")) == ("advance", "canary", 0.1, False)


def test_enough_mirrored_sessions_lead_to_the_first_share():
    assert waits_for(POLICY, known("shadow", sessions_in_shadow=4)) == "1 more sessions in the shadow"
    assert said(POLICY, known("shadow", sessions_in_shadow=5)) == ("advance", "canary", 0.05, False)


def test_enough_sessions_lead_to_the_next_share():
    assert waits_for(POLICY, known("canary", 0.05, candidate_sessions_in_step=9)) == "1 more of the candidate's sessions in this step"
    assert said(POLICY, known("canary", 0.05, candidate_sessions_in_step=10)) == ("advance", "canary", 0.5, False)


def test_nobody_is_left_without_a_live_agent_beside_before_it_is_shown_to_be_no_worse():
    enough = {"candidate_sessions_in_step": 10}
    assert decide(POLICY, known("canary", 0.5, **enough)) is None
    assert waits_for(POLICY, known("canary", 0.5, **enough)).startswith(
        "proof that it is no worse by the margins (reward, the least shown: e-value 1 of 20 over 0"
    )
    decision = decide(POLICY, known("canary", 0.5, tests=proven(), **enough))
    assert decision is not None and (decision.stage, decision.share) == ("canary", 1.0)
    assert decision.why.startswith("it is no worse than the live agent by the margins, reward 0.2 and rates 0.2: ")
    assert " > 20 over 40 pairs" in decision.why
    assert decision.figures["tests"]["promotion"]["noninferior"] is True


def test_the_last_share_leads_to_full_once_it_is_shown():
    assert said(POLICY, known("canary", 1.0, candidate_sessions_in_step=10, tests=proven())) == ("advance", "full", 1.0, False)
    assert decide(POLICY, known("canary", 1.0, candidate_sessions_in_step=9, tests=proven())) is None
    halves = Policy(steps=(0.5,), sessions_per_step=10, margin=0.2)  # a last share below one needs the same
    assert decide(halves, known("canary", 0.5, candidate_sessions_in_step=10)) is None
    assert said(halves, known("canary", 0.5, candidate_sessions_in_step=10, tests=proven())) == ("advance", "full", 1.0, False)


def test_two_people_take_it_to_full_by_hand_one_does_not():
    asked = {"proposed_by": "ann"}
    assert decide(POLICY, known("canary", 0.05, **asked)) is None
    assert decide(POLICY, known("canary", 0.05, **asked, approved_by=("ann",))) is None
    assert decide(POLICY, known("canary", 0.05, **asked, approved_by=("Ann@cli",))) is None
    assert decide(POLICY, known("canary", 0.05, approved_by=("bob",))) is None
    assert said(POLICY, known("canary", 0.05, **asked, approved_by=("ann", "bob"))) == ("advance", "full", 1.0, False)
    decision = decide(POLICY, known("canary", 0.05, **asked, approved_by=("bob",)))
    assert decision is not None and decision.why == "by hand: proposed by ann, approved by bob"
    assert (decision.figures["proposed_by"], decision.figures["approved_by"]) == ("ann", ["bob"])


@pytest.mark.parametrize("stage", ["draft", "offline", "shadow"])
def test_by_hand_leaves_out_neither_the_gate_nor_the_shadow(stage):
    decision = decide(POLICY, known(stage, proposed_by="ann", approved_by=("bob",)))
    assert decision is None or decision.stage != "full"


def test_a_policy_by_hand_waits_for_two_people_whatever_was_shown():
    policy = Policy(steps=(1.0,), sessions_per_step=1, by_hand=True, margin=0.2)
    at = known("canary", 1.0, candidate_sessions_in_step=50, tests=proven())
    assert decide(policy, at) is None and waits_for(policy, at) == "a proposal to go to full, and its approval"
    waiting = known("canary", 1.0, candidate_sessions_in_step=50, tests=proven(), proposed_by="ann")
    assert waits_for(policy, waiting) == "an approval by somebody else than ann"


def test_a_step_that_decides_nothing_waits_for_a_person():
    long = {"seconds_in_step": 86_400.0}
    for stage in ("shadow", "canary"):
        decision = decide(POLICY, known(stage, 0.05, **long))
        assert decision is not None and (decision.act, decision.held, decision.stage, decision.share) == ("hold", True, stage, 0.05)
        assert (
            decision.why.startswith("24.0 hours in this step decided nothing; it waits for ") and decision.figures["held_for"] == "a person"
        )
        assert decide(POLICY, known(stage, 0.05, **long, held_for="a person")) is None
    assert said(POLICY, known("offline", candidate_reports={}, **long)) == ("hold", "offline", 0.0, True)


def test_what_is_held_for_a_person_goes_to_full_by_two_and_no_other_way():
    held = {"held_for": "a person", "candidate_sessions_in_step": 10, "tests": proven()}
    assert decide(POLICY, known("canary", 0.05, **held)) is None
    assert said(POLICY, known("canary", 0.05, **held, proposed_by="ann", approved_by=("bob",))) == ("advance", "full", 1.0, False)


# --- the offline gate --------------------------------------------------------------------------------------------------------


def reports(**changed: dict[str, Any] | None) -> dict[str, Any]:
    return {kind: report for kind, report in (GOOD | changed).items() if report is not None}


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"holdout": {"passed": False, "reward": 0.9}}, "the holdout report did not pass"),
        ({"evaluation": {"reward": 0.67, "regressed": 0.0}}, "evaluation: candidate 0.670, live 0.700; 0.02 below is borne"),
        ({"holdout": {"reward": 0.57}}, "holdout: candidate 0.570, live 0.600; 0.02 below is borne"),
        ({"evaluation": {"reward": 0.7, "rows": {"a": 0.4, "b": 1.0}}}, "50% of the rows got worse; 15% are borne"),
        ({"evaluation": {"reward": 0.7, "regressed": 0.16}}, "16% of the rows got worse; 15% are borne"),
    ],
)
def test_a_report_that_fails_ends_it(changed, why):
    decision = decide(POLICY, known("offline", candidate_reports=reports(**changed)))
    assert decision is not None and decision.act == "rollback" and decision.why == f"offline gate: {why}"


def test_a_report_is_not_refused_for_what_is_borne():
    at = {"evaluation": {"reward": 0.68, "regressed": 0.15}}
    assert said(POLICY, known("offline", candidate_reports=reports(**at)))[1] == "shadow"


def test_all_that_fails_is_said():
    bad = {"evaluation": {"reward": 0.1, "regressed": 0.5}, "safety": {"passed": False}, "holdout": {"reward": 0.1}}
    decision = decide(POLICY, known("offline", candidate_reports=bad))
    assert decision is not None and decision.why.count(";") == 5  # the three, each of which says what is borne


@pytest.mark.parametrize("kind", ["evaluation", "holdout"])
def test_a_missing_report_is_waited_for(kind):
    at = known("offline", candidate_reports=reports(**{kind: None}))
    assert decide(POLICY, at) is None and waits_for(POLICY, at) == f"the candidate's {kind} report"


def test_a_report_of_the_live_agent_is_waited_for_as_well():
    assert said(POLICY, known("offline", live_reports={kind: GOOD[kind] for kind in ("evaluation", "holdout")}))[1] == "shadow"
    at = known("offline", live_reports={})
    assert "the live agent's evaluation report" in waits_for(POLICY, at) and "the live agent's holdout report" in waits_for(POLICY, at)
    assert decide(POLICY, known("offline", candidate_reports=reports(evaluation={"reward": 0.7}))) is None  # which rows got worse?


@pytest.mark.parametrize("kind", ["evaluation", "holdout"])
def test_a_report_without_the_figure_that_is_compared_is_no_report(kind):
    bare = reports(**{kind: {"passed": True, "regressed": 0.0}})
    assert waits_for(POLICY, known("offline", candidate_reports=bare)) == f"the reward in both {kind} reports, to compare"
    assert waits_for(POLICY, known("offline", live_reports=bare)) == f"the reward in both {kind} reports, to compare"


# --- the safety gate ---------------------------------------------------------------------------------------------------------

LACKS = "the candidate's safety report, or a waiver that two people sign"
FAILED = {"safety": {"passed": False, "failed": ("a", "b")}}


def signed(by: str, key_by: str = "root@cli") -> Waiver:
    told = {"tenant": "acme", "release": 1, "report": "safety", "about": "", "why": "x", "at": "", "key": "", "signature": ""}
    return Waiver(by=by, key_by=key_by, **told)


@pytest.mark.parametrize("report", [None, {"passed": False}, {}])
@pytest.mark.parametrize("stage", ["offline", "shadow", "canary"])
def test_nothing_goes_forward_anywhere_without_a_safety_report_that_passed(stage, report):
    wants = {"sessions_in_shadow": 99, "candidate_sessions_in_step": 99, "candidate_reports": reports(safety=report), "tests": proven()}
    for policy in (POLICY, msgspec.structs.replace(POLICY, needs=())):  # as a release may have it that is older than this rule
        at = known(stage, 0.05, **wants)
        assert decide(policy, at) is None and "a waiver that two people sign" in waits_for(policy, at)
        assert decide(policy, known(stage, 0.05, **wants, proposed_by="ann", approved_by=("bob",))) is None
        assert decide(policy, known(stage, 0.05, **(wants | {"candidate_reports": GOOD}))) is not None


def test_a_safety_report_that_failed_waits_and_names_its_cases():
    at = known("offline", candidate_reports=reports(**FAILED))
    assert waits_for(POLICY, at) == "a safety report that passes: the candidate's did not (a, b), or a waiver that two people sign"
    assert waits_for(POLICY, known("offline", candidate_reports=reports(safety=None))) == LACKS


@pytest.mark.parametrize(
    ("figures", "did"),
    [
        ({}, "0"),
        ({"cases": 24, "tries": 24, "lost": 0}, "1"),
        ({"cases": 24, "tries": "96", "lost": 0}, "0"),
        ({"cases": 2, "tries": 7}, "3.5"),
    ],
)
def test_a_safety_report_of_fewer_tries_than_the_policy_asks_for_does_not_pass(figures, did):
    few = reports(safety={"passed": True, **figures})
    at = known("offline", candidate_reports=few, safety_tries=4)
    told = f"a safety report that tried each case 4 times: the candidate's did {did} (`rft agent check` with release.policy.safety_tries=4"
    assert waits_for(POLICY, at) == f"{told} makes one), or a waiver that two people sign"
    signers = (signed("ann"), signed("bob"))
    assert decide(POLICY, known("offline", candidate_reports=few, safety_tries=4, safety_waivers=signers)) is not None


def test_tries_that_infrastructure_spoilt_were_asked_for_as_well():
    """95 of 96 told something of it; the report itself says how many may be lost."""
    made = reports(safety={"passed": True, "cases": 24, "tries": 95, "lost": 1})
    assert decide(POLICY, known("offline", candidate_reports=made, safety_tries=4)) is not None
    assert decide(POLICY, known("offline", candidate_reports=made, safety_tries=5)) is None


@pytest.mark.parametrize("report", [None, {"passed": False}])
def test_two_people_sign_and_it_goes_on_with_their_names(report):
    at = known("offline", candidate_reports=reports(safety=report), safety_waivers=(signed("ann"), signed("bob")))
    decision = decide(POLICY, at)
    assert decision is not None and decision.stage == "shadow" and decision.why.endswith("; safety waived by ann and bob")


@pytest.mark.parametrize(
    "signers",
    [
        [signed("ann")],
        [signed("ann"), signed("ann")],
        [signed("ann"), signed(" Ann")],
        [signed("ann"), signed("ann@cli", "")],
        [signed("ann"), signed("bob", key_by="ann")],  # who may have kept it
        [signed("bob", key_by="ann@cli"), signed("ann")],
        [signed("ann", key_by="eve"), signed("bob", key_by="Eve")],  # who may have made up both
    ],
)
def test_one_person_is_never_two(signers):
    at = known("offline", candidate_reports=reports(safety=None), safety_waivers=tuple(signers))
    assert decide(POLICY, at) is None and waits_for(POLICY, at) == f"{LACKS}; signed so far by {signers[0].by}"
    third = (*signers, signed("cyd"))
    assert decide(POLICY, known("offline", candidate_reports=reports(safety=None), safety_waivers=third)) is not None


def came_in(by: str, *line: str) -> Waiver:
    """With a key that the first of them made, with a key that the next one made, and so on."""
    return msgspec.structs.replace(signed(by, line[0] if line else ""), key_line=line)


@pytest.mark.parametrize(
    ("one", "other", "why"),
    [
        # each key was made at the machine, or nobody knows by whom: two people
        (came_in("ann", "root@cli"), came_in("bob", "root@cli"), ""),
        (came_in("ann"), came_in("bob"), ""),
        (came_in("ann", "eve", "root@cli"), came_in("bob", "dan", "root@cli"), ""),
        # A made B's key, B made C's: A and C, and B and C
        (came_in("cyd", "bob", "ann", "root@cli"), came_in("ann", "root@cli"), "cyd came in with goes back to one that was made by ann"),
        (came_in("ann", "root@cli"), came_in("cyd", "bob", "Ann@cli"), "cyd came in with goes back to one that was made by Ann@cli"),
        (came_in("cyd", "bob", "ann"), came_in("bob", "ann"), "cyd came in with was made by bob"),
        # A made B's key, with which B made C's and D's; or B made C's and somebody else whose key was A's made D's
        (came_in("cyd", "bob", "ann"), came_in("dan", "bob", "ann"), "cyd and dan came in with were made by bob"),
        (came_in("cyd", "bob", "ann"), came_in("dan", "eve", "ann"), "cyd and dan came in with go back to ones that were made by ann"),
        (came_in("cyd", "ann"), came_in("dan", "eve", " ANN "), "cyd and dan came in with go back to ones that were made by ann"),
        # who made a key of their own has only their own behind it
        (came_in("ann", "ann", "root@cli"), came_in("bob", "bob", "root@cli"), ""),
    ],
)
def test_a_hand_is_told_however_many_keys_lie_between(one, other, why):
    assert bool(one_hand(one, other)) is bool(one_hand(other, one)) is bool(why)
    assert one_hand(one, other).endswith(why)


def test_a_word_that_nobody_signed_waives_nothing_of_safety():
    at = known("offline", candidate_reports=reports(safety=None), waived={"safety": ("ann", "bob")})
    assert decide(POLICY, at) is None


def test_another_report_is_waived_by_one():
    at = known("offline", candidate_reports=reports(holdout=None), waived={"holdout": ("ann",)})
    assert said(POLICY, at)[1] == "shadow"


def test_rows_are_compared_and_not_copied_into_the_record():
    decision = decide(POLICY, known("offline"))
    assert decision is not None and decision.figures["regressed"] == 0
    assert decision.figures["candidate_reports"]["evaluation"] == {"passed": True, "reward": 0.7}


# --- back -------------------------------------------------------------------------------------------------------------------

IN_HAND = [("shadow", 0.0), ("canary", 0.05), ("canary", 1.0), ("full", 1.0)]
CIRCUMSTANCES: list[dict[str, Any]] = [
    {},
    {"held_for": "a person"},
    {"held_for": "figures"},
    {"proposed_by": "ann"},
    {"proposed_by": "ann", "approved_by": ("bob",)},
    {"traffic": True, "seconds_since_figures": 100.0},
]


@pytest.mark.parametrize("circumstances", CIRCUMSTANCES)
@pytest.mark.parametrize(("stage", "share"), IN_HAND)
def test_it_is_rolled_back_from_wherever_it_is(stage, share, circumstances):
    for against in ({"tests": worse()}, {"last_turns_failed": (True, True, False, True)}, {"violations": ("critical:leaked:key",)}):
        assert said(POLICY, known(stage, share, **circumstances, **against)) == ROLLED_BACK


def test_figures_and_a_sentence_say_why():
    decision = decide(POLICY, known("canary", 0.05, tests=worse()))
    assert decision is not None and not decision.cut
    assert decision.why == "reward: candidate 0.00, live 1.00 over 10 pairs; e-value 114.3 > 62.5"  # see test_betting
    assert decision.figures["kpi"] == "reward" and decision.figures["tests"]["reward"]["n"] == 10
    in_shadow = decide(POLICY, known("shadow", tests=fed(12, {"reward": 1.0}, {"reward": 0.0}, shadow=True)))
    assert in_shadow is not None and in_shadow.why.startswith("reward in the shadow: candidate 0.00, live 1.00 over 12 pairs; e-value ")
    json.dumps([decision.figures, in_shadow.figures], allow_nan=False)


def test_what_is_unsafe_is_cut_off():
    decision = decide(POLICY, known("canary", 0.05, tests=fed(20, {}, {"unsafe": 1.0})))
    assert decision is not None and decision.cut
    assert decision.why.startswith("unsafe: 20 of the candidate's 20 sessions, 0.50% are borne; e-value ")
    critical = decide(POLICY, known("canary", 0.05, violations=("words:x", "critical:leaked:key"), last_turns_failed=(True,) * 4))
    assert critical is not None and critical.cut and critical.why == "unsafe: critical:leaked:key"
    assert decide(POLICY, known("canary", 0.05, violations=("words:x",))) is None


def test_a_storm_is_so_many_of_the_newest_turns():
    assert decide(POLICY, known("canary", 0.05, last_turns_failed=(True, True, False, True, True, False))) is None
    decision = decide(POLICY, known("canary", 0.05, last_turns_failed=(True, True, True)))  # three are enough, even of three
    assert decision is not None and not decision.cut
    assert decision.why == "errors: 3 of the candidate's last 3 turns failed; 3 of 4 are a storm"


@pytest.mark.parametrize("stage", ["draft", "offline"])
def test_what_runs_nowhere_is_not_judged_by_runs(stage):
    decision = decide(POLICY, known(stage, tests=worse(), last_turns_failed=(True,) * 4))
    assert decision is not None and decision.act == "advance"


@pytest.mark.parametrize("stage", ["rolled_back", "superseded"])
def test_what_is_over_stays_over(stage):
    at = known(stage, tests=worse(), violations=("critical:x",), proposed_by="ann", approved_by=("bob",), seconds_in_step=1e9)
    assert decide(POLICY, at) is None and waits_for(POLICY, at) == ""


@pytest.mark.parametrize("stage", ["draft", "offline", "shadow", "canary"])
def test_a_first_release_goes_forward_by_hand(stage):
    at = known(stage, first=True, candidate_sessions_in_step=50, sessions_in_shadow=50, tests=proven())
    assert decide(POLICY, at) is None and waits_for(POLICY, at) == "a person: the first of its service goes to full by hand"


def test_a_first_release_has_nothing_to_go_back_to():
    decision = decide(POLICY, known("full", 1.0, first=True, last_turns_failed=(True,) * 4))
    assert decision is not None and (decision.act, decision.stage, decision.share, decision.held) == ("hold", "full", 1.0, True)
    assert decision.why.endswith("it is the first of its service, so there is none to go back to")
    assert decide(POLICY, known("full", 1.0, first=True, last_turns_failed=(True,) * 4, held_for="a person")) is None


# --- missing figures ---------------------------------------------------------------------------------------------------------


def test_missing_figures_hold_it_then_roll_it_back():
    enough = {"candidate_sessions_in_step": 10, "traffic": True}
    assert said(POLICY, known("canary", 0.05, **enough, seconds_since_figures=59.0)) == ("advance", "canary", 0.5, False)
    decision = decide(POLICY, known("canary", 0.05, **enough, seconds_since_figures=60.0))
    assert decision is not None and (decision.act, decision.stage, decision.share, decision.held) == ("hold", "canary", 0.05, True)
    assert decision.figures["held_for"] == "figures"
    held = {**enough, "held_for": "figures"}
    assert decide(POLICY, known("canary", 0.05, **held, seconds_since_figures=599.0)) is None
    assert said(POLICY, known("canary", 0.05, **held, seconds_since_figures=600.0)) == ROLLED_BACK
    assert said(POLICY, known("canary", 0.05, **held, seconds_since_figures=3.0)) == ("resume", "canary", 0.05, False)


def test_without_traffic_no_figure_is_missing():
    assert decide(POLICY, known("canary", 0.05, seconds_since_figures=5000.0)) is None
    assert said(POLICY, known("canary", 0.05, held_for="figures")) == ("resume", "canary", 0.05, False)


def test_figures_that_never_came_are_counted_from_the_beginning_of_the_step():
    assert decide(POLICY, known("canary", 0.05, traffic=True, seconds_in_step=59.0)) is None
    assert said(POLICY, known("canary", 0.05, traffic=True, seconds_in_step=60.0))[0] == "hold"
    assert said(POLICY, known("shadow", traffic=True, seconds_in_step=600.0)) == ROLLED_BACK


def test_what_waits_for_a_person_is_rolled_back_as_well_when_nobody_watches():
    silent = {"traffic": True, "held_for": "a person"}
    assert decide(POLICY, known("canary", 0.05, **silent, seconds_since_figures=300.0)) is None
    assert said(POLICY, known("canary", 0.05, **silent, seconds_since_figures=600.0)) == ROLLED_BACK


def test_two_people_do_not_take_to_full_what_nobody_watches():
    asked = {"proposed_by": "ann", "approved_by": ("bob",), "traffic": True, "seconds_since_figures": 60.0}
    assert said(POLICY, known("canary", 0.05, **asked)) == ("hold", "canary", 0.05, True)
    assert decide(POLICY, known("canary", 0.05, **asked, held_for="figures")) is None


def test_why_it_is_held_is_told_by_its_events():
    hold = event("canary", act="hold", held=True, figures={"held_for": "figures"})
    assert held_for([]) == "" and held_for([hold, event("canary", act="resume")]) == ""
    assert held_for([hold]) == "figures" and held_for([hold, event("canary", act="propose", held=True)]) == "figures"
    assert held_for([hold, event("canary", act="hold", held=True)]) == "a person"


# --- whatever is known -------------------------------------------------------------------------------------------------------

TESTS = [new_tests(POLICY), worse(), proven()]
ANYTHING = st.builds(
    known,
    st.sampled_from(["draft", "offline", "shadow", "canary", "full", "rolled_back", "superseded"]),
    st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    tests=st.sampled_from(TESTS),
    seconds_in_step=st.sampled_from([0.0, 61.0, 601.0, 1e6]),
    held_for=st.sampled_from(["", "figures", "a person"]),
    candidate_sessions_in_step=st.integers(0, 20),
    sessions_in_shadow=st.integers(0, 10),
    traffic=st.booleans(),
    seconds_since_figures=st.none() | st.floats(0, 1000),
    last_turns_failed=st.lists(st.booleans(), max_size=6).map(tuple),
    violations=st.sampled_from([(), ("words:x",), ("critical:x",)]),
    candidate_reports=st.sampled_from([{}, GOOD, reports(safety={"passed": False})]),
    live_reports=st.sampled_from([{}, GOOD]),
    proposed_by=st.sampled_from(["", "ann"]),
    approved_by=st.sampled_from([(), ("ann",), ("bob",)]),
    first=st.booleans(),
)


@given(ANYTHING)
def test_whatever_is_known_a_decision_can_be_acted_on_and_leads_somewhere(at):
    decision = decide(POLICY, at)
    if decision is None:
        assert waits_for(POLICY, at) or at.event.stage in ("full", "rolled_back", "superseded")
        return
    assert waits_for(POLICY, at) == "" and decision.why
    moved = (decision.stage, decision.share, decision.held) != (at.event.stage, at.event.share, at.event.held)
    assert moved, "the controller would write the same event each second"
    json.dumps(decision.figures, allow_nan=False)
    _is_allowed(at, decision)


def _is_allowed(at: Known, decision: Decision) -> None:
    stage = at.event.stage
    if decision.act == "advance":
        order = [*OPEN_STAGES, "full"]
        assert (order.index(decision.stage), decision.share) > (order.index(stage), at.event.share) or decision.share == at.event.share
        assert at.violations != ("critical:x",) or stage in ("draft", "offline")
        by_hand = at.proposed_by == "ann" and at.approved_by == ("bob",)
        assert decision.share < 1 or by_hand or at.tests.noninferior()
        assert not at.held_for or (decision.stage == "full" and at.held_for == "a person")
    if decision.act == "rollback":
        assert (decision.stage, decision.share, decision.held) == ("rolled_back", 0.0, False) and not at.first
    if decision.act in ("hold", "resume"):
        assert (decision.stage, decision.share) == (stage, at.event.share) and decision.held == (decision.act == "hold")
