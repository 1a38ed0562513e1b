"""Each guard over a run's lines, provoked by a planted course, and silent on those of healthy runs."""

import math
import random
from collections.abc import Sequence
from functools import cache
from itertools import combinations

import pytest
from graded_tries import attempt, call
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_rft.contracts.training import StepMetrics
from agent_rft.guards.figures import step_figures
from agent_rft.guards.health import HEALTH, Course, Sample, chance_of_higher
from agent_rft.guards.limits import GUARDS, Suspicion

LEFT = 40
OWN = ("kl_to_ref", "entropy", "train_reward", "flat_groups")


def lines_of(**courses: list[float]) -> list[StepMetrics]:
    steps = len(next(iter(courses.values())))
    lines = [StepMetrics(step=step) for step in range(steps)]
    for name, values in courses.items():
        for line, value in zip(lines, values, strict=True):
            if name in OWN:
                setattr(line, name, value)
            else:
                line.figures[name] = value
    return lines


def said(guard: str, lines: list[StepMetrics], left: int = LEFT, kl: float = 0.5) -> Suspicion | None:
    """At the guard's own limit."""
    return HEALTH[guard](Course(lines, left, kl), GUARDS[guard].limit.at)


def falls(start: float, end: float) -> list[float]:
    return [start] * 5 + [end] * 5


# --- what is planted is found -----------------------------------------------------------------------------------------------


def test_kl_speaks_above_its_limit_and_not_at_it():
    assert said("kl", lines_of(kl_to_ref=[0.5])) is None
    found = said("kl", lines_of(kl_to_ref=[0.512]))
    assert found.figure == 0.512
    assert found.what == "the policy has drifted to a KL of 0.512 from the reference, 0.5 is allowed"
    assert "guards.max_kl" in found.cure


def test_kl_beside_a_quantised_references_own():
    assert said("kl", lines_of(kl_to_ref=[1.19]), kl=1.2) is None
    assert "0.5 is allowed beside the 0.7 of the quantised reference itself" in said("kl", lines_of(kl_to_ref=[1.21]), kl=1.2).what


def test_a_steady_rise_of_kl_is_foretold():
    """0.02 a step without any noise: 0.18 at step 9, and 0.18 + 20 x 0.02 = 0.58 within twenty steps, 1.16 times what is allowed."""
    found = said("kl_slope", lines_of(kl_to_ref=[0.02 * step for step in range(10)]))
    assert found.figure == pytest.approx(1.16)
    assert "from 0.18 it comes to 0.58 within 20 steps" in found.what


def test_a_rise_that_the_run_ends_before_is_none():
    """Ten steps more lead to 0.38."""
    assert said("kl_slope", lines_of(kl_to_ref=[0.02 * step for step in range(10)]), left=10) is None


def test_a_rise_within_its_noise_foretells_nothing():
    """The same slope under swings of 0.3: no line through them is sure of its own direction."""
    noisy = [0.3 + 0.02 * step + (0.15 if step % 2 else -0.15) for step in range(9)]
    assert said("kl_slope", lines_of(kl_to_ref=[*noisy, 0.4])) is None


def test_a_slope_counts_less_its_own_error():
    """0.018 a step under swings of 0.02 either way: drawn out it passes 0.55; less three standard errors of 0.0024 it stays below 0.38."""
    swings = [0.018 * step + (0.02 if step % 2 else -0.02) for step in range(10)]
    assert said("kl_slope", lines_of(kl_to_ref=swings)) is None
    assert said("kl_slope", lines_of(kl_to_ref=swings), kl=0.37) is not None


def doubling(first: float, times: float = 1.2) -> list[StepMetrics]:
    return lines_of(kl_to_ref=[first * times**step for step in range(10)])


def test_a_rise_that_doubles_is_foretold_while_a_line_through_it_is_far_below():
    """1.2 times a step: 0.02 x 1.2^9 = 0.1032 at step 9, and 1.2^10 = 6.19 times that ten steps later, 0.639. It doubles in
    ln 2 / ln 1.2 = 3.8 steps. A line through the ten comes to 0.22 within twenty."""
    found = said("kl_slope", doubling(0.02))
    assert found.figure == pytest.approx(0.02 * 1.2**19 / 0.5)
    assert found.what == "KL to the reference doubles every 3.8 steps: from 0.103 it comes to 0.639 within 10 steps, 0.5 is allowed"
    assert said("kl_slope", doubling(0.02), left=5) is None, "0.1032 x 1.2^5 = 0.26, and the run is over"


def test_the_first_steps_away_from_nothing_double_in_every_run():
    """0.008 x 1.5^9 = 0.31 is on its way out; 0.001 x 1.5^9 = 0.038, as steep, is less than a tenth of what is allowed."""
    assert said("kl_slope", doubling(0.008, 1.5)) is not None
    assert said("kl_slope", doubling(0.001, 1.5)) is None


def test_a_steady_rise_is_not_taken_for_a_doubling():
    """From 0.01 to 0.1 in ten steps of 0.01: twenty more lead to 0.3. Ten times as much again in ten steps would be 1."""
    assert said("kl_slope", lines_of(kl_to_ref=[0.01 * (step + 1) for step in range(10)])) is None


@pytest.mark.parametrize(
    ("guard", "figure", "start", "spoken", "silent"),
    [
        ("entropy_collapse", "entropy", 0.4, 0.08, 0.12),  # 5 times lower; 3.3 times
        ("token_inflation", "tokens_a_try", 100.0, 310.0, 290.0),
        ("token_collapse", "tokens_a_try", 100.0, 9.0, 11.0),
        ("call_inflation", "calls_a_try", 3.0, 6.3, 5.7),
        ("call_collapse", "calls_a_try", 6.0, 0.6, 0.8),
        ("early_stop", "early_stop", 0.1, 0.65, 0.55),
        ("tool_spam", "repeated_calls", 0.4, 0.7, 0.6),
        ("unanswered", "unanswered", 0.05, 0.35, 0.25),
    ],
)
def test_a_collapse_or_inflation_speaks_beyond_its_limit_and_not_before(guard, figure, start, spoken, silent):
    assert said(guard, lines_of(**{figure: falls(start, spoken)})) is not None
    assert said(guard, lines_of(**{figure: falls(start, silent)})) is None


@pytest.mark.parametrize("guard", ["token_collapse", "call_collapse"])
def test_nothing_at_all_has_a_figure_that_a_file_can_keep(guard):
    """Falls to nothing: a thousand times lower, and not infinitely."""
    found = said(guard, lines_of(tokens_a_try=falls(100.0, 0.0), calls_a_try=falls(5.0, 0.0)))
    assert math.isclose(found.figure, 1000)


def test_a_few_calls_where_there_were_hardly_any_are_no_inflation():
    assert said("call_inflation", lines_of(calls_a_try=falls(0.1, 0.9))) is None
    assert said("call_inflation", lines_of(calls_a_try=falls(0.6, 1.3))) is None, "twice as many, and not one more"
    assert said("call_inflation", lines_of(calls_a_try=falls(0.1, 2.1))) is not None


def test_a_base_that_calls_nothing_may_learn_to_but_not_to_spend_all_that_it_may():
    """Of 12: 0.1 and four fifths of the other 11.9 are 9.62."""
    of_twelve = {"calls_allowed": [12.0] * 10}
    assert said("call_inflation", lines_of(calls_a_try=falls(0.1, 9.5), **of_twelve)) is None
    found = said("call_inflation", lines_of(calls_a_try=falls(0.1, 9.8), **of_twelve))
    assert found is not None and found.what == "a try makes 9.8 calls of the 12 that it may, 0.1 at first"
    assert said("call_inflation", lines_of(calls_a_try=falls(0.6, 2.1), **of_twelve)) is not None, "more than three times as many"


def test_a_base_that_could_not_call_twice_as_often_is_told_of_when_it_has_used_up_most_of_what_was_left():
    """Of 12 calls it made 6.5 at first, and 5.5 were left: four fifths of them are 4.4 more, 10.9 in all, 1.68 times as many."""

    def calls(now: float) -> list[StepMetrics]:
        return lines_of(calls_a_try=falls(6.5, now), calls_allowed=[12.0] * 10)

    found = said("call_inflation", calls(11.2))
    assert (found.figure, found.limit) == (pytest.approx(11.2 / 6.5), pytest.approx(10.9 / 6.5))
    assert found.what == "a try makes 11.2 calls of the 12 that it may, 6.5 at first"
    assert said("call_inflation", calls(10.8)) is None
    few = said("call_inflation", lines_of(calls_a_try=falls(3.0, 6.3), calls_allowed=[12.0] * 10))
    assert (few.figure, few.limit) == (pytest.approx(2.1), 2.0), "twice as many come first"
    assert "of the 12" not in few.what


@pytest.mark.parametrize(
    ("guard", "figure", "first", "now"),
    [
        ("token_inflation", "tokens_a_try", 100.0, 310.0),
        ("token_collapse", "tokens_a_try", 100.0, 9.0),
        ("call_inflation", "calls_a_try", 3.0, 6.3),
        ("call_collapse", "calls_a_try", 6.0, 0.6),
        ("early_stop", "early_stop", 0.1, 0.65),
        ("tool_spam", "repeated_calls", 0.4, 0.7),
        ("unanswered", "unanswered", 0.05, 0.35),
    ],
)
def test_what_a_policy_learns_within_five_steps_the_validations_show(guard: str, figure: str, first: float, now: float):
    """Its first five steps hold the change already, and nothing changes after them."""
    lines = lines_of(**{figure: [first, *[now] * 9]})
    assert said(guard, lines) is None
    lines[0].figures[f"val_{figure}"], lines[8].figures[f"val_{figure}"] = first, now
    assert said(guard, lines) is None, "said at step 8"
    assert said(guard, lines[:9]).what.startswith("in the validation, ")


def of_values(name: str, *steps: Sequence[float], prefix: str = "") -> list[StepMetrics]:
    """Lines of steps in which rows or groups had these values, and which earned half."""
    return [
        StepMetrics(
            step=step,
            train_reward=0.5,
            figures={
                f"{prefix}{name}_cases": float(len(values)),
                f"{prefix}{name}_sum": sum(values),
                f"{prefix}{name}_squares": sum(value * value for value in values),
            },
        )
        for step, values in enumerate(steps)
    ]


def test_groups_that_became_alike_are_a_collapse_only_where_the_task_is_not_learnt():
    lines = of_values("reward_spread", *[(0.5, 0.3, 0.5, 0.3)] * 5, *[(0.1, 0.0, 0.1, 0.0)] * 5)
    found = said("reward_spread_collapse", lines)
    assert found is not None and found.figure == pytest.approx(8)
    assert "spread by 0.05, at first by 0.4, and training earns only 0.50" in found.what
    for line in lines[5:]:
        line.train_reward = 0.95
    assert said("reward_spread_collapse", lines) is None
    assert said("reward_spread_collapse", of_values("reward_spread", *[(0.4,) * 4] * 5, *[(0.11,) * 4] * 5)) is None, "3.6 times"


def test_flat_groups_among_extreme_rows_are_no_collapse_by_themselves():
    """Of ten groups three had any spread at first, and of ten none now: dealt out at random that is so once in nine. Of all ten it is so
    once in 184,756."""
    some, flat = (0.5, 0.0), (0.0, 0.0)
    assert said("reward_spread_collapse", of_values("reward_spread", some, some, some, flat, flat, *[flat] * 5)) is None
    assert said("reward_spread_collapse", of_values("reward_spread", *[(0.5, 0.4)] * 5, *[flat] * 5)) is not None


def test_of_one_prompt_a_step_ten_steps_are_a_window():
    assert said("reward_spread_collapse", of_values("reward_spread", *[(0.5,)] * 5, *[(0.0,)] * 5)) is None
    assert said("reward_spread_collapse", of_values("reward_spread", *[(0.5,)] * 10, *[(0.0,)] * 9)) is None
    assert said("reward_spread_collapse", of_values("reward_spread", *[(0.5,)] * 10, *[(0.0,)] * 10)) is not None


def test_lines_from_before_groups_were_counted_are_passed_over():
    old = [StepMetrics(step=step, train_reward=0.5, figures={"reward_spread": 0.4, "calls_a_try": 4.0}) for step in range(8)]
    alike = of_values("reward_spread", *[(0.0,) * 4] * 5)
    assert [said(guard, old + alike) for guard in ("reward_spread_collapse", "bad_calls")] == [None, None]
    since = of_values("reward_spread", *[(0.4,) * 4] * 5)
    assert said("reward_spread_collapse", old + since + alike) is not None, "against where it goes on"


def dealt(low: Sequence[float], high: Sequence[float]) -> float:
    """Of all ways to deal the values out, the share in which the second gets as much or more."""
    values, total = [*low, *high], sum(high) - 1e-9
    ways = list(combinations(values, len(high)))
    return sum(sum(way) >= total for way in ways) / len(ways)


@pytest.mark.parametrize("seed", range(5))
def test_chance_is_about_that_of_a_permutation_test(seed: int):
    draw = random.Random(seed)
    low, high = ([draw.choice((0.0, 0.25, 0.5, 1.0)) + lift for _ in range(8)] for lift in (0.0, 0.1 * seed))
    of_low, of_high = (Sample(len(one), sum(one), sum(x * x for x in one)) for one in (low, high))
    exact = dealt(low, high)
    assert chance_of_higher(of_high, of_low) == pytest.approx(exact, rel=0.3, abs=0.06)
    assert chance_of_higher(of_high, of_high) == pytest.approx(0.5)
    assert chance_of_higher(of_low, of_high) > 0.5 or exact > 0.4, "one-sided"


def test_ten_and_ten_that_lie_all_apart_are_beyond_chance_and_alike_ones_are_not():
    """Exactly one deal in 184,756 (5.4e-6); the curve says z = 1 / sqrt(0.2632 x 0.2) = 4.36, 6.5e-6."""
    none, all_of_them = Sample(10, 0, 0), Sample(10, 10, 10)
    assert chance_of_higher(all_of_them, none) == pytest.approx(6.5e-6, rel=0.02)
    assert chance_of_higher(none, none) == 1.0
    assert chance_of_higher(Sample(10, 4, 1.6), Sample(10, 4, 1.6)) == 1.0


def test_calls_that_tools_refuse_are_told_of_where_they_become_many():
    """By rows: 5% of the calls at first, 65% now."""
    before = [(0.0, 0.1, 0.0, 0.1)] * 5
    found = said("bad_calls", of_values("bad_calls", *before, *[(0.6, 0.7, 0.6, 0.7)] * 5))
    assert found is not None and found.figure == pytest.approx(0.6)
    assert found.what == "tools refuse 65% of a try's calls for their arguments or name, 5% at first"
    assert said("bad_calls", of_values("bad_calls", *before, *[(0.2, 0.3, 0.2, 0.3)] * 5)) is None, "20% more are borne"


def test_a_base_that_is_bad_at_arguments_and_gets_better_is_let_alone():
    better = [(max(0.0, 0.6 - 0.05 * step),) * 4 for step in range(20)]
    lines = of_values("bad_calls", *better)
    assert [step for step in range(20) if said("bad_calls", lines[: step + 1])] == []


def test_rows_of_which_every_call_is_refused_are_single_cases():
    """Three more of ten such rows than at first may come by; nine of ten do not."""
    none, one, two = (0.0, 0.0), (1.0, 0.0), (1.0, 1.0)
    assert said("bad_calls", of_values("bad_calls", *[none] * 5, one, one, one, none, none)) is None
    assert said("bad_calls", of_values("bad_calls", *[none] * 5, two, two, two, two, one)) is not None


def test_bad_calls_of_a_validation_are_held_against_the_first_one():
    good, bad = (0.0,) * 12, (0.8,) * 12
    lines = of_values("bad_calls", good, bad, prefix="val_")
    assert said("bad_calls", lines).what.startswith("in the validation, tools refuse 80%")
    assert said("bad_calls", lines[1:]) is None
    assert said("bad_calls", of_values("bad_calls", good[:9], bad[:9], prefix="val_")) is None, "nine rows tell too little"


def test_flat_groups_are_told_of_unless_all_is_learnt():
    assert said("flat_groups", lines_of(flat_groups=[0.9] * 5, train_reward=[0.1] * 5)).figure == pytest.approx(0.9)
    assert said("flat_groups", lines_of(flat_groups=[0.9] * 5, train_reward=[0.95] * 5)) is None
    assert said("flat_groups", lines_of(flat_groups=[0.9] * 4, train_reward=[0.1] * 4)) is None, "too few steps"
    assert said("flat_groups", lines_of(flat_groups=[0.8] * 5, train_reward=[0.1] * 5)) is None


def unsafe_lines(steps: Sequence[Sequence[int]], tries: int = 8, prefix: str = "") -> list[StepMetrics]:
    """Steps in which each row had so many tries, and of them so many that are unsafe."""
    return [
        StepMetrics(step=step, figures={prefix + name: value for name, value in of_rows(tries, *bad).items()})
        for step, bad in enumerate(steps)
    ]


@cache
def of_rows(tries: int, *unsafe: int) -> dict[str, float]:
    """As step_figures tells them."""
    row_by_row = [
        attempt(f"{row}-{number}", (call(0),), row=f"row-{row}", denied=("c0",) if number < bad else ())
        for row, bad in enumerate(unsafe)
        for number in range(tries)
    ]
    figures = step_figures(row_by_row)
    return {name: figures[name] for name in ("unsafe", "tries", "rows", "unsafe_rows", "unsafe_squares")}


def test_unsafe_tries_are_held_against_the_first_steps_beyond_chance():
    """64 tries a step; the base does so in 1 of 64 (1.6%), 3.6% are borne. 16 of 64 at that rate: less than one in a million."""
    first = [(1, *[0] * 63)] * 5
    found = said("unsafe", unsafe_lines([*first, [1] * 16 + [0] * 48], 1))
    assert found.figure == pytest.approx(15 / 64)
    assert "25.0% of the 64 tries of the last 1 steps" in found.what
    assert said("unsafe", unsafe_lines([*first, [1] * 8 + [0] * 56], 1)) is None, "one in five hundred: chance, over a run"
    assert said("unsafe", unsafe_lines([[1] * 16 + [0] * 48] * 5, 1)) is None, "the base was so"


def test_an_unsafe_validation_is_held_against_the_first_one():
    bad = [1] * 20 + [0] * 80
    assert said("unsafe", unsafe_lines([[0] * 100, bad], 1, "val_")).figure == pytest.approx(0.2)
    assert said("unsafe", unsafe_lines([bad], 1, "val_")) is None


def test_a_steps_rows_are_told_by_their_shares():
    assert of_rows(8, 8, 4, 0, 0) == {"unsafe": 12 / 32, "tries": 32.0, "rows": 4.0, "unsafe_rows": 1.5, "unsafe_squares": 1.25}


def test_rows_that_always_were_unsafe_and_come_by_again_are_no_news():
    """Where a row in ten is so, four rows a step, the first five steps may well hold none of them, and later ones two."""
    clean = [(0, 0, 0, 0)] * 5
    assert said("unsafe", unsafe_lines(clean + [(8, 0, 0, 0), (8, 8, 0, 0)] * 2)) is None
    assert said("unsafe", unsafe_lines([*clean, (8, 8, 8, 8)])) is not None, "but four rows of four are"


def test_two_rows_of_a_step_do_not_tell_how_far_rows_differ():
    """Both are unsafe in nearly all of their tries, so by themselves they differ hardly. Beside the others of the window they do."""
    clean = [(0, 0)] * 5
    assert said("unsafe", unsafe_lines([*clean, (8, 7)])) is None
    assert said("unsafe", unsafe_lines([*clean, (0, 0), (8, 7), (0, 0)])) is None
    assert said("unsafe", unsafe_lines(clean + [(8, 7)] * 2)) is not None, "four rows of four again"


@pytest.mark.parametrize("prefix", ["", "val_"])
def test_a_run_that_began_before_rows_were_counted_is_held_to_how_it_began(prefix: str):
    """From the fifth step on that counts them (the first such validation) as if they had been counted from the start. Where all was
    unsafe at first, nothing can be more so."""

    def began(share: float) -> list[StepMetrics]:
        return [StepMetrics(step=step, figures={f"{prefix}unsafe": share, f"{prefix}tries": 32.0}) for step in range(8)]

    window, bad, mixed = 1 if prefix else 5, unsafe_lines([(8,) * 4] * 12, 8, prefix), unsafe_lines([(8, 0, 0, 8)] * 12, 8, prefix)
    spoke = [step for step in range(1, 13) if said("unsafe", [*began(0.0), *bad[:step]])]
    assert spoke == list(range(window, 13))
    assert [step for step in range(1, 13) if said("unsafe", [*began(1.0), *mixed[:step]])] == []


def test_of_steps_of_one_row_only_four_unsafe_ones_in_a_row_speak():
    clean = [(0,)] * 5
    assert said("unsafe", unsafe_lines([*clean, (0,), (0,), (8,), (0,), (8,)])) is None
    assert said("unsafe", unsafe_lines(clean + [(8,)] * 3)) is None
    assert said("unsafe", unsafe_lines(clean + [(8,)] * 4)).figure == 1.0


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_a_base_that_was_unsafe_now_and_then_is_hardly_ever_accused(rows: int):
    """A run of 300 steps of one row, two or four, eight tries each, and a row in ten that is unsafe in nine of ten tries; 20 such runs.
    Held against the first steps' share as if that were known for sure, and try by try, 18 of those with four rows were stopped."""
    draw = random.Random(1)
    stopped = 0
    for _ in range(20):
        per_row = [0.9 if draw.random() < 0.1 else 0.002 for _ in range(400)]
        steps = [tuple(sorted(sum(draw.random() < row for _ in range(8)) for row in draw.sample(per_row, rows))) for _ in range(300)]
        lines = unsafe_lines(steps)
        stopped += any(said("unsafe", lines[: step + 1]) for step in range(300))
    assert stopped <= 1


def test_a_long_run_is_looked_at_as_fast_as_a_short_one():
    """A step reads the windows at both ends of the run and nothing between them."""

    class Counted(list[StepMetrics]):
        read = 0

        def __iter__(self):
            for line in super().__iter__():
                self.read += 1
                yield line

        def __reversed__(self):
            for line in super().__reversed__():
                self.read += 1
                yield line

    lines = Counted(lines_of(calls_a_try=[4.0] * 2000, entropy=[0.4] * 2000, kl_to_ref=[0.01] * 2000, unsafe=[0.0] * 2000))
    for guard in HEALTH:
        assert said(guard, lines) is None
    assert lines.read < 500


# --- what is healthy is not spoken of ---------------------------------------------------------------------------------------

CALLS = (
    "7.3 6.5 6.2 7.0 6.8 6.3 6.4 7.3 7.6 6.4 6.1 6.3 6.6 5.8 5.5 5.8 5.2 5.3 5.5 5.0 4.9 4.6 4.1 4.6 4.4 4.0 4.2 4.3 3.4 3.8 "
    "3.1 3.7 3.3 2.3 3.2 2.8 2.8 2.4 4.1 3.7 2.7 2.1 3.0 2.6 3.3 3.2 2.6 2.9 3.0 3.0 2.2 2.8 2.4 2.4 2.6 3.1 1.8 2.8 2.5 2.6"
)
KL = (
    "0 0 0 0 .0001 .0003 .0003 .0006 .0005 .0016 .0017 .0019 .0028 .0052 .0061 .0059 .0084 .0102 .0117 .0138 .0137 .0177 .0279 .0277 "
    ".0273 .0363 .0325 .0372 .058 .0485 .0747 .0613 .0779 .0861 .0736 .0899 .0862 .1158 .0621 .064 .1134 .1444 .0933 .1061 .1173 .0908 "
    ".1263 .1086 .113 .1005 .1486 .1235 .1267 .1185 .1201 .0874 .152 .0997 .1431 .1306"
)

HEALTHY_KL = (
    "0 0 0 .0001 .0002 .0004 .0006 .0011 .0023 .002 .0043 .0057 .0053 .0073 .01 .0115 .013 .0145 .0217 .0209 .0265 .0357 .0356 .032 "
    ".0378 .0382 .0487 .0472 .0493 .0635 .0674 .0583 .0736 .0807 .0748 .0973 .1266 .1012 .1027 .0889 .1641 .1033 .1143 .1089 .0927 "
    ".1274 .1188 .1144 .102 .1005 .128 .1217 .1408 .1486 .0962 .1285 .1275 .106 .1163 .1067",
    "0 0 0 .0001 .0003 .0006 .0008 .0017 .0017 .0034 .0043 .0082 .0062 .0092 .0101 .0157 .0192 .0226 .0236 .0318 .0325 .035 .0493 "
    ".0533 .0483 .0754 .0485 .0643 .074 .0917",
)
"""Of two more trainings of the tiny model; the second ends as it still rises."""


def test_the_drift_of_healthy_runs_foretells_nothing():
    """Those above; and twenty made ones that rise to between 0.05 and 0.15 and stay there, each step off by a fifth."""
    draw = random.Random(7)
    made = [
        [ends * (1 - math.exp(-step / slowness)) ** 2 * math.exp(draw.gauss(0, 0.2)) for step in range(60)]
        for ends, slowness in [(draw.uniform(0.05, 0.15), draw.uniform(5, 25)) for _ in range(20)]
    ]
    real = [[float(value) for value in text.split()] for text in (KL, *HEALTHY_KL)]
    for course in (*real, *made):
        lines = lines_of(kl_to_ref=course)
        assert [step for step in range(len(course)) if said("kl_slope", lines[: step + 1], 60 - step)] == []


def test_a_real_healthy_run_that_lost_two_thirds_of_its_calls_is_silent():
    """The tiny base on the filings, reward 0.47 to 0.66 in 60 steps."""
    calls, kl = ([float(value) for value in text.split()] for text in (CALLS, KL))
    lines = lines_of(
        calls_a_try=calls,
        tokens_a_try=[7 * made for made in calls],
        kl_to_ref=kl,
        entropy=[0.38 - 0.0018 * step for step in range(60)],
        repeated_calls=[0.4 - 0.005 * step for step in range(60)],
    )
    assert [(name, step) for step in range(60) for name in HEALTH if said(name, lines[: step + 1], 60 - step)] == []


@settings(max_examples=50)
@given(st.lists(st.floats(0.7, 1.3), min_size=12, max_size=12), st.sampled_from(["entropy", "tokens_a_try", "calls_a_try"]))
def test_noise_of_a_third_around_what_a_run_began_with_is_no_finding(noise, figure):
    """Means of such noise differ by less than 1.3 / 0.7 = 1.9 times, and the least limit is 2."""
    lines = lines_of(**{figure: [4 * one for one in noise], "train_reward": [0.5] * 12, "early_stop": [0.3 * one for one in noise]})
    assert not [name for name in HEALTH if said(name, lines)]


@pytest.mark.parametrize("guard", HEALTH)
def test_a_line_that_has_not_its_figure_yet_is_not_judged(guard):
    """As before the update, and on the last line, which only validates."""
    courses = dict.fromkeys(["calls_a_try", "tokens_a_try", "entropy"], falls(5.0, 0.001)) | {"kl_to_ref": [9.0] * 10}
    assert said(guard, [*lines_of(**courses), StepMetrics(step=10)]) is None


def test_every_guard_over_lines_is_in_the_table():
    assert set(HEALTH) <= set(GUARDS)
