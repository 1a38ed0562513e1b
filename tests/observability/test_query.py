"""The filter language: what it reads, what it refuses and how it says so."""

from __future__ import annotations

import contextlib
import datetime as dt
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_rft.contracts.errors import FaultsFound
from observability.query import (
    DEPTH,
    EVERY_CARD,
    KEYS,
    LARGEST,
    LENGTH,
    VALUES,
    And,
    Not,
    Or,
    Prefix,
    Term,
    Text,
    all_of,
    any_of,
    key_lines,
    keys_of,
    none_of,
    parse,
)

NOW = dt.datetime(2026, 11, 21, 12, 30, tzinfo=dt.UTC)


def read(text):
    return parse(text, NOW)


def faults(text):
    with pytest.raises(FaultsFound) as refused:
        read(text)
    return [str(fault) for fault in refused.value.faults]


# --- what it reads ----------------------------------------------------------------------------------------------------


def test_a_reviewers_whole_question_is_read():
    query = read(
        'kind:production grade<0.5 tool:search checkpoint:abc after:2026-11-01 before:2026-11-20T12:00 "operating margin" '
        "-error:timeout (kind:eval OR kind:prior) seconds>10 tokens>=1000 calls:0 ending:out_of_budget state:graded run:my-run "
        "row:train-1 step>10 grader:numeric@2 passed:no review:accept meta.customer:acme"
    )
    assert query == And(
        (
            Term("kind", ":", ("production",)),
            Term("grade", "<", (0.5,)),
            Term("tool", ":", ("search",)),
            Term("checkpoint", ":", ("abc",)),
            Term("started", ">=", (dt.datetime(2026, 11, 1, tzinfo=dt.UTC),)),
            Term("started", "<", (dt.datetime(2026, 11, 20, 12, tzinfo=dt.UTC),)),
            Text("operating margin"),
            Not(Term("error", ":", ("timeout",))),
            Or((Term("kind", ":", ("eval",)), Term("kind", ":", ("prior",)))),
            Term("seconds", ">", (10.0,)),
            Term("tokens", ">=", (1000,)),
            Term("calls", ":", (0,)),
            Term("ending", ":", ("out_of_budget",)),
            Term("state", ":", ("graded",)),
            Term("run", ":", ("my-run",)),
            Term("row", ":", ("train-1",)),
            Term("step", ">", (10,)),
            Term("grader", ":", ("numeric@2",)),
            Term("passed", ":", ("no",)),
            Term("review", ":", ("accept",)),
            Term("meta.customer", ":", ("acme",)),
        )
    )


a, b, c = Text("a"), Text("b"), Text("c")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("", EVERY_CARD),
        ("  ", EVERY_CARD),
        ("a b", And((a, b))),
        ("a AND b", And((a, b))),
        ("a b OR c", Or((And((a, b)), c))),
        ("a (b OR c)", And((a, Or((b, c))))),
        ("((a) (b c))", And((a, b, c))),
        ("-a", Not(a)),
        ("NOT a b", And((Not(a), b))),
        ("NOT(a b)", Not(And((a, b)))),
        ("--a", a),
        ("-(-a)", a),
        ("-(a OR b) c", And((Not(Or((a, b))), c))),
        ("or Orange NOTE", And((Text("or"), Text("Orange"), Text("NOTE")))),
        ('"OR" "-a"', And((Text("OR"), Text("-a")))),
        ("10-Q 12:30", And((Text("10-Q"), Text("12:30")))),
        ("marg*", Text("marg", prefix=True)),
        ('"operating   marg"*', Text("operating marg", prefix=True)),
        (r'"she said \"no\" \\ left"', Text(r'she said "no" \ left')),
        ("run:a,b*", Term("run", ":", ("a", Prefix("b")))),
        ('task:"two words","a, b",c', Term("task", ":", ("two words", "a, b", "c"))),
        ('task:"a*"', Term("task", ":", ("a*",))),
        ("grade:*", Term("grade", ":", (Prefix(""),))),
        ("-ending:*", Not(Term("ending", ":", (Prefix(""),)))),
        ("calls=0,2", Term("calls", ":", (0, 2))),
        ("advantage<-.5", Term("advantage", "<", (-0.5,))),
        ("advantage:1e-2", Term("advantage", ":", (0.01,))),
        ("meta.gen_ai.agent.name:x", Term("meta.gen_ai.agent.name", ":", ("x",))),
    ],
)
def test_a_query_means(text, meant):
    assert read(text) == meant


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("7d", dt.datetime(2026, 11, 14, 12, 30, tzinfo=dt.UTC)),
        ("2w", dt.datetime(2026, 11, 7, 12, 30, tzinfo=dt.UTC)),
        ("12h", dt.datetime(2026, 11, 21, 0, 30, tzinfo=dt.UTC)),
        ("31m", dt.datetime(2026, 11, 21, 11, 59, tzinfo=dt.UTC)),
        ("2026-11-01", dt.datetime(2026, 11, 1, tzinfo=dt.UTC)),
        ("2026-11-01T12:00+02:00", dt.datetime(2026, 11, 1, 10, tzinfo=dt.UTC)),
        ('"2026-11-01 12:00:00Z"', dt.datetime(2026, 11, 1, 12, tzinfo=dt.UTC)),
    ],
)
def test_a_moment_is_a_date_or_so_long_ago_and_utc_unless_it_says(text, moment):
    assert read(f"after:{text}") == Term("started", ">=", (moment,))
    assert read(f"recorded<{text}") == Term("recorded", "<", (moment,))


def test_the_keys_of_a_query_are_those_that_it_asks_of_anywhere_in_it():
    assert keys_of(read("words (kind:eval OR -(grade<1 meta.x:1)) after:7d")) == {"kind", "grade", "meta.x", "started"}


def test_help_names_every_key_and_every_choice():
    lines = "\n".join(key_lines())
    assert all(f"\n{name} " in f"\n{lines}" for name in [*KEYS, "after", "before", "meta.NAME"])
    assert "out_of_budget" in lines


# --- the normal form --------------------------------------------------------------------------------------------------

letters = st.characters(exclude_categories=["Cc", "Cs"]) | st.sampled_from('\n\t"\\*,:()-')
values = st.text(letters, min_size=1, max_size=8)
phrases = st.builds(lambda words: " ".join(words.split()), values).filter(lambda words: any(map(str.isalnum, words)))
moments = st.datetimes(min_value=dt.datetime(1900, 1, 1), timezones=st.just(dt.UTC))
prefixes = st.builds(Prefix, values | st.just(""))
leaves = st.one_of(
    st.builds(Text, phrases, st.booleans()),
    st.builds(
        Term,
        st.sampled_from(["run", "task", "meta.a-b.c"]),
        st.just(":"),
        st.lists(values | prefixes, min_size=1, max_size=3).map(tuple),
    ),
    st.builds(Term, st.just("calls"), st.sampled_from([":", "<", "<=", ">", ">="]), st.tuples(st.integers(-LARGEST, LARGEST))),
    st.builds(Term, st.just("grade"), st.sampled_from([":", "<", ">="]), st.tuples(st.floats(-1e9, 1e9))),
    st.builds(Term, st.just("started"), st.sampled_from(["<", "<=", ">", ">="]), st.tuples(moments)),
    st.builds(Term, st.just("ending"), st.just(":"), st.just(("answered", Prefix("")))),
)
queries = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3).map(all_of) | st.lists(inner, min_size=1, max_size=3).map(any_of) | inner.map(none_of)
    ),
    max_leaves=8,
)


@settings(max_examples=400)
@given(queries | st.just(EVERY_CARD))
def test_the_normal_form_says_the_same_query_again(query):
    assert read(str(query)) == query


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("  (a AND  b)OR NOT(c)", "a b OR -c"),
        ("-(kind=eval OR grade<.5)", "-(kind:eval OR grade<0.5)"),
        ("after:7d before:2026-11-20T12:00", "started>=2026-11-14T12:30:00Z started<2026-11-20T12:00:00Z"),
        ('"margin" "OR" task:"x","y z"* run:*', 'margin "OR" task:x,"y z"* run:*'),
    ],
)
def test_the_normal_form_is_plain(text, normal):
    assert str(read(text)) == normal


# --- what it refuses --------------------------------------------------------------------------------------------------


def test_every_fault_is_told_at_once_in_order_with_its_place_and_its_cure():
    assert faults('knd:eval kind:evl grade<high (calls:1.5 OR) tenant:acme "open') == [
        "character 1: no key 'knd' (did you mean 'kind'?; in quotes, to look for the words: \"knd:eval\")",
        "character 10: 'evl' is none of its values (did you mean 'eval'?)",
        "character 19: 'high' is no number (such as 0.5)",
        "character 31: '1.5' is no whole number (such as 0 or 1000)",
        'character 41: OR stands between two terms, and one is missing (in quotes, to look for the word: "OR")',
        "character 45: 'tenant' is no key: the cards are those of the tenant that you ask for (take it out)",
        'character 57: the quotes do not stand around one whole value (close it: ")',
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("(a", "character 1: '(' is never closed"),
        ("a) b", "character 2: ')' closes nothing"),
        ("a ()", "character 3: nothing stands between the parentheses"),
        ("OR a", "character 1: OR stands between two terms"),
        ("a OR OR b", "character 3: OR stands between"),
        ("AND a", "character 1: AND stands between"),
        ("a AND", "character 3: AND stands between"),
        ("a NOT", "character 3: NOT stands before nothing"),
        ("a - b", "character 3: - has no letter or digit"),
        ("kind: eval", "character 1: kind lacks a value"),
        ("run:a,,b", "character 1: run lacks a value"),
        ("run:a,", "character 1: run lacks a value"),
        ('task:""', "character 1: nothing stands between the quotes"),
        ('task:a"b"', "character 1: the quotes do not stand around one whole value"),
        ("task:a*b", "character 1: 'a*b': a * stands only at the end"),
        ("kind:ev*", "character 1: 'ev*': a beginning can be given of text only"),
        ("kind<eval", "character 1: kind is no number to be compared with <"),
        ("calls!=0", "character 1: calls!= is not of this language (-calls:0)"),
        ("grade<1,2", "character 1: grade is compared with 2 values"),
        ("grade<*", "character 1: grade cannot be compared with '*'"),
        ("started:2026-11-01", "character 1: started is a moment: few cards share one (started>=2026-11-01"),
        ("after:soon", "character 1: 'soon' is no moment"),
        ("after:999999w", "character 1: '999999w' is no moment"),
        ("after:0001-01-01T00:00+09:00", "character 1: '0001-01-01T00:00+09:00' is no moment"),
        ("after<7d", "character 1: after<7d compares twice"),
        ("grade<nan", "character 1: 'nan' is no number"),
        ("calls:9223372036854775808", "character 1: '9223372036854775808' is no whole number"),
        ("calls:²", "character 1: '²' is no whole number"),
        ("https://a.org", "in quotes, to look for the words: \"https://a.org\""),
        ("meta.:x", "character 1: no key 'meta.'"),
        ("a\0b", "character 2: the character U+0000 cannot be looked for"),
        ("a (-@low)", 'character 5: @low names a saved view, which is asked for by itself (write its terms out, or in quotes, to look for'),
        ("run:\ud800", "character 5: the character U+D800 cannot be looked for"),
    ],
)  # fmt: skip
def test_a_mistake_is_told(text, told):
    assert told in faults(text)[0]


# --- hostile input ----------------------------------------------------------------------------------------------------


def test_what_a_query_may_cost_is_bounded():
    assert "it has 20,000 characters" in faults("(" * 10_000 + ")" * 10_000)[0]
    assert "parentheses within each other" in faults("(" * (DEPTH + 1) + "a" + ")" * (DEPTH + 1))[0]
    assert read("(" * DEPTH + "a" + ")" * DEPTH) == a
    assert read("-" * (LENGTH - 2) + "a") == a
    assert f"it has {VALUES + 1} words and values" in faults("a " * (VALUES + 1))[0]
    assert read("a " * VALUES) == And((a,) * VALUES)
    assert f"it has {VALUES + 1} words and values" in faults("run:" + "a," * VALUES + "a")[0]


def test_a_query_whose_normal_form_would_be_refused_is_refused():
    text = "run:" + ",".join(['"' + '\\"' * 38 + '"'] * 50)  # 50 values of 38 quotes, written \" in both forms
    assert len(text) == 4 + 50 * 78 + 49 and read(text) == Term("run", ":", ('"' * 38,) * 50)
    times = " ".join(["after:1m"] * 100)  # started>=2026-11-21T12:29:00Z: 30 characters each
    assert read(times) and len(str(read(times))) == 100 * 29 + 99
    long = times + " " + "x" * (LENGTH - len(times) - 1)
    assert faults(long)[0].startswith("character 1: it has 101 words")
    long = " ".join(["after:1m"] * 99) + " " + "x" * (LENGTH - 99 * 9)
    assert len(long) == LENGTH and "written out are too long" in faults(long)[0]


def test_a_flood_of_faults_is_cut_short():
    told = faults(")" * LENGTH)
    assert len(told) == 21 and told[-1] == f"query: {LENGTH - 20} more faults"


@settings(max_examples=400)
@given(st.text(st.sampled_from('ab:*"\\()-,<=!. \n0ORkind\0') | st.characters(), max_size=60))
def test_any_text_is_read_or_refused_and_what_is_read_is_read_again_the_same(text):
    query = None
    with contextlib.suppress(FaultsFound):  # and no other error
        query = read(text)
    assert query is None or read(str(query)) == query


@pytest.mark.parametrize(
    "bad", ["a" * LENGTH, '"' + "\\" * (LENGTH - 1), 'kind:"' * (LENGTH // 6), "a." * (LENGTH // 2), '""' * (LENGTH // 2)]
)
def test_no_text_makes_it_slow(bad):
    started = time.thread_time()  # the machine may have other things to do meanwhile
    with contextlib.suppress(FaultsFound):
        read(bad)
    assert time.thread_time() - started < 1, "a pattern that backtracks would take minutes"
