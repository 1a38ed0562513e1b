"""One card reads as a story."""

from __future__ import annotations

import datetime as dt

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.messages import ToolCall
from agent_rft.contracts.rollouts import Ending, ToolResult, Turn
from observability.dossier import Artifact, Change, Dossier, Label, Outcome, Review, StateNote, Waiting
from observability.records import DatedGrade, StoredCard
from observability.story import story

NOW = dt.datetime(2026, 11, 21, 4, 1, tzinfo=dt.UTC)

WHOLE = """\
JOB CARD   card-1
           eval in run research_tiny-42, step 120
           row numerical-0412 (numerical_qa, medium), try 1
           started 2026-11-21 04:00:12 UTC, tenant local

SYSTEM     You answer questions about company filings.

PROMPT     What was the operating margin of Henderson Hotels in Q3 2025?

TOOLS      search, read

SAID       I look it up.

CALL 1     search(query="Henderson Hotels operating margin Q3 2025")
           => 12 ms, in parallel with 1 more
              filings/henderson-hotels-10q-2025-q3.html (score 8.21)
                operating margin: 13.4%

CALL 2     read(path="filings/henderson-hotels-10q-2025-q3.html")
           => 250 ms after 2 attempts, in parallel with 1 more
              Henderson Hotels Q3 2025
              revenue: $842M
              operating margin: 13.4%

ANSWER     The operating margin was 13.4%.

REFERENCE  13.4%

ENDING     answered

GRADE      1.00, passed
           by numeric 1 (a1b2c3d4e5f6) on 2026-11-21 04:01 UTC
           found   13.4%
           wanted  13.4%

ADVANTAGE  +0.500 against its group

COST       2 tool calls, 9 tokens (4 read, 5 written)
           1.9 s, of which the tools took 262 ms

MADE BY    checkpoint  tiny/120
           dataset     d1
           tools       t1
           grader      numeric/1
           code        0.1.0
           seed        42
"""


def stored(card, *more_grades):
    given_grades = ([card.grade] if card.grade else []) + list(more_grades)
    return StoredCard(card, NOW, tuple(DatedGrade(grade, NOW) for grade in given_grades))


def test_a_card_reads_from_the_prompt_to_the_grade(make_card):
    assert story(stored(make_card())) == WHOLE


def test_every_grade_is_told_in_order(make_card):
    mended = Grade(GraderRef("numeric", "2", "ffff"), 0.0, False, {}, {"formula_parse_error": True})
    told = story(stored(make_card(), mended))
    assert "GRADE 1    1.00, passed\n           by numeric 1 (a1b2c3d4e5f6)" in told
    assert (
        "GRADE 2    0.00, not passed\n           by numeric 2 (ffff) on 2026-11-21 04:01 UTC\n           errors: formula_parse_error: true"
        in told
    )


def test_a_grader_that_failed_gave_no_score(make_card):
    failed = Grade(GraderRef("judge", "1", "ffff"), None)
    assert "GRADE      no score\n           by judge 1" in story(stored(make_card(grade=failed)))


def test_an_infrastructure_failure_names_the_call_and_the_part(make_card):
    card = make_card(grade=None)
    card.rollout.turns.pop()
    del card.rollout.turns[0].results["call-1-2"]
    card.rollout.ending, card.rollout.reason, card.rollout.answer = Ending.INFRA_FAILED, "tool:read: 503 after 4 attempts", ""
    told = story(stored(card))
    assert "=> nothing came back, in parallel with 1 more" in told
    assert "ANSWER     (none given)" in told
    assert "ENDING     infra failed: tool:read: 503 after 4 attempts" in told
    assert "GRADE      none: the infrastructure failed, so no score exists" in told


def test_a_turn_that_could_not_be_read_is_shown_whole(make_card):
    card = make_card()
    card.rollout.turns[-1] = Turn("<tool_call>{broken</tool_call>")
    card.rollout.ending, card.rollout.answer = Ending.MALFORMED, ""
    assert "SAID       <tool_call>{broken</tool_call>" in story(stored(card))


def test_calls_are_told_once(make_card):
    card = make_card()
    card.rollout.turns[0].text = 'Let me look.\n<tool_call>\n{"name": "search"}\n</tool_call>'
    told = story(stored(card))
    assert "SAID       Let me look.\n\nCALL 1" in told
    assert "<tool_call>" not in told


def test_a_long_result_is_shortened_and_says_by_how_much(make_card):
    card = make_card()
    card.rollout.turns[0].calls = (ToolCall("call-1-1", "list", {"prefix": ""}),)
    lines = "\n".join(f"line {number}" for number in range(1, 31))
    card.rollout.turns[0].results = {"call-1-1": ToolResult("call-1-1", lines + "\n" + "x" * 500, "model_error", 2.25)}
    told = story(stored(card))
    assert 'CALL 1     list(prefix="")\n           => model_error, 2.2 s\n              line 1\n' in told
    assert "              line 8\n              ... 23 more lines\n" in told  # 31 lines, 8 of them shown
    assert "line 9" not in told


@pytest.mark.parametrize("text", ["\x1b[2J\x1b[31mall is well", "\u202egnp.exe", "\x9b1A"])
def test_what_a_model_wrote_cannot_drive_the_terminal(make_card, text):
    card = make_card()
    card.rollout.answer = text
    assert text[0] not in story(stored(card))


@settings(max_examples=60)
@given(answer=st.text(), width=st.integers(40, 200))
def test_no_line_is_wider_than_asked(make_card, answer, width):
    card = make_card(reference_answer=answer, metadata={"task_type": answer})
    card = msgspec.structs.replace(card, rollout=msgspec.structs.replace(card.rollout, answer=answer, reason=answer))
    assert max(map(len, story(stored(card), width).split("\n"))) <= width


AROUND = """\
LINEAGE    checkpoint tiny/120: steps 120
             from run research_tiny-42
           dataset d1 (data/research)

LATE       2 of 12 spans came after the card was made and stand beside it

STATES     2026-11-21 04:01 blocked, by agent: no key

LABELS     2026-11-21 04:01 0.5, by bob

REVIEWS    2026-11-21 04:01 coach of step 2, by ann: read the table

CHANGES    7: dataset, row numerical-0412, wanted by ann: another reference
             declined by bob: it is right

QUEUE      audit: drawn by lot
"""


def test_what_is_known_around_a_card_is_told_after_it(make_card):
    told = stored(make_card())
    review = Review(id=1, rollout_id="card-1", position=2, verdict="coach", note="read the table", by="ann", at=NOW, entry=4)
    outcome = Outcome(outcome="declined", how="it is right", by="bob", at=NOW)
    asked = {"rollout_id": "card-1", "target": "dataset", "row_id": "numerical-0412", "wanted": "another reference", "by": "ann", "at": NOW}
    known = Dossier(
        rollout_id="card-1",
        state="reviewed",
        stored=told,
        states=(StateNote(state="blocked", why="no key", by="agent", at=NOW),),
        reviews=(review,),
        labels=(Label(labeller="bob", score=0.5, label=None, note="", at=NOW),),
        changes=(Change(id=7, outcome=outcome, **asked),),
        queue=(Waiting(rollout_id="card-1", reason="audit", why="drawn by lot", at=NOW),),
        lineage=(
            Artifact(kind="checkpoint", id="tiny/120", name="tiny/120", parents=(("run", "research_tiny-42"),), facts={"steps": 120}),
            Artifact(kind="dataset", id="d1", name="data/research"),
            Artifact(kind="tool_set", id="t1", name="t1", known=False),
        ),
        spans=12,
        late_spans=2,
    )
    whole = story(told, around=known)
    assert whole.endswith("seed        42\n\n" + AROUND)
    assert "tenant local\n           state reviewed\n" in whole
