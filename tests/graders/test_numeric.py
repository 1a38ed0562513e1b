"""The numeric rule, as a table of what is worth 1, 0.5 and 0, and what holds for every number and every text."""

from __future__ import annotations

import json
import math
from decimal import Decimal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent_rft.contracts.errors import FaultsFound, UserError
from agent_rft.graders.numeric import NumericGrader
from agent_rft.graders.spec import read_spec

GRADER = NumericGrader()


def reward(reference: object, output: str, grader: NumericGrader = GRADER, **expected: object) -> float | None:
    return grader.grade({"reference_answer": reference, "expected": expected}, {"output_text": output}).reward


@pytest.mark.parametrize(
    ("reference", "output", "worth"),
    [("13.4%", "13.4%", 1), ("13.4%", "0.134", 1), ("13.4%", "13.41%", 0.5), ("13.4%", "12.0%", 0), ("$842M", "$842 million dollars", 1)],
)
def test_the_cases_of_the_source_documents(reference, output, worth):
    assert reward(reference, output) == worth


@pytest.mark.parametrize(
    "output",
    [
        "$842M", "842M", "$842m", "$ 842 M", "842 million", "842 millions", "$842mn", "$842MM", "$842 mio", "US$842M", "USD 842M",
        "842M USD",
        "842 million US dollars", "$842 million USD dollars", "$0.842B", "0.842bn", ".842 billion", "842,000K", "842000 thousand",
        "0.000842T",
        "$842,000,000", "842 000 000", "842\u00a0000\u00a0000", "842\u202f000\u202f000", "842\u2009000\u2009000", "842'000'000",
        "842’000’000",
        "842000000", "842000000.00", "$842.0M", "8.42e8", "8.42E+8", "+$842M", "84,200,000,000 cents", "８４２M",
        "$842M.", "  $842M\n", "**$842M**", "*$842M*", "`$842M`", '"$842M"', "__$842M__", "**$842M.**",
        "Answer: $842M", "answer: **$842M**.", "**Final answer:** $842M", "Result: 842M", "The answer: '842M'", "\ufeff$842M\u200b",
    ],
)  # fmt: skip
def test_the_same_amount_in_any_format_is_worth_one(output):
    assert reward("$842M", output) == 1


@pytest.mark.parametrize(
    "output",
    [
        "13.4%", "13.40%", "13.4 %", "13.4 percent", "13.4 per cent", "13.4pct", "13.4 pp", "13.4 percentage points", "13.4％",
        "0.134", ".134", "1340 bps", "1,340 basis points", "**13.4**%", "1.34e-1",
    ],
)  # fmt: skip
def test_the_same_share_in_any_format_is_worth_one(output):
    assert reward("13.4%", output) == 1


@pytest.mark.parametrize(
    "output",
    [
        "(1,234)", "($1,234)", "$(1,234)", "-1,234", "−1,234", "–1234", "‑1234", "- 1,234", "-$1,234", "$-1,234", "−$1.234K",
        "minus 1234", "negative $1,234", "(1.234) thousand",
    ],
)  # fmt: skip
def test_every_way_to_write_a_loss_is_worth_one(output):
    assert reward("-$1,234", output) == 1
    assert reward("$1,234", output) == 0


@pytest.mark.parametrize(
    ("reference", "output", "why"),
    [
        ("13.4%", "13.41%", "within tolerance"),  # 0.01 / 13.4 = 0.075%
        ("$842.3M", "$842M", "within tolerance"),  # 0.3 / 842.3 = 0.036%
        ("$842M", "$842.8M", "within tolerance"),  # 0.8 / 842 = 0.095%
        ("-5.000", "-5.005", "within tolerance"),  # 0.005 / 5 = 0.1%, the border belongs to it
        ("4.27%", "4.3%", "rounding"),  # 0.03 / 4.27 = 0.70%
        ("6.25%", "6.3%", "rounding"),  # a tie, up: 0.05 / 6.25 = 0.8%
        ("6.25%", "6.2%", "rounding"),  # a tie, to even
        ("$4.976B", "$5.0B", "rounding"),  # 0.024 / 4.976 = 0.48%
        ("3.4%", "3.44%", "rounding"),  # the reference is the answer rounded: it cannot tell them apart
    ],
)
def test_a_tenth_of_a_percent_or_a_true_rounding_is_worth_half(reference, output, why):
    grade = GRADER.grade({"reference_answer": reference}, {"output_text": output})
    assert (grade.reward, grade.parts["why"]) == (0.5, why)


@pytest.mark.parametrize(
    ("reference", "output"),
    [
        ("13.4%", "13%"),  # rounded away 3.0% of it
        ("4.27%", "4.2%"),  # cut off, not rounded
        ("4.27%", "4.4%"),
        ("3.4%", "3.46%"),  # would round to 3.5%
        ("4.25%", "4.3%"),  # rounded away 1.2% of it
        ("$7M", "$7.4M"),  # the reference shows one digit: nothing to call a rounding
        ("13.40%", "13.42%"),  # 0.02 / 13.4 = 0.149%, and no fewer digits than the reference
        ("$998M", "$1B"),  # one digit is no rounding
        ("842.3", "840.0"),  # the zeros claim digits that are wrong
        ("13.4%", "13.4"), ("13.4%", "0.134%"), ("0.134", "13.4"),  # scale
        ("$842M", "842"), ("$842M", "$842"), ("$842M", "$842B"), ("$842M", "842K"),
        ("$842M", "-$842M"), ("13.4%", "(13.4%)"),  # sign
        ("$842M", "€842M"), ("13.4%", "$0.134"), ("€5", "5%"), ("£3", "300 cents"),  # another unit
        ("0.134", "$13.4%"), ("134", "13.4K%"), ("$8.42", "$842 cents"),  # units that do not go together
        ("842", "0,842"), ("1234", "12,34"),  # groups have three digits, and none begins with 0
        ("0", "0.0001"), ("0", "1"),
    ],
)  # fmt: skip
def test_another_value_scale_sign_or_unit_is_worth_nothing(reference, output):
    assert reward(reference, output) == 0


@pytest.mark.parametrize(
    "output",
    [
        "about $842M", "approximately 842M", "~$842M", "≈842M", "roughly $842M", "around 842 million", "±842M", "at least $842M",
        "$842M or so",
        "I think $842M", "$842M?", "maybe 842M", "$842M (approx.)", ">842M", "<= 842M", "circa 842M", "$842M-ish",
        "$842M or $843M", "$842M, $843M", "between $842M and $843M", "$842M-$843M", "842M – 843M", "842M/843M", "842M\n843M",
        "842M 842M", "842M; 1",
        "The revenue was $842M.", "$842M in Q3 2024", "revenue: $842M", "842M = 842M", "$842M revenue",
        "", " ", ".", "-", "$", "%", "()", "M", "million", "answer:", "eight hundred", "n/a", "None",
        "nan", "NaN", "inf", "-inf", "Infinity", "1e400", "1e-400", "8.42e999999999999999999", "0x32",
        "842M" * 200, "9" * 5000, "842,00,000M",
        "12,34", "842.0.0M", "842 M M", "842 million billion", "842M%", "842%$", "EUR $842M", "$842M cents", "842-", "--842M",
        "-(842M)", "(842M", "842M)",
        "M842", "% 842", "8**42", "842¹", "½", "٨٤٢M", "\x00", "\ud800",
    ],
)  # fmt: skip
def test_what_is_not_one_plain_number_is_worth_nothing(output):
    assert reward("$842M", output) == 0


@pytest.mark.parametrize(
    ("reference", "output"), [(0.134, "13.4%"), (842_000_000, "$842M"), (-5, "(5)"), (0.1 + 0.2, "0.3"), (8.42e8, "842M")]
)
def test_a_reference_may_be_a_json_number(reference, output):
    assert reward(reference, output) == 1


@pytest.mark.parametrize(
    "reference", [None, "", "unknown", "about 5", "5 or 6", True, [5], {"value": 5}, float("nan"), float("inf"), "1e400", 10**40]
)
def test_an_unreadable_reference_is_the_datasets_fault_and_no_score(reference):
    grade = GRADER.grade({"reference_answer": reference}, {"output_text": "5"})
    assert grade.reward is None and grade.passed is None
    assert "reference_answer" in grade.errors["invalid_variable_error"]


def test_a_sample_without_output_text_is_no_score():
    assert list(GRADER.grade({"reference_answer": "5"}, {}).errors) == ["sample_parse_error"]


def test_the_rows_tolerance_counts_only_where_it_is_asked_for():
    lenient = NumericGrader(use_row_tolerance=True)
    assert reward("13.40%", "13.60%", tolerance_rel=0.02) == 0  # 0.2 / 13.4 = 1.5%
    assert reward("13.40%", "13.60%", lenient, tolerance_rel=0.02) == 0.5
    assert reward("13.40%", "12.00%", lenient, tolerance_rel=0.02) == 0
    assert reward("13.40%", "13.41%", lenient) == 0.5  # a row without one: a tenth of a percent
    assert reward("13.40%", "13.41%", lenient, tolerance_rel=0) == 0
    assert reward("13.40%", "13.40%", lenient, tolerance_rel="wide") is None


def test_the_grade_names_who_gave_it_and_the_options_are_part_of_the_hash():
    grade = GRADER.grade({"reference_answer": "5"}, {"output_text": "5"})
    assert (grade.grader.name, grade.grader.version, grade.passed) == ("numeric", "1", True)
    assert grade.grader.hash == NumericGrader().ref.hash != NumericGrader(use_row_tolerance=True).ref.hash


# --- what holds for every number ----------------------------------------------------------------------------------------

values = st.builds(lambda digits, places: Decimal(digits).scaleb(-places), st.integers(1, 10**9 - 1), st.integers(0, 4))
MAGNITUDES = {"K": 3, " thousand": 3, "m": 6, "M": 6, " mn": 6, " million": 6, "B": 9, "bn": 9, " Billion": 9, "T": 12, " trillion": 12}
PERCENTS = ("%", " %", " percent", " per cent", "pct", "\u00a0%")
WRAPPERS = ("{}", " {}\n", "{}.", "**{}**", "*{}*", "`{}`", '"{}"', "Answer: {}", "**Answer:** {}", "Final answer: **{}**.", "\u2009{}")


def digits_of(value: Decimal, draw: st.DrawFn) -> str:
    text = f"{value:f}"
    if draw(st.booleans()):
        whole, _, rest = text.partition(".")
        separator = draw(st.sampled_from([",", "\u00a0", "\u202f", "\u2009", " ", "'", "’"]))
        text = f"{int(whole):,}".replace(",", separator) + ("." + rest if rest else "")
    if draw(st.booleans()):
        text += "0" if "." in text else ".0"
    return text


def signed(negative: bool, currency: str, rest: str, draw: st.DrawFn) -> str:
    if not negative:
        return draw(st.sampled_from(["", "+"])) + currency + rest
    minus = draw(st.sampled_from(["-", "−", "–"]))
    written = [f"({currency}{rest})", f"{minus}{currency}{rest}", f"{currency}{minus}{rest}", f"{currency} {minus} {rest}".strip()]
    return draw(st.sampled_from(written))


@st.composite
def amounts(draw: st.DrawFn) -> tuple[str, str]:
    """One amount of dollars: as a reference, and written in some other way."""
    value, negative = draw(values), draw(st.booleans())
    magnitude = draw(st.sampled_from(["", *MAGNITUDES]))
    before, after = draw(
        st.sampled_from([("", ""), ("$", ""), ("US$", ""), ("USD ", ""), ("", " dollars"), ("", " USD"), ("$", " dollars")])
    )
    number = digits_of(value.scaleb(-MAGNITUDES.get(magnitude, 0)), draw)
    written = signed(negative, before, f"{number}{magnitude}{after}", draw)
    return f"{'-' if negative else ''}${value:f}", draw(st.sampled_from(WRAPPERS)).format(written)


@st.composite
def shares(draw: st.DrawFn) -> tuple[str, str]:
    value, negative = draw(values), draw(st.booleans())
    number, unit = draw(
        st.one_of(
            st.tuples(st.just(value), st.sampled_from(PERCENTS)),
            st.tuples(st.just(value.scaleb(-2)), st.just("")),
            st.tuples(st.just(value.scaleb(2)), st.sampled_from([" bps", "bp", " basis points"])),
        )
    )
    written = signed(negative, "", digits_of(number, draw) + unit, draw)
    return f"{'-' if negative else ''}{value:f}%", draw(st.sampled_from(WRAPPERS)).format(written)


@settings(max_examples=150)
@given(amounts() | shares())
def test_any_format_of_the_same_value_is_worth_one(pair):
    reference, written = pair
    assert reward(reference, written) == 1


@settings(max_examples=100)
@given(digits=st.integers(1, 10**9), places=st.integers(0, 4), off=st.integers(-(10**9), 10**9))
@example(digits=1000, places=0, off=1)  # exactly a tenth of a percent
@example(digits=10**6, places=0, off=1001)
def test_with_as_many_decimals_as_the_reference_more_than_a_tenth_of_a_percent_is_worth_nothing(digits, places, off):
    reference, output = (f"{Decimal(n).scaleb(-places):f}" for n in (digits, digits + off))
    assert reward(reference, output) == (1 if off == 0 else 0.5 if abs(off) * 1000 <= digits else 0)


@settings(max_examples=100)
@given(digits=st.integers(1000, 10**9), places=st.integers(0, 4), off=st.integers(10_001, 10**7), up=st.booleans())
def test_with_four_digits_or_more_one_percent_off_is_worth_nothing_however_it_is_written(digits, places, off, up):
    reference = Decimal(digits).scaleb(-places)
    answer = reference * (1 + Decimal(off if up else -off) / 10**6)
    assert reward(f"{reference:f}", f"{answer:f}") == 0


@settings(max_examples=100)
@given(amounts(), values, st.sampled_from([" ", "\n", " or ", ", ", "; ", " - ", "–", " to ", "/", " = "]), st.booleans())
def test_a_second_number_makes_any_answer_worth_nothing(pair, second, between, first):
    reference, written = pair
    assert reward(reference, f"{written}{between}{second:f}" if first else f"{second:f}{between}{written}") == 0


anything = st.text(max_size=60) | st.text(alphabet="0123456789.,-+−()$€%kKmMbe *_'\"\u00a0", max_size=40)
any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | anything, lambda inner: st.lists(inner, max_size=2), max_leaves=3
)


@settings(max_examples=200)
@given(any_json, anything)
def test_grading_never_raises_says_the_same_twice_and_can_be_sent(reference, output):
    item, sample = {"reference_answer": reference}, {"output_text": output}
    grade = GRADER.grade(item, sample)
    assert grade.reward in (0, 0.5, 1, None)
    assert (grade.reward is None) == bool(grade.errors)
    assert grade == GRADER.grade(item, sample)
    json.dumps([grade.parts, grade.errors], allow_nan=False)


@pytest.mark.parametrize(("tolerance", "worth"), [(0.001, 0), (0.0095, 0), (0.01, 0.5), (1, 0.5)])
def test_the_tolerance_is_an_option(tolerance, worth):
    """8.42 off of 842: one percent to the digit."""
    assert reward("$842M", "$850.42M", NumericGrader(tolerance=tolerance)) == worth


def test_a_rows_own_tolerance_stands_before_the_graders():
    grader = NumericGrader(use_row_tolerance=True, tolerance=0.02)
    assert reward("$842M", "$850.42M", grader) == 0.5
    assert reward("$842M", "$850.42M", grader, tolerance_rel=0.001) == 0


def test_another_tolerance_is_another_grader_and_the_default_is_not():
    assert NumericGrader(tolerance=0.02).ref.hash != NumericGrader().ref.hash == NumericGrader(tolerance=0.001).ref.hash


@pytest.mark.parametrize("tolerance", [-0.1, 1.5, math.nan, "0.1", True, None])
def test_a_tolerance_is_a_share(tolerance):
    with pytest.raises(UserError, match="cannot use the tolerance"):
        NumericGrader(tolerance=tolerance)


def test_in_json_too():
    assert read_spec({"type": "numeric", "tolerance": 0.02}).tolerance == 0.02
    with pytest.raises(FaultsFound, match=r"grader.tolerance: 1.5 is not from 0 to 1"):
        read_spec({"type": "numeric", "tolerance": 1.5})
