"""`rft grader ...` and `rft regrade`: a changed tolerance on its whole way to being active, on a real store."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import msgspec
import pytest

from agent_rft.commands.graders import activate, approve, check, list_graders, register
from agent_rft.commands.grading import grader_of
from agent_rft.commands.registered import inactive, registered_grader
from agent_rft.commands.regrade import regrade
from agent_rft.compose import save, settings_for
from agent_rft.contracts.errors import InfraError, UserError
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.jobcards import Cost, JobCard, Versions
from agent_rft.contracts.messages import Message
from agent_rft.contracts.rollouts import Ending, Limits, Rollout, Turn
from agent_rft.contracts.rows import Expected, Row
from agent_rft.datasets.rows_io import write_rows
from agent_rft.graders.numeric import NumericGrader
from agent_rft.graders.pure import build_pure
from agent_rft.settings import Settings
from observability.cards import cards_by_id, find_card
from observability.graders import active_version, add_label, append_grades, approvals, find_version, grader_versions_of, newest_reports
from observability.graders import register as add_version
from observability.ingest import StoreRecorder
from observability.store import Store, open_store

CASES = """\
{"item": {"reference_answer": "$842M"}, "sample": {"output_text": "$850M"}, "reward": 0.5, "why": "8 off, 2% of 842 is 16.84"}
{"item": {"reference_answer": "$842M"}, "sample": {"output_text": "$860M"}, "reward": 0, "why": "18 off"}
"""
ANSWERS = ("$842M", "$850M", "$700M", "$842M")
"""Of one group. numeric@1 gives 1, 0, 0, 1; with 2% allowed, 1, 0.5, 0, 1."""
JUDGED = ("$842M", "$600M")


def build(spec):
    grader = build_pure(spec, build)
    assert grader is not None
    return grader


def card(number: int, answer: str, kind: str = "train", row: str = "row-1", **changes: object) -> JobCard:
    opening = (Message("user", "What was the revenue of Heron Castings?"),)
    ending = changes.pop("ending", Ending.ANSWERED)
    rollout = Rollout(f"id-{number}", opening, (), Limits(), turns=[Turn(answer)], ending=ending, answer=answer, **changes)
    grade = None if ending is Ending.INFRA_FAILED else NumericGrader().grade({"reference_answer": "$842M"}, {"output_text": answer})
    return JobCard(
        rollout_id=rollout.rollout_id, kind=kind, tenant="local", run_id="run-1", step=1, row_id=row, sample_index=number,
        started_at=f"2026-11-14T04:00:{number:02}+00:00", rollout=rollout, reference_answer="$842M", metadata={}, grade=grade,
        cost=Cost(), versions=Versions(code="", checkpoint=""),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cases.jsonl").write_text(CASES)
    (tmp_path / "exact.jsonl").write_text(CASES.splitlines()[1] + "\n")
    (tmp_path / "numeric2.json").write_text('{"type": "numeric", "name": "numeric", "tolerance": 0.02}')


@pytest.fixture
def url(tmp_path) -> str:
    url = f"sqlite:///{tmp_path}/cards.db"
    store = open_store(url)
    with StoreRecorder(store) as recorder:
        for number, answer in enumerate(ANSWERS):
            recorder.record(card(number, answer))
        for number, answer in enumerate(JUDGED, len(ANSWERS)):
            recorder.record(card(number, answer, "eval"))
        recorder.record(card(6, "", ending=Ending.INFRA_FAILED, failed_part="tool:search"))
    store.close()
    return url


@pytest.fixture
def store(url) -> Store:
    return open_store(url)


@pytest.fixture
def checked(url, capsys) -> str:
    """numeric@2, registered by ann, with every report there is."""
    register(url, "numeric2.json", "ann", build)
    check(url, "numeric@2", build, cases="cases.jsonl", run_id="run-1")
    return url


def test_a_changed_tolerance_is_registered_checked_approved_activated_and_regraded(url, store, capsys):
    register(url, "numeric2.json", "ann", build)
    assert "numeric@2 is registered, hash " in capsys.readouterr().out
    with pytest.raises(UserError) as refused:
        activate(url, "numeric@2", "ann")
    assert refused.value.what.splitlines() == [
        "numeric@2 cannot be activated; missing:",
        "  the cases report",
        "  the regrade report",
        "  the adversarial report",
        "  the approval of a second person, other than ann",
    ]
    check(url, "numeric@2", build, cases="cases.jsonl", run_id="run-1")
    shown = capsys.readouterr().out
    assert "6 of 6 rollouts scored by both" in shown and "2 of 2 cases right" in shown
    assert "id-1      other reward   0.000    0.500" in shown
    with pytest.raises(UserError, match=r"missing:\n  the approval of a second person, other than ann\n"):
        activate(url, "numeric@2", "ann")
    with pytest.raises(UserError, match="Ann registered numeric@2 and cannot approve it too"):
        approve(url, "numeric@2", "Ann")
    assert inactive(store, NumericGrader(tolerance=0.02).ref) == "numeric@2 is registered, and not active"
    approve(url, "numeric@2", "bob")
    activate(url, "numeric@2", "ann")
    assert f"in place of numeric@1#{NumericGrader().ref.hash}" in capsys.readouterr().out
    assert inactive(store, NumericGrader(tolerance=0.02).ref) == ""
    assert "numeric@2#" in inactive(store, NumericGrader().ref)  # one active version a name: the shipped one has had its time

    regrade(url, "numeric@2", build, run_id="run-1")
    stored = find_card(store, "id-1")
    assert [(one.grade.grader.version, one.grade.reward) for one in stored.grades] == [("1", 0.0), ("2", 0.5)]
    assert stored.grades[1].grade.grader == find_version(store, "numeric@2").ref


def test_a_regrade_tells_what_flips_and_what_training_would_have_been_told(url, capsys):
    """Of six, 3 at 1 before: mean 0.5; after, half a reward more: 3.5 / 6 = 0.583. No verdict turns.

    The group 1, 0, 0, 1 had advantages +-0.86588 (0.5 / 0.57745); 1, 0.5, 0, 1 has mean 0.625 and deviation 0.47871, so
    0.78316, -0.26105, -1.30527, 0.78316. Shifts 0.08272, 0.60483, 0.43939, 0.08272: mean 0.302. None changes its sign.
    """
    register(url, "numeric2.json", "ann", build)
    capsys.readouterr()
    regrade(url, "numeric@2", build, run_id="run-1")
    shown = " ".join(capsys.readouterr().out.split())
    assert "7 cards: 6 grades of numeric@2 added, 0 had one, 1 have nothing to grade" in shown
    assert "all 6 0.500 0.583 50.0% 50.0%" in shown
    assert "train 4 0.500 0.625 50.0% 50.0%" in shown and "eval 2 0.500 0.500 50.0% 50.0%" in shown
    assert "1 rollouts change" in shown
    assert "within its 1 groups: 0 rollouts would be pushed the other way, advantages shift by 0.302 on average" in shown


def test_a_regrade_goes_on_where_it_was_stopped(url, store, capsys):
    register(url, "numeric2.json", "ann", build)
    regrade(url, "numeric@2", build, cards=["id-0", "id-1", "id-1"])
    capsys.readouterr()
    regrade(url, "numeric@2", build, run_id="run-1")
    assert "7 cards: 4 grades of numeric@2 added, 2 had one" in capsys.readouterr().out
    assert [len(find_card(store, f"id-{number}").grades) for number in range(7)] == [2] * 6 + [0]


def test_a_kill_in_the_middle_keeps_what_was_graded(url, store, monkeypatch, capsys):
    monkeypatch.setattr("agent_rft.commands.regrade.KEPT_AT_ONCE", 2)
    done = []

    class Dies(NumericGrader):
        def grade(self, item, sample):
            done.append(sample)
            if len(done) == 5:
                raise KeyboardInterrupt
            return super().grade(item, sample)

    def breaking(spec):
        return Dies(tolerance=0.02)

    register(url, "numeric2.json", "ann", build)
    with pytest.raises(KeyboardInterrupt):
        regrade(url, "numeric@2", breaking, run_id="run-1")
    assert [len(find_card(store, f"id-{number}").grades) for number in range(6)] == [2, 2, 2, 2, 1, 1]
    regrade(url, "numeric@2", build, run_id="run-1")
    assert "2 grades of numeric@2 added, 4 had one" in capsys.readouterr().out


def test_a_stop_while_grades_are_written_loses_none_of_them(url, store, monkeypatch):
    """Three at once: the second three are being written when it is stopped."""
    monkeypatch.setattr("agent_rft.commands.regrade.KEPT_AT_ONCE", 3)
    calls = []

    def stopped_once(*given):
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return append_grades(*given)

    monkeypatch.setattr("agent_rft.commands.regrade.append_grades", stopped_once)
    register(url, "numeric2.json", "ann", build)
    with pytest.raises(KeyboardInterrupt):
        regrade(url, "numeric@2", build, run_id="run-1")
    assert [len(find_card(store, f"id-{number}").grades) for number in range(6)] == [2] * 6


def test_what_another_tenant_sends_under_the_runs_name_is_none_of_it(url, store, capsys):
    """A card by an id that the run has, one by an id of its own; and a third tenant's. The run's owner is `local`."""
    with StoreRecorder(store) as recorder:
        for number, tenant in ((0, "mallory"), (57, "mallory"), (58, "other")):
            recorder.record(msgspec.structs.replace(card(number, "$1"), tenant=tenant))
    register(url, "numeric2.json", "ann", build)
    with pytest.raises(UserError, match="several tenants have cards of run run-1: local, mallory, other") as refused:
        regrade(url, "numeric@2", build, run_id="run-1")
    assert "store.tenant=NAME" in refused.value.cure
    regrade(url, "numeric@2", build, tenant="local", run_id="run-1")
    assert "7 cards: 6 grades of numeric@2 added" in capsys.readouterr().out
    check(url, "numeric@2", build, tenant="local", cases="cases.jsonl", run_id="run-1")
    assert "6 rollouts" in newest_reports(store, find_version(store, "numeric@2").ref)["regrade"].why
    theirs = [len(stored.grades) for stored in cards_by_id(store, ["id-0", "id-57", "id-58"]) if stored.card.tenant != "local"]
    assert theirs == [1, 1, 1], "nobody else's card was graded"
    regrade(url, "numeric@2", build, tenant="other", cards=["id-58"])
    assert "1 cards: 1 grades of numeric@2 added" in capsys.readouterr().out


def test_the_shipped_grader_regrades_without_being_registered(url, capsys):
    regrade(url, "numeric@1", build, run_id="run-1")
    assert "7 cards: 0 grades of numeric@1 added, 6 had one" in capsys.readouterr().out


def test_a_grader_that_reads_more_of_the_row_is_warned_about_and_helped_by_rows(url, store, tmp_path, capsys):
    (tmp_path / "own.json").write_text('{"type": "numeric", "name": "numeric", "use_row_tolerance": true}')
    register(url, "own.json", "ann", build, "numeric@rows")
    rows = [Row("row-1", "What was the revenue of Heron Castings?", "$842M", Expected(tolerance_rel=0.02))]
    write_rows(tmp_path / "rows.jsonl", rows)
    regrade(url, "numeric@rows", build, cards=["id-1"], rows=["rows.jsonl"])
    assert "warning" not in capsys.readouterr().out
    assert find_card(store, "id-1").grades[1].grade.reward == 0.5  # the row allows 2%
    regrade(url, "numeric@rows", build, cards=["id-2"])
    assert "warning: of 1 cards only question, reference answer and metadata are known" in capsys.readouterr().out


def test_a_card_that_keeps_its_rows_own_keys_is_graded_by_them_whatever_files_say(url, store, tmp_path, capsys):
    (tmp_path / "own.json").write_text('{"type": "numeric", "name": "numeric", "use_row_tolerance": true}')
    register(url, "own.json", "ann", build, "numeric@rows")
    write_rows(tmp_path / "rows.jsonl", [Row("row-1", "What was the revenue?", "$842M", Expected(tolerance_rel=0.0))])
    with StoreRecorder(store) as recorder:
        recorder.record(msgspec.structs.replace(card(7, "$850M"), item={"expected": {"tolerance_rel": 0.02}}))
    regrade(url, "numeric@rows", build, cards=["id-7"], rows=["rows.jsonl"])
    assert find_card(store, "id-7").grades[1].grade.reward == 0.5  # 8 off, 16.84 allowed by the card's row
    assert "warning" not in capsys.readouterr().out


def test_a_recipe_names_a_registered_version_and_gets_the_very_one(url, store):
    register(url, "numeric2.json", "ann", build)
    assert grader_of(recipe(url, "grader.name=numeric@2")).ref == find_version(store, "numeric@2").ref
    assert grader_of(recipe(url, "grader.name=numeric@1")).ref == grader_of(recipe(url)).ref == NumericGrader().ref


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["grader.name=numeric@3"], r"no grader version numeric@3 is registered in .*\n  cure: did you mean 'numeric@2'"),
        (
            ["grader.name=numeric@2", "grader.options.tolerance=0.1"],
            "is a whole grader, and grader.options={'tolerance': 0.1} would be another",
        ),
        (["grader.name=numeric@2", "grader.file=numeric2.json"], "is a whole grader, and grader.file=numeric2.json would be another"),
        (["grader.name=numeric@"], "'numeric@' names no grader version"),
    ],
)
def test_a_recipe_that_names_no_one_grader_is_told_so(url, given, says):
    register(url, "numeric2.json", "ann", build)
    with pytest.raises(UserError, match=says):
        grader_of(recipe(url, *given))


def recipe(url: str, *overrides: str) -> Settings:
    return settings_for("research_tiny", [f"store.url={url}", *overrides])


def test_cards_whose_grader_failed_are_scored_after_all_and_failures_are_no_zeros(url, store, capsys):
    failed = card(7, "$842M", ending=Ending.INFRA_FAILED, failed_part="grader:judge")
    odd = card(8, "$842M")
    with StoreRecorder(store) as recorder:
        recorder.record(failed)
        recorder.record(
            JobCard(
                **{name: getattr(odd, name) for name in JobCard.__struct_fields__ if name != "reference_answer"}, reference_answer="soon"
            )
        )
    regrade(url, "numeric@1", build, cards=["id-7"])
    assert find_card(store, "id-7").card.grade.reward == 1
    register(url, "numeric2.json", "ann", build)
    capsys.readouterr()
    regrade(url, "numeric@2", build, cards=["id-8"])
    assert '1 got no score; the first: {"invalid_variable_error"' in capsys.readouterr().out
    assert find_card(store, "id-8").card.grade == Grade(
        find_version(store, "numeric@2").ref, None, errors={"invalid_variable_error": "item.reference_answer is not one number: 'soon'"}
    )


@pytest.mark.parametrize(
    ("wanted", "says"),
    [("numeric@1", "ships with the code, hash"), ("numeric", "names no grader version"), ("num eric@2", "names no grader version")],
)
def test_a_version_that_cannot_be_is_refused(url, wanted, says):
    with pytest.raises(UserError, match=says):
        register(url, "numeric2.json", "ann", build, wanted)


def test_registering_again_is_no_new_version_and_another_tolerance_is_the_next(url, tmp_path, capsys):
    register(url, "numeric2.json", "ann", build)
    register(url, "numeric2.json", "bob", build)
    assert "numeric@2 is this grader already" in capsys.readouterr().out
    (tmp_path / "numeric3.json").write_text('{"type": "numeric", "name": "numeric", "tolerance": 0.03}')
    with pytest.raises(UserError, match=r"numeric@2 is registered with hash [0-9a-f]{16}; this one's is [0-9a-f]{16}"):
        register(url, "numeric3.json", "ann", build, "numeric@2")
    register(url, "numeric3.json", "ann", build)
    assert "numeric@3 is registered, hash" in capsys.readouterr().out


def test_to_register_what_ships_and_stands_changes_nothing(url, store, capsys):
    register(url, "numeric", "ann", build)
    assert f"numeric@1 ships with the code and stands as it is, hash {NumericGrader().ref.hash}" in " ".join(
        capsys.readouterr().out.split()
    )
    assert grader_versions_of(store) == [] and inactive(store, NumericGrader().ref) == ""


def test_what_ships_may_train_and_is_listed_once_though_it_is_registered_and_is_the_way_back(checked, store, capsys):
    """A store may hold it from before; it also has to be registered to take over again from another."""
    add_version(store, NumericGrader().ref, {"type": "numeric", "name": "numeric"}, "c", "ann")
    assert inactive(store, NumericGrader().ref) == ""
    list_graders(checked)
    assert capsys.readouterr().out.count("numeric@1 ") == 1
    approve(checked, "numeric@2", "bob")
    activate(checked, "numeric@2", "ann")
    assert inactive(store, NumericGrader().ref).endswith("is active in its place")
    register(checked, "numeric", "eve", build)
    check(checked, "numeric@1", build, cases="exact.jsonl", run_id="run-1")
    approve(checked, "numeric@1", "bob")
    activate(checked, "numeric@1", "ann")
    assert inactive(store, NumericGrader().ref) == "" and inactive(store, NumericGrader(tolerance=0.02).ref)


@pytest.mark.parametrize("blank", ["", "   ", "\u200b", "\x1b"])
def test_a_blank_name_is_no_person(checked, store, blank):
    for act in (
        lambda: register(checked, "numeric2.json", blank, build, "numeric@9"),
        lambda: approve(checked, "numeric@2", blank),
        lambda: activate(checked, "numeric@2", blank),
    ):
        with pytest.raises(UserError, match="nobody is named"):
            act()
    assert [one.ref.version for one in grader_versions_of(store)] == ["2"] and approvals(store, find_version(store, "numeric@2").ref) == []


def test_an_approval_is_of_the_reports_that_were_there(checked, capsys):
    approve(checked, "numeric@2", "bob")
    told = " ".join(capsys.readouterr().out.split())
    assert "2 cases of cases.jsonl, sha256 " in told and "6 rollouts of run run-1, sha256 of their ids " in told
    check(checked, "numeric@2", build, cases="exact.jsonl", run_id=None)
    assert "there are reports since the approval of bob, which was of others" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(UserError, match=r"missing:\n  the approval of a second person, other than ann; .* approval of bob"):
        activate(checked, "numeric@2", "ann")
    approve(checked, "numeric@2", "bob")
    activate(checked, "numeric@2", "ann")


def test_code_that_decides_otherwise_by_now_does_not_pass_for_what_was_registered(url, store):
    register(url, "numeric2.json", "ann", build)
    with pytest.raises(UserError, match=r"was registered with hash .* this code makes it"):
        registered_grader(store, "numeric@2", lambda spec: NumericGrader(tolerance=0.05))


def test_a_check_that_does_not_pass_ends_with_1_and_bars_approval(url, tmp_path, capsys):
    (tmp_path / "wrong.jsonl").write_text(CASES.replace('"reward": 0,', '"reward": 1,'))
    register(url, "numeric2.json", "ann", build)
    with pytest.raises(UserError, match="numeric@2 does not pass: cases") as caught:
        check(url, "numeric@2", build, cases="wrong.jsonl", run_id="run-1")
    assert caught.value.exit_code == 1
    assert "wrong.jsonl:2: wanted 1, got 0.0" in capsys.readouterr().out
    with pytest.raises(UserError, match="a cases report that passes: 1 of 2 cases right"):
        approve(url, "numeric@2", "bob")
    check(url, "numeric@2", build, cases="cases.jsonl", run_id=None)
    approve(url, "numeric@2", "bob")


def test_a_check_adds_no_grade(checked, store):
    assert [len(find_card(store, f"id-{number}").grades) for number in range(6)] == [1] * 6


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"cases": None, "run_id": None}, "nothing to check the grader on"),
        ({"cases": None, "run_id": "run-9"}, "no card of run run-9"),
        ({"cases": "none.jsonl", "run_id": None}, "cannot read none.jsonl"),
        ({"cases": None, "run_id": "run-1", "labels": True}, "nobody has labelled a rollout of run run-1"),
    ],
)
def test_a_check_on_nothing_says_what_is_missing(url, given, says):
    register(url, "numeric2.json", "ann", build)
    with pytest.raises(UserError, match=says):
        check(url, "numeric@2", build, **given)


def test_labels_make_kappa_needed(checked, store, capsys):
    """Too few of them so far: then nothing can be active before people have said enough."""
    for number in range(4):
        add_label(store, "eve", rollout_id=f"id-{number}", label="pass" if ANSWERS[number] == "$842M" else "fail")
    with pytest.raises(UserError, match=r"the kappa report"):
        approve(checked, "numeric@2", "bob")
    with pytest.raises(UserError, match="does not pass: kappa\n  cure: let people label more of the run's rollouts: rft label --run"):
        check(checked, "numeric@2", build, cases=None, run_id="run-1", labels=True)
    assert "4 labelled rollouts with a score, 10 at least" in " ".join(capsys.readouterr().out.split())


def test_a_comparison_with_an_earlier_active_version_is_made_again(checked, store, tmp_path):
    approve(checked, "numeric@2", "bob")
    (tmp_path / "numeric3.json").write_text('{"type": "numeric", "name": "numeric", "tolerance": 0.02, "use_row_tolerance": true}')
    register(checked, "numeric3.json", "ann", build)
    check(checked, "numeric@3", build, cases="cases.jsonl", run_id="run-1")
    approve(checked, "numeric@3", "bob")
    activate(checked, "numeric@2", "ann")
    with pytest.raises(UserError, match=r"compares with numeric@1#[0-9a-f]+, but numeric@2#[0-9a-f]+ is active now"):
        activate(checked, "numeric@3", "ann")
    check(checked, "numeric@3", build, cases=None, run_id="run-1")
    approve(checked, "numeric@3", "bob")
    activate(checked, "numeric@3", "ann")
    active = active_version(store, "numeric")
    assert active and active.ref.version == "3"


def test_an_active_version_of_code_that_is_no_more_does_not_bar_the_next(checked, store, tmp_path, capsys):
    approve(checked, "numeric@2", "bob")
    activate(checked, "numeric@2", "ann")

    def newer(spec):
        grader = build(spec)
        grader.ref = GraderRef("numeric", "1", grader.ref.hash[::-1])  # as if the rule's code had changed since
        return grader

    register(checked, "numeric2.json", "ann", newer)
    capsys.readouterr()
    check(checked, "numeric@3", newer, cases="cases.jsonl", run_id="run-1")
    assert "compared with each rollout's first grade: this code does not build numeric@2#" in capsys.readouterr().out
    approve(checked, "numeric@3", "bob")
    activate(checked, "numeric@3", "ann")


def test_only_what_ships_unchanged_or_is_active_may_train(store):
    assert inactive(store, NumericGrader().ref) == ""
    assert inactive(store, NumericGrader(tolerance=0.02).ref).endswith("is not registered, and not active")
    assert inactive(store, NumericGrader(use_row_tolerance=True).ref)
    assert inactive(store, GraderRef("style", "1", "abcd")) == "style@1#abcd is not registered, and not active"


def test_keys_of_an_endpoint_stay_out_of_the_store(url, store, tmp_path, monkeypatch):
    spec = {"type": "endpoint", "name": "house", "url": "https://grader.example/score", "headers": {"Authorization": "Bearer s3cret"}}
    multi = {"type": "multi", "name": "both", "graders": {"house": spec}, "calculate_output": "house"}
    (tmp_path / "house.json").write_text(json.dumps(multi))
    built = []

    def fake(spec):
        built.append(spec)
        return NumericGrader()

    register(url, "house.json", "ann", fake)
    assert "s3cret" not in json.dumps(find_version(store, "both@1").spec) and b"s3cret" not in (tmp_path / "cards.db").read_bytes()
    with pytest.raises(UserError, match="header Authorization is not known") as caught:
        registered_grader(store, "both@1", fake)
    assert "export GRADER_HEADER_AUTHORIZATION=" in caught.value.cure
    monkeypatch.setenv("GRADER_HEADER_AUTHORIZATION", "Bearer s3cret")
    assert registered_grader(store, "both@1", fake).ref.name == "both"
    assert built[0] == built[-1]


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("https://jo:pw1@grader.example/score", r"both.*\.house\.url: holds a user's name or password"),
        ("https://grader.example/score?api_key=s3cret", "holds what looks like a key, in api_key="),
        ("https://grader.example/score?v=2&code=s3cret", "holds what looks like a key, in code="),
        ("https://grader.example/score?of=s3cret90a8s7d6f5g4h3j2", "holds what looks like a key, in of="),
        ("https://[s3cret/score", "is no address"),
    ],
)
def test_an_address_with_a_key_in_it_is_refused_without_showing_it(url, store, tmp_path, address, says):
    spec = {"type": "endpoint", "name": "house", "url": address}
    multi = {"type": "multi", "name": "both", "graders": {"house": spec}, "calculate_output": "house"}
    (tmp_path / "both.json").write_text(json.dumps(multi))
    with pytest.raises(UserError, match=says) as caught:
        register(url, "both.json", "ann", lambda spec: NumericGrader())
    assert "s3cret" not in str(caught.value) and "pw1" not in str(caught.value) and "headers" in str(caught.value)
    assert grader_versions_of(store) == []


def test_an_address_with_an_ordinary_question_is_registered(url, store, tmp_path):
    address = "https://grader.example/score?api-version=2025-04-01-preview&model=gpt-4o-mini-2024-07-18&lang=en"
    (tmp_path / "house.json").write_text(json.dumps({"type": "endpoint", "name": "house", "url": address}))
    register(url, "house.json", "ann", lambda spec: NumericGrader())
    assert find_version(store, "house@1").spec["url"] == address


LOOSE = {"type": "string_check", "name": "loose", "input": "{{sample.output_text}}", "reference": "{{item.answer}}", "operation": "like"}


@pytest.fixture
def of_openai(url, store, tmp_path) -> str:
    """A run whose rows hold the right answer under a key of their own, and a grader that looks for it anywhere."""
    with StoreRecorder(store) as recorder:
        for number, answer in enumerate(("64.8%", "64%"), 10):
            own = msgspec.structs.replace(card(number, answer), run_id="job", reference_answer=None, item={"answer": "64.8%"})
            recorder.record(own)
    (tmp_path / "loose.json").write_text(json.dumps(LOOSE))
    register(url, "loose.json", "ann", build)
    return url


def test_answers_that_hedge_are_tried_where_the_row_has_a_key_of_its_own_for_the_right_one(of_openai, capsys):
    with pytest.raises(UserError, match="loose@1 does not pass: adversarial\n  cure: mend it"):
        check(of_openai, "loose@1", build, cases=None, run_id="job")
    assert "too much, or no score, for: hedged, all numbers, wrong claim" in " ".join(capsys.readouterr().out.split())


def test_a_grader_that_does_not_say_what_is_right_is_told_so_or_asked_to_be_tried_without(of_openai, tmp_path, capsys):
    """As a judge is, whose JSON does not tell either."""
    (tmp_path / "strict.json").write_text(json.dumps({"type": "schema", "name": "strict", "schema": {"type": "object"}}))
    register(of_openai, "strict.json", "ann", build)
    with pytest.raises(UserError, match="does not pass: adversarial\n  cure: --reference KEY names"):
        check(of_openai, "strict@1", build, cases=None, run_id="job")
    assert "not enough was tried of: hedged, all numbers, wrong claim" in " ".join(capsys.readouterr().out.split())
    check(of_openai, "strict@1", build, cases=None, run_id="job", reference="answer")
    assert "7 kinds of answers on 1 rows earn nothing" in " ".join(capsys.readouterr().out.split())
    check(of_openai, "strict@1", build, cases=None, run_id="job", without_reference=True)
    assert "without a right answer not tried: hedged" in " ".join(capsys.readouterr().out.split())


def test_a_regrade_says_what_the_release_verdict_would_have_been(url, store, capsys):
    """Eight rows, base wrong on all. Tuned then: 1 and seven 0s, with the imagined 1 and -1 mean 0.1; squares about it 2.9, / 9 / 10 =
    0.03222, root 0.1795; t of 9 degrees 2.2622: 0.1 ± 0.406: luck. With 2% allowed 1 and seven halves: mean 0.45, squares 2.725, / 9 / 10 =
    0.03028, root 0.1740: 0.45 ± 0.394. A validation on the way, at a step, and another run's tries count for neither.
    """
    asked = [("base", None, ["$600M"] * 8), ("run-7/step-2", 2, ["$842M"] * 8), ("run-7/step-4", None, ["$842M"] + ["$850M"] * 7)]
    with StoreRecorder(store) as recorder:
        for part, (checkpoint, step, answers) in enumerate(asked, 2):
            for at, answer in enumerate(answers):
                versions = Versions(code="", checkpoint=checkpoint)
                one = card(10 * part + at, answer, "eval", f"row-{at}")
                recorder.record(msgspec.structs.replace(one, run_id="run-7", step=step, versions=versions))
    register(url, "numeric2.json", "ann", build)
    capsys.readouterr()
    regrade(url, "numeric@2", build, run_id="run-7")
    told = " ".join(capsys.readouterr().out.split())
    assert (
        "release of run run-7: run-7/step-4 against base "
        "as it was graded: no clear change; mean Δreward +0.125 [-0.306, +0.506], improved 1, regressed 0 of 8 "
        "by numeric@2: better; mean Δreward +0.562 [+0.056, +0.844], improved 8, regressed 0 of 8 "
        "the verdict would have been another"
    ) in told
    regrade(url, "numeric@1", build, run_id="run-7")
    assert "the verdict stays" in capsys.readouterr().out
    regrade(url, "numeric@2", build, run_id="run-1")
    assert "release" not in capsys.readouterr().out


def test_where_nothing_was_scored_before_no_verdict_is_said_to_have_been_another(url, store, capsys):
    with StoreRecorder(store) as recorder:
        for at, checkpoint in enumerate(("base", "run-8/step-4")):
            one = card(50 + at, "$850M", "eval")
            versions = Versions(code="", checkpoint=checkpoint)
            recorder.record(msgspec.structs.replace(one, run_id="run-8", step=None, versions=versions, grade=None))
    register(url, "numeric2.json", "ann", build)
    regrade(url, "numeric@2", build, run_id="run-8")
    told = capsys.readouterr().out
    assert "as it was graded:    no row has a score on both sides" in told and "verdict" not in told


def test_the_list_fits_a_narrow_terminal_and_shows_who_did_what(checked, capsys):
    approve(checked, "numeric@2", "bob")
    capsys.readouterr()
    list_graders(checked)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "numeric@1   ships, stands" in shown and "numeric@2   registered" in shown and "bob" in shown


def test_rows_and_the_cost_of_calls_come_from_the_runs_own_folder(url, store, tmp_path, capsys):
    write_rows(tmp_path / "train.jsonl", [Row("row-1", "What was the revenue?", "$842M", Expected(tolerance_rel=0.02))])
    settings = settings_for(
        "research_tiny", [f"task.train={tmp_path}/train.jsonl", "algorithm.call_cost=0.1", f"task.val={tmp_path}/none.jsonl"]
    )
    Path("runs/run-1").mkdir(parents=True)
    save(settings, Path("runs/run-1/settings.yaml"))
    (tmp_path / "own.json").write_text('{"type": "numeric", "name": "numeric", "use_row_tolerance": true}')
    register(url, "own.json", "ann", build)
    regrade(url, "numeric@2", build, run_id="run-1")
    assert "warning" not in capsys.readouterr().out
    assert find_card(store, "id-1").grades[1].grade.reward == 0.5


class Judge(NumericGrader):
    """Waits for another, who is away at first."""

    waits = True

    def __init__(self, away: bool, together: threading.Barrier | None = None) -> None:
        super().__init__(tolerance=0.02)
        self._away, self._together = away, together

    def grade(self, item, sample):
        if self._together:
            self._together.wait(10)  # passes only where all ask at once
        return Grade(self.ref, None, errors={"model_grader_server_error": "away"}) if self._away else super().grade(item, sample)


def test_a_judge_that_was_away_is_asked_again(url, store, capsys):
    register(url, "numeric2.json", "ann", build)
    regrade(url, "numeric@2", lambda spec: Judge(away=True), run_id="run-1")
    assert "6 got no score" in capsys.readouterr().out
    regrade(url, "numeric@2", lambda spec: Judge(away=False), run_id="run-1")
    assert "6 grades of numeric@2 added, 0 had one" in capsys.readouterr().out
    assert [one.grade.reward for one in find_card(store, "id-1").grades] == [0, None, 0.5]


def test_a_judge_that_goes_away_for_good_ends_a_regrade_soon_and_what_it_had_scored_is_kept(url, store):
    """Each rollout of a judge that is away costs minutes of trying again. Five of 200 are scored; 32 more are heard of, and no more are
    asked than what was handed out by then, a hundred."""
    with StoreRecorder(store) as recorder:
        for number in range(100, 300):
            recorder.record(msgspec.structs.replace(card(number, "$850M" if number < 105 else "$600M"), run_id="long"))
    asked = list[str]()

    class Leaves(Judge):
        def grade(self, item, sample):
            asked.append(sample["output_text"])
            away = sample["output_text"] == "$600M"
            return Grade(self.ref, None, errors={"other_error": "away"}) if away else super().grade(item, sample)

    register(url, "numeric2.json", "ann", build)
    with pytest.raises(InfraError, match=r"grader numeric: it gave no score on 32 rollouts in a row.*away") as stopped:
        regrade(url, "numeric@2", lambda spec: Leaves(away=False), run_id="long")
    assert "then give the same command again" in stopped.value.cure
    assert 37 <= len(asked) <= 100, "most of them were never asked for"
    given = [one.grade.reward for number in range(100, 300) for one in find_card(store, f"id-{number}").grades[1:]]
    assert given.count(0.5) == 5 and len(given) == 37


def test_a_rule_that_fails_on_many_rows_costs_nothing_and_goes_on(url, store, capsys):
    with StoreRecorder(store) as recorder:
        for number in range(100, 140):
            recorder.record(card(number, "$850M"))

    class Broken(NumericGrader):
        def grade(self, item, sample):
            return Grade(self.ref, None, errors={"other_error": "no"}) if sample["output_text"] == "$850M" else super().grade(item, sample)

    register(url, "numeric2.json", "ann", build)
    regrade(url, "numeric@2", lambda spec: Broken(tolerance=0.02), run_id="run-1")
    assert "41 got no score" in capsys.readouterr().out


def test_a_regrade_that_is_stopped_keeps_what_was_scored_before_a_hundred_are_full(url, store):
    class Stops(NumericGrader):
        def grade(self, item, sample):
            if sample["output_text"] == "$700M":
                raise KeyboardInterrupt
            return super().grade(item, sample)

    register(url, "numeric2.json", "ann", build)
    with pytest.raises(KeyboardInterrupt):
        regrade(url, "numeric@2", lambda spec: Stops(tolerance=0.02), run_id="run-1")
    assert [len(find_card(store, f"id-{number}").grades) for number in range(6)] == [2, 2, 1, 1, 1, 1]


def test_a_judge_is_asked_about_many_rollouts_at_once(url, capsys):
    register(url, "numeric2.json", "ann", build)
    regrade(url, "numeric@2", lambda spec: Judge(away=False, together=threading.Barrier(6)), run_id="run-1")
    assert "6 grades of numeric@2 added" in capsys.readouterr().out


def test_people_who_agree_let_it_pass(checked, store, capsys):
    with StoreRecorder(store) as recorder:
        for number in range(10, 20):
            recorder.record(card(number, "$842M" if number % 2 else "$1M"))
    for number in range(10, 20):
        add_label(store, "eve", rollout_id=f"id-{number}", label="pass" if number % 2 else "fail")
    check(checked, "numeric@2", build, cases=None, run_id="run-1", labels=True)
    assert "kappa 1.00 (95%: 1.00 to 1.00) on 10 rollouts" in " ".join(capsys.readouterr().out.split())
    approve(checked, "numeric@2", "bob")
    activate(checked, "numeric@2", "ann")
