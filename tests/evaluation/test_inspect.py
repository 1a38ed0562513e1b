"""Which rollouts are to be read first, and why; and whose fault each was."""

from __future__ import annotations

import json
import shlex
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_rft.contracts.errors import FaultsFound, UserError
from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.messages import ToolCall
from agent_rft.contracts.rollouts import Ending, Limits, Rollout, ToolResult, Turn
from agent_rft.contracts.rows import Expected, Row
from agent_rft.evaluation.inspect import Looked, Story, Try, look, one_of_each, standing_grader
from agent_rft.evaluation.triage import Where, blamed_in, case_of, mending, note_of, read_blamed, verdict_on

FIRST, SECOND, OTHER = GraderRef("numeric", "1", "a"), GraderRef("numeric", "2", "b"), GraderRef("judge", "1", "c")
EVIDENCE = Expected(evidence_path="filings/a.html", must_use_tools=("search",))


def tried(row: str, reward: float | None, calls: int = 1, sample: int = 0, **more: Any) -> Try:
    """A try that searched, found the row's filing and answered."""
    call = [ToolCall(f"c{one}", more.get("tool", "search"), {"query": row}) for one in range(calls)]
    seen = {one.call_id: ToolResult(one.call_id, more.get("seen", "filings/a.html\n  revenue: $5M")) for one in call}
    tokens = more.get("tokens", 40)
    turns = [Turn("", calls=tuple(call), results=seen, sampled_tokens=tokens - 5), Turn(more.get("answer", "$5M"), sampled_tokens=5)]
    ending = more.get("ending", Ending.ANSWERED)
    rollout = Rollout(
        f"{row}-{more.get('model', 'tuned')}-{sample}", (), (), Limits(), turns=turns, ending=ending, answer=more.get("answer", "$5M")
    )
    of_row = Row(row, more.get("prompt", "What was the revenue?"), "$5M", expected=more.get("expected", EVIDENCE))
    grade = None if reward is None else Grade(FIRST, reward)
    graded = GradedRollout(of_row, sample, rollout, grade)
    return Try(graded=graded, checkpoint="tuned", grades=more.get("grades", (grade,) if grade else ()), flags=more.get("flags", ()))


def seen(base: list[Try], tuned: list[Try]) -> Looked:
    return look("r", FIRST, base, tuned)


def rows_of(stories: tuple[Story, ...]) -> list[str]:
    return [one.shown.row.id for one in stories]


# --- worse ----------------------------------------------------------------------------------------------------------------


def test_the_worst_row_comes_first_with_the_try_that_shows_it_and_the_best_of_the_base():
    """a: 0.5 to 0.25, b: 1 to 0, c better, d the same. Calls of a: 2 and 4 are 3 on average, then 1."""
    base = [tried("a", 0.0, 2, 0), tried("a", 1.0, 4, 1), tried("b", 1.0), tried("c", 0.0), tried("d", 1.0)]
    tuned = [tried("a", 0.5, 1, 0), tried("a", 0.0, 1, 1), tried("b", 0.0), tried("c", 1.0), tried("d", 1.0)]
    worst = seen(base, tuned).lists["worst"]
    assert rows_of(worst) == ["b", "a"]
    assert worst[1].shown is tuned[1] and worst[1].beside is base[1]
    assert worst[1].why == ("Δreward -0.25 (0.50 to 0.25), Δtools -2.0 (3.0 to 1.0), means over 2 and 2 tries",)


def test_a_try_that_infrastructure_spoilt_makes_no_row_worse():
    looked = seen([tried("a", 1.0)], [tried("a", None, ending=Ending.INFRA_FAILED)])
    assert looked.lists["worst"] == () and looked.lists["suspicious"] == ()


def test_what_a_guard_flagged_at_an_earlier_step_is_read_and_makes_no_row_worse():
    """The tuned model solves the row as the base does; the weights of step 0, which a guard flagged, did not."""
    flagged = [tried("a", 0.0, sample=7, flags=("it was there",)), tried("b", 1.0, sample=8, flags=("it was there",))]
    looked = look("r", FIRST, [tried("a", 1.0), tried("b", 1.0)], [tried("a", 1.0), tried("b", 1.0)], flagged=flagged)
    assert looked.lists["worst"] == ()
    assert [one.shown for one in looked.lists["suspicious"]] == [flagged[1]] and flagged[0] in looked.tuned


def test_without_a_base_nothing_is_worse_and_the_rest_shows():
    looked = seen([], [tried("a", 1.0, tool="list")])
    assert looked.lists["worst"] == () and rows_of(looked.lists["suspicious"]) == ["a"] and looked.lists["suspicious"][0].beside is None


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from([0.0, 0.5, 1.0]), st.booleans()), max_size=30))
def test_each_row_that_got_worse_is_listed_once_and_the_worst_first(drawn: list[tuple[str, float, bool]]):
    sides: tuple[list[Try], list[Try]] = ([], [])
    for number, (row, reward, tuned) in enumerate(drawn):
        sides[tuned].append(tried(row, reward, sample=number))
    means = [{row: _mean([one.graded.reward or 0.0 for one in side if one.row.id == row]) for row in "abcd"} for side in sides]
    worse = {row for row in "abcd" if None not in (means[0][row], means[1][row]) and means[1][row] < means[0][row]}
    worst = seen(*sides).lists["worst"]
    assert sorted(rows_of(worst)) == sorted(worse) and [one.weight for one in worst] == sorted((one.weight for one in worst), reverse=True)


def _mean(values: list[float]) -> Any:
    return sum(values) / len(values) if values else None


# --- suspiciously right -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"tool": "read"}, "right without search, which the row asks for"),
        ({"seen": "nothing found"}, "right without having come across filings/a.html"),
        ({"prompt": "Was it $5M or $6M?"}, "its answer stands in the prompt"),
        ({"flags": ("copied_answer: twelve alike",)}, "copied_answer: twelve alike"),
    ],
)
def test_a_right_answer_that_was_come_by_otherwise_is_suspicious(more: dict[str, Any], why: str):
    (story,) = seen([tried("a", 1.0)], [tried("a", 1.0, **more), tried("b", 1.0)]).lists["suspicious"]
    assert story.why == (why,) and story.shown.row.id == "a" and story.beside is not None
    assert seen([], [tried("a", 0.0, **more)]).lists["suspicious"] == (), "a wrong one is only wrong"


def test_far_shorter_than_its_siblings_takes_three_siblings_and_a_quarter_of_their_length():
    """Others that are right wrote 40, 40 and 44: 40 is usual, 10 is a quarter of it."""
    others = [tried("a", 1.0, sample=1), tried("a", 1.0, sample=2), tried("a", 1.0, sample=3, tokens=44)]
    wrong = tried("a", 0.0, sample=4, tokens=400)
    told = [seen(others[:2], [tried("a", 1.0, tokens=length), *others[2:], wrong]).lists["suspicious"] for length in (10, 11)]
    assert [[one.why for one in stories] for stories in told] == [
        [("it wrote 10 tokens, where other right tries at the row wrote 40",)],
        [],
    ]
    assert seen(others[:2], [tried("a", 1.0, tokens=10), wrong]).lists["suspicious"] == (), "two others are no habit"


def test_one_story_a_row_the_most_doubtful_first():
    """Copied 4 and lucky 3 make 7; flagged is 2. Of b's tries the copied one, 4, is told and not the flagged one."""
    tuned = [tried("b", 1.0, flags=("x: y",)), tried("b", 1.0, sample=1, prompt="$5M?"), tried("a", 1.0, prompt="$5M?", tool="list")]
    stories = seen([], tuned).lists["suspicious"]
    assert [(one.shown.id, one.weight) for one in stories] == [("a-tuned-0", 7), ("b-tuned-1", 4)]


# --- graders that disagree --------------------------------------------------------------------------------------------------


def test_rollouts_over_which_graders_disagree_come_with_what_each_gives_the_widest_apart_first():
    def by(row: str, numeric: float, judge: float) -> Try:
        return tried(row, numeric, grades=(Grade(FIRST, numeric), Grade(OTHER, judge)))

    stories = seen([], [by("a", 1.0, 0.5), by("b", 0.0, 1.0), by("c", 1.0, 1.0)]).lists["graders"]
    assert [(one.shown.row.id, one.why) for one in stories] == [
        ("b", ("judge@1 gives 1.00, numeric@1 gives 0.00",)),
        ("a", ("numeric@1 gives 1.00, judge@1 gives 0.50",)),
    ]


def test_an_older_version_is_no_other_opinion_and_a_failed_grader_none_at_all():
    given = [Grade(FIRST, 0.0), Grade(OTHER, None, errors={"x": "y"}), Grade(SECOND, 1.0)]
    assert one_of_each(given, SECOND) == one_of_each(given, None) == one_of_each(given, OTHER) == (Grade(SECOND, 1.0),)


def test_who_looks_with_an_older_version_sees_the_grade_that_gave_the_reward():
    given = [Grade(FIRST, 0.0), Grade(OTHER, 0.5), Grade(SECOND, 1.0)]
    assert one_of_each(given, FIRST) == (Grade(FIRST, 0.0), Grade(OTHER, 0.5))


def test_a_run_is_looked_at_with_the_newest_version_that_scored_the_whole_of_it():
    whole = [[Grade(FIRST, 0.0), Grade(OTHER, 0.0), Grade(SECOND, 1.0)], [Grade(FIRST, 0.0), Grade(SECOND, 1.0)]]
    assert standing_grader(whole) == SECOND
    assert standing_grader([whole[0], whole[1][:1]]) == FIRST, "one card was regraded: the run as a whole was not"
    assert standing_grader([[Grade(FIRST, 0.0), Grade(OTHER, 0.0)]]) == FIRST, "another grader's opinion is not how it was scored"
    assert standing_grader(whole, "judge@1") == OTHER
    assert standing_grader([[], [Grade(FIRST, None)]]) is None
    with pytest.raises(UserError, match=r"numeric@3 has scored no rollout of this run\n  cure: did you mean 'numeric@[12]'"):
        standing_grader(whole, "numeric@3")


# --- one row ----------------------------------------------------------------------------------------------------------------


def test_a_row_that_is_in_no_list_is_told_all_the_same():
    looked = seen([tried("a", 1.0), tried("base-only", 1.0)], [tried("a", 1.0)])
    story = looked.of_row("a")
    assert story.why == ("it is in none of the lists",) and story.beside is not None
    assert looked.of_row("base-only").beside is None
    with pytest.raises(UserError, match="run r has no row base-onl\n  cure: did you mean 'base-only'"):
        looked.of_row("base-onl")


# --- triage -----------------------------------------------------------------------------------------------------------------


def test_where_the_grade_is_wrong_the_answer_is_the_other_way_round():
    assert [verdict_on(blamed, right) for blamed in ("grader", "dataset") for right in (True, False)] == ["reject", "accept"] * 2
    assert {verdict_on(blamed, right) for blamed in ("model", "tool") for right in (True, False)} == {"reject"}


@given(st.sampled_from(["model", "grader", "dataset", "tool"]), st.text())
def test_what_was_blamed_is_read_back_from_its_note(blamed: Any, words: str):
    assert blamed_in(note_of(blamed, words)) == blamed
    assert blamed_in(words) is None or words.startswith("triage: ")


def test_every_fault_of_a_triage_is_told_at_once():
    assert read_blamed("grader", "") == "grader"
    with pytest.raises(FaultsFound, match="did you mean 'dataset'"):
        read_blamed("datset", "x")
    with pytest.raises(FaultsFound, match="note: nothing says what is wrong with the tool"):
        read_blamed("tool", " ")


def test_a_grader_that_is_to_be_mended_gets_its_next_version_a_case_and_the_way_there():
    told = mending("r", "numeric", "9", "{}", Where("sqlite:///x.db", "acme"))
    assert told.commands[0] == "rft grader register FIXED.json --as numeric@10 --by YOU --set store.url=sqlite:///x.db"
    assert told.commands[-2] == "rft regrade --run r --grader numeric@10 store.url=sqlite:///x.db"
    assert told.commands[-1] == "rft inspect r --store sqlite:///x.db --tenant acme"
    odd = mending("my run", "numeric", "9", "{}", Where("postgresql://h/db?a=b&c=d"))
    assert shlex.split(odd.commands[-2])[3:] == ["my run", "--grader", "numeric@10", "store.url=postgresql://h/db?a=b&c=d"]
    assert odd.commands[-1] == "rft inspect 'my run' --store 'postgresql://h/db?a=b&c=d'"
    assert mending("r", "judge", "2026-11", "{}").commands[-2] == "rft regrade --run r --grader judge@NEXT"
    item = tried("a", 1.0).row.item()
    case = json.loads(case_of(item, "$5M", right=False, words=""))
    assert case == {"item": json.loads(msgspec.json.encode(item)), "sample": {"output_text": "$5M"}, "reward": 0, "why": "found in triage"}
