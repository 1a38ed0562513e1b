"""What a query finds on either database is what reading every card and thinking would find."""

from __future__ import annotations

import datetime as dt
import json
import operator
import random
from contextlib import suppress

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.jobcards import Cost, Versions
from agent_rft.contracts.messages import ToolCall
from agent_rft.contracts.rollouts import Ending, ToolResult, Turn
from observability import reviews, states
from observability.cursor import Cursor, cursor_text, read_cursor
from observability.dossier import Dossier
from observability.dossiers import dossier_of
from observability.filters import COLUMNS, newest_first, where
from observability.graders import add_label, append_grades, withdraw_label
from observability.ingest import insert_cards
from observability.query import KEYS, And, Not, Or, Prefix, Term, Text, all_of, any_of, none_of, parse
from observability.queue import flag
from observability.records import RecordedCard, StoredCard
from observability.tables import job_cards

NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
START = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)
ODD = ["", "O'Neil", "50%_a", "back\\slash", "C:\\udo", "Ann", "ann", "née", "numeric", "numeric@2"]


# --- the same question answered without a database ----------------------------------------------------------------------


def holds(query, known: Dossier) -> bool:
    match query:
        case And(parts):
            return all(holds(part, known) for part in parts)
        case Or(parts):
            return any(holds(part, known) for part in parts)
        case Not(part):
            return not holds(part, known)
        case Text(words):
            return words in card_of(known).card.rollout.answer
        case Term(key, sign, values):
            has = [value for value in (*values_of(key, card_of(known)), *said_of(key, known)) if value is not None]
            return any(agrees(storable(value), sign, wanted) for value in has for wanted in values)


def storable(value):
    return value.replace("\0", "\u2400") if isinstance(value, str) else value


def agrees(value, sign, wanted) -> bool:
    if isinstance(wanted, Prefix):
        return not wanted.start or value.startswith(wanted.start)
    compare = {":": operator.eq, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
    return compare[sign](value, wanted)


def text_of(value):
    return None if value is None else str(value)


def card_of(known: Dossier) -> StoredCard:
    assert known.stored
    return known.stored


def said_of(key, known: Dossier) -> list:
    """What people said of the card, and how far it has come."""
    judged = [one for one in known.reviews if one.verdict != "note"]
    labels = {one.labeller: one for one in known.labels}.values()  # of each the newest
    verdicts = [one.label or ("pass" if (one.score or 0) >= 0.5 else "fail") for one in labels]
    waits = known.state != "sealed" and not judged
    said = {
        "state": [known.state],
        "review": [one.verdict for one in judged[-1:]],
        "label": [one for one in verdicts if one != "withdrawn"],
        "queue": [one.reason for one in known.queue if waits or one.why == "after"],
        "flag": [one.reason[5:] for one in known.queue if one.reason.startswith("flag:")],
        "change": [word for one in known.changes for word in (one.target, one.outcome.outcome if one.outcome else "open")],
    }
    return said.get(key, [])


def values_of(key, stored: StoredCard) -> list:
    card, rollout, grade = stored.card, stored.card.rollout, stored.card.grade
    if key.startswith("meta."):
        value = card.metadata.get(key.removeprefix("meta."))
        return [value if value is None or isinstance(value, str) else msgspec.json.encode(value).decode()]
    graders = [dated.grade.grader for dated in stored.grades]
    known = {
        "id": [card.rollout_id],
        "kind": [card.kind],
        "run": [card.run_id],
        "row": [card.row_id],
        "step": [card.step],
        "sample": [card.sample_index],
        "task": [text_of(card.metadata.get("task_type"))],
        "difficulty": [text_of(card.metadata.get("difficulty"))],
        "started": [dt.datetime.fromisoformat(card.started_at)],
        "recorded": [stored.recorded_at],
        "ending": [rollout.ending],
        "failed": [rollout.failed_part or None],
        "tool": [call.name for turn in rollout.turns for call in turn.calls],
        "error": [result.error for turn in rollout.turns for result in turn.results.values()],
        "calls": [card.cost.tool_calls],
        "tokens": [card.cost.context_tokens + card.cost.sampled_tokens],
        "seconds": [card.cost.seconds],
        "tool_seconds": [card.cost.tool_seconds],
        "grade": [grade and grade.reward],
        "passed": [{True: "yes", False: "no", None: None}[grade.passed if grade else None]],
        "grader": [name for one in graders for name in (one.name, f"{one.name}@{one.version}")],
        "advantage": [card.advantage],
        "checkpoint": [card.versions.checkpoint or None],
        "dataset": [card.versions.dataset or None],
        "tool_set": [card.versions.tool_set or None],
        "code": [card.versions.code],
        "seed": [card.versions.seed],
    }
    return known.get(key, [])


# --- cards that differ in everything --------------------------------------------------------------------------------------


def cards_to_find(make_card, count=40):
    """Drawn once and for all, with gaps: a value of every key, none of it where there may be none."""
    draw = random.Random(7)
    for number in range(count):
        card = make_card(f"{draw.choice(['Ab', 'ab', 'a%'])}-{number:02}", **job(draw))
        card.rollout.ending = draw.choice([None, *Ending])
        card.rollout.failed_part = draw.choice(["", "grader", "tool search"])
        card.rollout.answer = draw.choice(["margin was 13%", "Margin", "", "13"])
        card.rollout.turns = [turn(draw) for _ in range(draw.randrange(3))]
        yield RecordedCard(card, START + dt.timedelta(hours=draw.randrange(6)))


def job(draw):
    numbers = draw.choice([0, 1, 5])
    return {
        "kind": draw.choice(KEYS["kind"].choices),
        "run_id": draw.choice(["run-1", "run-2", "Run-1"]),
        "row_id": draw.choice(["train-1", "train-2"]),
        "step": draw.choice([None, 0, 1, 5]),
        "sample_index": draw.randrange(3),
        "started_at": (START + dt.timedelta(hours=draw.randrange(6), microseconds=draw.randrange(2))).isoformat(),
        "metadata": {
            name: draw.choice([*ODD, None, True, 1, 1.5, 1e16, -3, ["a", {"b": 1}], "nul \0 in it"])
            for name in ("task_type", "difficulty", "customer", "gen_ai.agent.name")
            if draw.random() < 0.8
        },
        "grade": grade(draw),
        "advantage": draw.choice([None, -0.5, 0.0, 0.5]),
        "cost": Cost(context_tokens=numbers, sampled_tokens=1, tool_calls=numbers, seconds=numbers / 2, tool_seconds=numbers / 4),
        "versions": Versions(
            code=draw.choice(["0.1.0", "0.2.0"]),
            checkpoint=draw.choice(["", "tiny/1", "tiny/10"]),
            dataset=draw.choice(["", "d1"]),
            tool_set=draw.choice(["", "t1"]),
            seed=draw.choice([None, 1, 5]),
        ),
    }


def grade(draw):
    ref = GraderRef(draw.choice(["numeric", "stack"]), draw.choice(["1", "2"]), "hash")
    return draw.choice([None, Grade(ref, draw.choice([None, 0.0, 0.5, 1.0]), draw.choice([None, True, False]))])


def turn(draw):
    calls = tuple(ToolCall(f"call-{number}", draw.choice(["search", "read", "O'Neil"]), {}) for number in range(draw.randrange(3)))
    results = {one.call_id: ToolResult(one.call_id, "out", draw.choice([None, "timeout", "model_error"])) for one in calls}
    return Turn("I look.", calls=calls, results=results)


@pytest.fixture
def filled(store, make_card):
    draw = random.Random(8)
    recorded = [*cards_to_find(make_card)]
    insert_cards(store, recorded)
    regraded = [(one.card.rollout_id, grade(draw)) for one in recorded if draw.random() < 0.5]
    append_grades(store, [(rollout_id, given) for rollout_id, given in regraded if given])
    for one in recorded:
        opinions(store, one.card.rollout_id, draw)
    return store


def opinions(store, one, draw):
    """What people do with a card, in any order: it waits for them, they label, judge, ask for changes, seal it."""
    if draw.random() < 0.5:
        flag(store, "local", [one], draw.choice(["guard", "Guard"]), "before")
    for _ in range(draw.randrange(4)):
        match draw.randrange(4):
            case 0:
                reviews.add(store, "ann", "local", one, draw.choice(["accept", "reject", "coach", "note"]), "look here")
            case 1:
                score = draw.choice([None, 0.25, 0.5])
                label = None if score is not None else draw.choice(["pass", "fail"])
                add_label(store, draw.choice(["ann", "bob"]), rollout_id=one, score=score, label=label)
            case 2:
                asked = reviews.request_change(store, "ann", "local", one, draw.choice(["dataset", "prompt"]), "another row")
                if draw.random() < 0.6:
                    reviews.settle(store, "bob", "local", asked.id, draw.choice(["done", "declined"]), "so")
            case _:
                withdraw_label(store, "ann", one)
    if draw.random() < 0.2:
        flag(store, "local", [one], "late", "after")
    if draw.random() < 0.2:
        states.seal(store, "eve", "local", one)
    if states.notes_of(store, "local", one) == () and draw.random() < 0.3:
        with suppress(UserError):  # those that have answered take none
            states.note(store, "agent", "local", one, draw.choice(["planned", "blocked"]))


def with_answer(texts) -> sa.ColumnElement[bool]:
    """Stands in for the search index: the answer holds each of them as it is written."""
    return sa.and_(*(sa.func.replace(job_cards.c.answer, text.words, "") != job_cards.c.answer for text in texts))


def found(store, query) -> set[str]:
    with store.reading() as connection:
        return set(connection.scalars(sa.select(job_cards.c.rollout_id).where(where(query, with_answer))))


# --- any query --------------------------------------------------------------------------------------------------------

texts = st.sampled_from(
    [*ODD[1:], *"run-1 train-1 tiny/1 d1 0.1.0 Ab-01 search timeout grader 1 1.5 1e16 true True null stack".split(), "nul \u2400 in it"]
)
STARTS = ["", "r", "run-", "Ru", "tiny/1", "a", "A", "a%", "50%", "num", "numeric@", "back\\", "C:\\u", "O'", "se", "n", "1"]
starts = st.sampled_from(STARTS)
SIGNS = ["<", "<=", ">", ">="]


def terms_of(key: str):
    kind = "text" if key.startswith("meta.") else KEYS[key].kind
    if kind == "moment":
        moments = st.builds(lambda hours, more: START + dt.timedelta(hours=hours, microseconds=more), st.integers(0, 6), st.integers(0, 1))
        return st.builds(Term, st.just(key), st.sampled_from(SIGNS), st.tuples(moments))
    if kind in ("whole", "number"):
        numbers = st.sampled_from([0, 1, 2, 5, 6, -1, 2**40] if kind == "whole" else [0.0, 0.25, 0.5, 1.0, 2.5, -0.5, 1e300])
        compared = st.builds(Term, st.just(key), st.sampled_from(SIGNS), st.tuples(numbers))
        return compared | st.builds(Term, st.just(key), st.just(":"), st.lists(numbers | st.just(Prefix("")), min_size=1).map(tuple))
    values = st.sampled_from([*KEYS[key].choices, Prefix("")]) if kind == "choice" else texts | st.builds(Prefix, starts)
    return st.builds(Term, st.just(key), st.just(":"), st.lists(values, min_size=1, max_size=3).map(tuple))


asked = st.sampled_from([*COLUMNS, "meta.customer", "meta.gen_ai.agent.name", "meta.missing"])
leaves = asked.flatmap(terms_of) | st.builds(Text, st.sampled_from(["margin", "13", "was"]))
queries = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3).map(all_of) | st.lists(inner, min_size=1, max_size=3).map(any_of) | inner.map(none_of)
    ),
    max_leaves=6,
)  # fmt: skip


def everything_in(store) -> dict[str, Dossier]:
    with store.reading() as connection:
        ids = [*connection.scalars(sa.select(job_cards.c.rollout_id))]
    assert len(ids) == 40
    return {one: dossier_of(store, "local", one) for one in ids}


def test_any_query_finds_the_cards_of_which_it_is_true(filled):
    stored = everything_in(filled)

    @settings(max_examples=200, database=None)
    @given(queries)
    def check(query):
        assert found(filled, query) == {rollout_id for rollout_id, card in stored.items() if holds(query, card)}

    check()


def test_every_beginning_of_every_text_finds_the_cards_that_begin_so(filled):
    stored = everything_in(filled)
    keys = [key for key in COLUMNS if KEYS[key].kind == "text"]
    for query in (Term(key, ":", (Prefix(start),)) for key in [*keys, "meta.customer"] for start in STARTS):
        assert found(filled, query) == {rollout_id for rollout_id, card in stored.items() if holds(query, card)}, query


SOME = (
    "id:ab* kind:eval run:run-1 row:train-1 step:1 sample:0 task:ann,Ann,numeric difficulty:ann,Ann,numeric started>=2026-11-01T03:00 "
    "recorded>=2026-11-01T03:00 "
    "state:reviewed,blocked ending:answered failed:grader tool:search error:timeout calls:1 tokens:2 seconds:0.5 tool_seconds:0.25 "
    "grade:0.5 passed:yes grader:numeric@2 advantage:0.5 "
    "review:accept label:pass queue:flag:guard flag:guard change:open checkpoint:tiny/1 dataset:d1 tool_set:t1 code:0.1.0 seed:1"
)


def test_every_key_alone_finds_some_cards_and_not_all(filled):
    """So that the test above compares answers and not silences."""
    terms = parse(SOME, NOW).parts
    assert [term.key for term in terms] == [*COLUMNS]
    assert [term.key for term in terms if not 0 < len(found(filled, term)) < 40] == []


# --- by hand ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def three(store, make_card):
    """`right` is the sample card; `wrong` was graded 0 and then 0.25 by another version; `broken` has no grade and no step."""
    wrong = make_card("wrong", kind="production", grade=Grade(GraderRef("numeric", "1", "h"), 0.0, False), metadata={"customer": "acme"})
    broken = make_card("broken", grade=None, step=None, metadata={}, started_at="2026-11-20T12:00:00+00:00")
    broken.rollout.ending, broken.rollout.turns, broken.rollout.failed_part = Ending.INFRA_FAILED, [], "grader"
    broken.rollout.answer = ""
    insert_cards(store, [RecordedCard(card, NOW) for card in (make_card("right"), wrong, broken)])
    append_grades(store, [("wrong", Grade(GraderRef("numeric", "2", "h2"), 0.25, None))])
    return store


BY_HAND = [
    ("", "right wrong broken"),
    ("grade<0.5", "wrong"),
    ("grade:0", ""),  # it was given, and is the newest no more
    ("-grade:*", "broken"),
    ("-grade<0.5", "right broken"),
    ("passed:yes", "right"),
    ("-passed:*", "wrong broken"),
    ("grader:numeric@1", "right wrong"),
    ("grader:numeric@2,stack", "wrong"),
    ("tool:search", "right wrong"),
    ("-tool:search", "broken"),
    ("step>100 kind:eval", "right"),
    ("-step>100", "broken"),
    ("before:2026-11-21", "broken"),
    ("after:2026-11-20T12:00", "right wrong broken"),
    ("before:2026-11-20T12:00", ""),
    ("after:12h", "right wrong"),
    ("tokens:9 calls:2 seconds>1.9", "right wrong broken"),
    ("meta.customer:acme", "wrong"),
    ("id:w*", "wrong"),
    ("failed:grader OR kind:production", "wrong broken"),
    ("operating margin -kind:production", "right"),
    ('"margin operating"', ""),
]


def test_by_hand(three):
    assert [(text, found(three, parse(text, NOW))) for text, _ in BY_HAND] == [(text, set(ids.split())) for text, ids in BY_HAND]


def test_words_that_stand_together_are_asked_of_the_index_at_once():
    asked = []

    def index(texts):
        asked.append([text.words for text in texts])
        return sa.true()

    where(parse("a kind:eval b (c OR d)", NOW), index)
    assert asked == [["c"], ["d"], ["a", "b"]]


def test_one_card_with_characters_that_postgresql_cannot_read_out_of_json_hides_no_other(three, make_card):
    odd = {"half": "\ud83d", "whole": "\U0001f600", "nul": "a\0b", "path": "C:\\udo", "customer": "acme"}
    insert_cards(three, [RecordedCard(make_card("odd", metadata=odd), NOW)])
    assert found(three, parse("meta.customer:acme", NOW)) == {"wrong", "odd"}
    assert found(three, parse('meta.path:"C:\\\\udo"', NOW)) == {"odd"}
    assert found(three, parse("meta.nul:a\u2400b", NOW)) == {"odd"}


def test_every_key_of_the_language_is_kept_by_the_tables():
    assert set(KEYS) == set(COLUMNS)


# --- pages --------------------------------------------------------------------------------------------------------------


def test_pages_show_every_card_once_newest_first_also_while_more_arrive(filled, make_card):
    selected = sa.select(job_cards.c.rollout_id, job_cards.c.started_at)
    with filled.reading() as connection:
        everything = sorted(((row.started_at, row.rollout_id) for row in connection.execute(selected)), reverse=True)
    shown, cursor = [], None
    while len(shown) <= len(everything):
        with filled.reading() as connection:
            page = [Cursor(row.started_at, row.rollout_id) for row in connection.execute(newest_first(selected, 7, cursor))]
        if not page:
            break
        shown += page
        cursor = read_cursor(cursor_text(page[-1]))
        late = make_card(f"late-{len(shown)}", started_at="2027-01-01T00:00:00+00:00")
        insert_cards(filled, [RecordedCard(late, NOW)])
    assert [(one.started_at, one.rollout_id) for one in shown] == everything


def test_a_page_of_one_tenant_walks_the_index(store):
    page = newest_first(sa.select(job_cards.c.rollout_id).where(job_cards.c.tenant == "local"), 50, Cursor(NOW, "card-1"))
    with store.writing() as connection:
        if store.engine.dialect.name == "sqlite":
            compiled = page.compile(connection, compile_kwargs={"literal_binds": True})
            plan = json.dumps([list(row) for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}")])
            assert "(tenant=? AND (started_at,rollout_id)<(?,?))" in plan and "TEMP B-TREE" not in plan
        else:
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
            connection.exec_driver_sql("SET LOCAL enable_bitmapscan = off")
            compiled = page.compile(connection, compile_kwargs={"literal_binds": True})
            plan = "\n".join(connection.scalars(sa.text(f"EXPLAIN {compiled}")))
            assert "Index Only Scan Backward" in plan and "ROW(started_at" in plan and "->  Sort" not in plan


FEW = ["state:sealed", "state:blocked", "review:reject", "label:fail", "queue:audit", "flag:guard", "change:open"]


def test_what_few_cards_have_is_looked_up_among_those_few_and_not_for_every_card(store):
    """On SQLite in a list that is made once; on PostgreSQL it is a join, which may begin at either side."""
    for text in FEW:
        select = sa.select(job_cards.c.rollout_id).where(job_cards.c.tenant == "local", where(parse(text, NOW), with_answer))
        with store.reading() as connection:
            said = select.compile(connection, compile_kwargs={"literal_binds": True})
            if store.engine.dialect.name == "sqlite":
                plan = [row[-1] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {said}")]
                before = plan[: next(at for at, line in enumerate(plan) if line.startswith("LIST SUBQUERY"))]
                assert not any("CORRELATED" in line for line in before), plan
            else:
                plan = "\n".join(connection.scalars(sa.text(f"EXPLAIN {said}")))
                assert "Join" in plan or "Nested Loop" in plan, plan
                assert "job_cards" not in plan.partition("SubPlan")[2], plan
