"""Two samples of prompts are told apart where they differ, named by the side, and not where chance or a trifle parts them."""

from __future__ import annotations

import math
import random
import runpy
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_rft.contracts.messages import Message
from agent_rft.contracts.rows import Row
from agent_rft.datasets.rows_io import read_rows
from agent_rft.datasets.split import split_rows
from agent_rft.evaluation.distribution import ALPHA, DEALS, Sample, compare_samples, describe, drawn, sample_of_cards, sample_of_rows
from agent_rft.release.drift import kolmogorov_smirnov

DATA = Path(__file__).resolve().parents[2] / "data" / "research"


@pytest.fixture(scope="module")
def rows():
    return [*read_rows(DATA / "train.jsonl"), *read_rows(DATA / "val.jsonl")]


def compared(a, b, **more):
    return compare_samples(sample_of_rows("train", a), sample_of_rows("val", b), **more)


@pytest.fixture(scope="module")
def make_card():
    return runpy.run_path(str(Path(__file__).resolve().parents[1] / "observability" / "sample_cards.py"))["make_card"]


def part(check, what):
    return next(one for one in check.parts if one.what == what)


def asking(count, words="what was the revenue", slices=("easy",), **more):
    """Prompts that differ in a number only."""
    rows = [
        Row(f"r{i}", f"{words} {i % 10}?", "1", metadata={"task_type": "qa", "difficulty": slices[i % len(slices)]}) for i in range(count)
    ]
    return msgspec.structs.replace(sample_of_rows(more.get("name", "val"), rows), embeddings=more.get("embeddings", ()))


# --- silent where nothing is wrong --------------------------------------------------------------------------------------------


def test_the_shipped_split_is_alike():
    check = compared(read_rows(DATA / "train.jsonl"), read_rows(DATA / "val.jsonl"))
    assert check.verdict == "alike" and [one.what for one in check.parts] == ["slices", "length", "vocabulary"]
    assert part(check, "slices").figure == pytest.approx(0, abs=1e-6), "it is stratified"
    assert describe(check).startswith("train (400) and val (100): alike\n  slices alike: total variation 0.00")


def test_fair_stratified_splits_of_three_hundred_rows_raise_no_alarm(rows):
    """At most ALPHA of them would. Of 500 drawn so, none did."""
    alarms = 0
    for seed in range(15):
        alarms += compared(*split_rows(random.Random(seed).sample(rows, 300), 0.25, seed), seed=seed).verdict == "differ"
    assert alarms == 0


def test_a_difference_that_is_sure_and_small_is_none():
    """5% more of one slice over a thousand prompts each: chance makes that in one of two hundred splits, and nobody minds."""
    a, b = asking(1000, slices=["easy"] * 11 + ["hard"] * 9), asking(1000, slices=["easy"] * 12 + ["hard"] * 8)
    check = compare_samples(a, b)
    assert part(check, "slices").figure == pytest.approx(0.05, abs=1e-6) and check.verdict == "alike"


@given(st.integers(0, 10_000), st.integers(20, 60), st.integers(20, 60))
@settings(max_examples=15)
def test_a_sample_is_like_itself_in_any_order_and_the_gap_is_the_same_both_ways(seed, n_a, n_b):
    luck = random.Random(seed)
    a, b = ([Row(f"r{i}", "word " * luck.randint(1, 9) + f"w{luck.choice('abc')}", "1") for i in range(count)] for count in (n_a, n_b))
    assert all(one.figure == pytest.approx(0, abs=1e-5) for one in compared(a, luck.sample(a, n_a)).parts)
    there, back = compared(a, b), compared(b, a)
    assert [one.figure for one in there.parts] == pytest.approx([one.figure for one in back.parts], abs=1e-5)
    shuffled = compared(luck.sample(a, n_a), luck.sample(b, n_b))
    assert [one.figure for one in shuffled.parts] == pytest.approx([one.figure for one in there.parts], abs=1e-5)


# --- each side is found by its name -------------------------------------------------------------------------------------------


def test_a_slice_that_is_missing_from_validation_is_named(rows):
    train, val = split_rows(rows, 0.2, 3)
    check = compared(train, [row for row in val if row.difficulty != "hard"])
    assert check.verdict == "differ" and "numerical_qa, hard 22% and 0%" in part(check, "slices").words


def test_longer_prompts_are_found_though_their_words_are_the_same():
    a, b = asking(200), asking(60, words="what was the revenue " * 3)
    check = compare_samples(a, b)
    assert [one.what for one in check.differing] == ["length"]
    assert part(check, "length").figure == pytest.approx(1.0, abs=1e-5) and "half of val at most 66" in part(check, "length").words


def test_other_words_are_found_and_told():
    check = compare_samples(asking(200, name="train"), asking(60, words="wer hat die rechnung"))
    assert [one.what for one in check.differing] == ["vocabulary"]
    assert "100% of the words of val stand nowhere in train; val says more often" in part(check, "vocabulary").words
    assert "rechnung" in part(check, "vocabulary").words and "revenue" in part(check, "vocabulary").words


def test_meanings_that_moved_are_found_where_there_is_an_embedder_alone():
    luck = np.random.default_rng(1)
    near, far = luck.normal(0, 1, (200, 8)), luck.normal(0, 1, (60, 8)) + 1.5
    a, b = (asking(len(one), embeddings=tuple(map(tuple, one.tolist()))) for one in (near, far))
    assert [one.what for one in compare_samples(a, b).differing] == ["embedding"]
    same = asking(60, embeddings=tuple(map(tuple, luck.normal(0, 1, (60, 8)).tolist())))
    assert compare_samples(a, same).verdict == "alike"
    assert [one.what for one in compare_samples(a, asking(60)).parts] == ["slices", "length", "vocabulary"]


# --- the figures, by other ways of reckoning ------------------------------------------------------------------------------------


def test_the_gap_and_the_chance_of_two_slices_are_the_exact_ones():
    """30 prompts with 15 of a slice beside 30 with 6: 50% and 20%, so a gap of 0.3. Dealt anew, the 21 of 60 fall on both sides by
    the hypergeometric law, and a gap as wide is one with at most 6 or at least 15 of them on one side."""
    a, b = asking(30, slices=["easy", "hard"]), asking(30, slices=["easy", "hard", "hard", "hard", "hard"])
    found = part(compare_samples(a, b), "slices")
    assert found.figure == pytest.approx(0.3, abs=1e-6)
    exact = sum(math.comb(21, k) * math.comb(39, 30 - k) for k in range(22) if abs(2 * k - 21) >= 9) / math.comb(60, 30)
    assert found.p == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / DEALS))


def test_the_gap_of_lengths_is_the_distance_of_kolmogorov_and_smirnov():
    luck = random.Random(5)
    lengths = [[luck.randint(10, 80) for _ in range(60)], [luck.randint(20, 99) for _ in range(40)]]
    a, b = (Sample(name="s", prompts=tuple("x" * n for n in one)) for one in lengths)
    found, other = part(compare_samples(a, b), "length"), kolmogorov_smirnov(*lengths)
    assert found.figure == pytest.approx(other.statistic, abs=0.02)  # its edges are the hundredths of the pooled lengths
    assert found.p < ALPHA and other.p < ALPHA


def test_the_gap_of_words_by_hand():
    """Half of a's words are x and half y; of b's a quarter is x, a quarter y and half z: a half would have to change."""
    a, b = Sample(name="a", prompts=("xx yy",) * 20), Sample(name="b", prompts=("xx yy zz zz",) * 20)
    assert part(compare_samples(a, b), "vocabulary").figure == pytest.approx(0.5, abs=1e-6)


# --- samples ----------------------------------------------------------------------------------------------------------------


def test_too_few_say_nothing():
    check = compare_samples(asking(400), asking(19))
    assert check.verdict == "too few" and check.parts == () and "too few to compare, 20 of each" in describe(check)


def test_the_newest_question_of_a_conversation_is_what_counts():
    talk = (Message("system", "be brief"), Message("user", "first"), Message("assistant", "yes"), Message("user", "second"))
    assert sample_of_rows("x", [Row("1", "p", "a", messages=talk)]).prompts == ("second",)


def test_of_a_session_the_first_run_counts_and_nobody_sorted_it(make_card):
    cards = [make_card(f"c{i}", metadata={"session": f"s{i // 3}"}) for i in range(6)]
    sample = sample_of_cards("production of x", cards)
    assert len(sample.prompts) == 2 and sample.slices == ()


def test_what_is_embedded_is_what_is_looked_at_and_all_are_counted():
    """An embedder takes its time: a hundred thousand prompts would be days before a training."""
    sample = drawn(asking(100_000))
    assert len(sample.prompts) == len(sample.slices) == 1000 == len({*sample.prompts}) * 100 and drawn(sample) is sample
    assert compare_samples(sample, asking(100)).n_a == 100_000


def test_of_many_prompts_a_thousand_are_looked_at_and_all_are_counted():
    check = compare_samples(asking(2500), asking(100))
    assert check.n_a == 2500 and check.verdict == "alike"


def test_a_file_in_which_two_kinds_take_turns_is_like_itself():
    """Of 2,000 prompts each second one would be short."""
    a, b = (Sample(name="s", prompts=("short", "a prompt that is long") * (count // 2)) for count in (2000, 900))
    assert compare_samples(a, b).verdict == "alike"


def test_copies_that_a_curriculum_made_to_weigh_a_row_count_as_no_rows(rows):
    copies = [
        msgspec.structs.replace(rows[0], id=f"{rows[0].id}~{n}", metadata=rows[0].metadata | {"copy_of": rows[0].id}) for n in range(90)
    ]
    assert sample_of_rows("train", [*rows, *copies]) == sample_of_rows("train", rows)
