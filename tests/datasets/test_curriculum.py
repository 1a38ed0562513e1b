"""The next run's rows, worked out by hand."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.rollouts import Ending, Limits, Rollout
from agent_rft.contracts.rows import Row
from agent_rft.datasets.curriculum import COPY_OF, Curriculum, LeftOut, Met, curriculum
from agent_rft.datasets.rows import encode_row
from agent_rft.datasets.validate import validate


def row(name: str, difficulty: str) -> Row:
    return Row(name, f"What was the revenue of {name}?", "1", metadata={"task_type": "qa", "difficulty": difficulty})


def evaluated(**rewards: tuple[float, int]) -> list[GradedRollout]:
    """Held-out rows of a difficulty: the reward of each, and how many."""
    return [
        GradedRollout(
            row(f"val-{difficulty}-{number}", difficulty),
            0,
            Rollout(f"{difficulty}-{number}", (), (), Limits(), ending=Ending.ANSWERED),
            Grade(GraderRef("numeric", "1", "x"), reward),
        )
        for difficulty, (reward, count) in rewards.items()
        for number in range(count)
    ]


def met(*newest: float, before: tuple[float, ...] = ()) -> Met:
    return Met(newest, (*before, *newest))


ROWS = [row(f"{difficulty}-{number}", difficulty) for difficulty in ("easy", "hard") for number in range(10)]
EVALUATED = evaluated(easy=(0.8, 30), hard=(0.0, 10))
"""Mean 0.6. Of the hard ones: ten 0s and the imagined 0 and 1: mean 1/12, squares 11/12, / 11 / 12 = 1/144, root 1/12; 84% of t of 11
degrees lie under 1.0415: up to 0.17012. It falls short by 0.82988, against 0.4 of the whole: 2.0747."""


def made(**changes: object) -> Curriculum:
    given_: dict[str, object] = {"rows": ROWS, "evaluated": EVALUATED, "met": {}} | changes
    return curriculum(given_.pop("rows"), given_.pop("evaluated"), given_.pop("met"), **given_)


def test_a_weak_slice_is_weighted_by_how_much_more_than_the_whole_it_falls_short():
    found = made()
    easy, hard = found.slices
    assert (easy.weight, easy.kept, easy.copies) == (1.0, 10, 0)
    assert hard.weight == pytest.approx(2.0747, abs=1e-4)
    assert (hard.kept, hard.copies, hard.evaluated) == (10, 11, 10)  # 10 x 1.0747 = 10.747
    assert Counter(row.difficulty for row in found.train) == {"easy": 10, "hard": 21}
    assert Counter(one.times for one in found.decisions if one.row_id.startswith("hard")) == {2: 9, 3: 1}
    assert {one.times for one in found.decisions if one.row_id.startswith("easy")} == {1}


def test_no_slice_counts_more_than_the_heaviest_or_less_than_once():
    assert [one.weight for one in made(heaviest=1.5).slices] == [1.0, 1.5]
    assert [one.weight for one in made(evaluated=evaluated(easy=(1.0, 60), hard=(1.0, 60))).slices] == [1.0, 1.0]  # no shortfall at all
    for wrong in (0.5, 11, float("nan")):
        with pytest.raises(UserError, match="cannot count"):
            made(heaviest=wrong)


def test_a_few_unlucky_rows_weigh_less_than_as_poor_a_mean_of_many():
    one, ten, many = (made(evaluated=evaluated(easy=(0.8, 3 * count), hard=(0.0, count)), heaviest=10).slices[1] for count in (1, 10, 100))
    assert 1 <= one.weight < 0.6 * ten.weight and ten.weight < many.weight < 2.5  # 1 / 0.4 is the whole of it


def test_a_slice_that_the_evaluation_lacks_keeps_its_weight():
    new = made(rows=[*ROWS, row("new", "expert")]).slices[1]
    assert (new.difficulty, new.evaluated, new.reward, new.weight, new.kept) == ("expert", 0, None, 1.0, 1)


def test_solved_rows_retire_unsolvable_ones_are_set_aside_the_rest_stay_each_with_its_reason():
    found = made(
        met={
            "easy-0": met(1.0, 1.0, before=(0.0, 0.0)),  # learned
            "easy-1": met(1.0, 0.0, before=(1.0, 1.0)),  # unlearned
            "easy-2": met(0.0, 0.0),
            "easy-3": met(0.0, 0.0, before=(0.5,)),  # earned something once
            "easy-4": met(1.0),
            "easy-5": met(0.0),
            "easy-6": Met((), ()),
        }
    )
    assert [row.id for row in found.retired] == ["easy-0"]
    assert [row.id for row in found.set_aside] == ["easy-2"]
    assert {row.id for row in ROWS} - {"easy-0", "easy-2"} == {row.id for row in found.train if COPY_OF not in row.metadata}
    why = {one.row_id: (one.fate, one.times, one.why) for one in found.decisions}
    assert why["easy-0"] == ("retired", 0, "2 of 4 tries solved it, 2 of the newest 2")
    assert why["easy-1"] == ("kept", 1, "3 of 4 tries solved it, 1 of the newest 2")
    assert why["easy-2"] == ("set aside", 0, "none of 2 tries earned anything: too hard as yet, or wrong")
    assert why["easy-3"][0] == why["easy-4"][0] == why["easy-5"][0] == "kept"
    assert why["easy-6"] == ("kept", 1, "was not met")
    assert (found.slices[0].retired, found.slices[0].set_aside, found.slices[0].kept) == (1, 1, 8)


def test_what_was_left_out_comes_back_when_a_try_says_otherwise_and_is_kept_in_mind_until_then():
    """Of four retired ones a was forgotten, b earns half, c is still solved by a single try and d was not tried. Of three set aside e
    earns something, f still nothing by its one try, and g was not tried. easy-0 was put back by hand: it is a training row."""
    before = LeftOut((*(row(name, "easy") for name in "abcd"), ROWS[0]), tuple(row(name, "hard") for name in "efg"))
    tries = {"a": met(0.0, 0.0), "b": met(0.5, 1.0), "c": met(1.0), "e": met(0.0, 0.2), "f": met(0.0), "easy-0": met(1.0)}
    found = made(before=before, met=tries)
    assert [one.id for one in found.train if COPY_OF not in one.metadata] == [*(one.id for one in ROWS), "a", "b", "e"]
    assert [one.id for one in found.retired] == ["c", "d"] and [one.id for one in found.set_aside] == ["f", "g"]
    why = {one.row_id: one.why for one in found.decisions}
    assert why["a"] == "0 of 2 tries solved it, 0 of the newest 2; was retired before"
    assert why["d"] == "was retired before, and not tried since" and why["g"] == "was set aside before, and not tried since"
    assert sum(one.row_id == "easy-0" for one in found.decisions) == 1


def test_solved_means_from_where_the_run_said():
    assert [row.id for row in made(met={"easy-0": met(0.5, 0.6)}, pass_at=0.5).retired] == ["easy-0"]


def test_copies_have_ids_of_their_own_and_the_data_has_no_fault():
    rows = [*ROWS, row("hard-0~2", "easy")]
    train = made(rows=rows).train
    assert len({one.id for one in train}) == len(train)
    copies = [one for one in train if COPY_OF in one.metadata]
    assert {one.id for one in copies if one.metadata[COPY_OF] == "hard-0"} >= {"hard-0~2~"}
    by_id = {one.id: one for one in rows}
    assert all(one.prompt == by_id[one.metadata[COPY_OF]].prompt for one in copies)
    lines = "\n".join(map(encode_row, train)).encode()
    report = validate({"train": [("train.jsonl", lines)]})
    assert not report.faults and not [fault for fault in report.warnings if "asks the same" in str(fault)]


def test_a_curriculum_of_a_curriculum_does_not_grow():
    once = made()
    assert made(rows=once.train) == once


def test_nothing_left_and_nothing_measured_are_refused():
    with pytest.raises(UserError, match="no row would be left"):
        made(rows=ROWS[:1], met={"easy-0": met(1.0, 1.0)})
    spoilt = [GradedRollout(one.row, 0, one.rollout, None) for one in EVALUATED]
    with pytest.raises(UserError, match="no score"):
        made(evaluated=spoilt)


@given(st.integers(0, 5), st.floats(1, 5), st.dictionaries(st.integers(0, 19), st.lists(st.sampled_from([0.0, 0.5, 1.0]), max_size=4)))
def test_no_row_is_lost_and_the_same_input_makes_the_same(seed, heaviest, tries):
    known = {ROWS[at].id: met(*rewards) for at, rewards in tries.items()}
    found = made(met=known, seed=seed, heaviest=heaviest)
    assert found == made(met=known, seed=seed, heaviest=heaviest)
    originals = [one for one in found.train if COPY_OF not in one.metadata]
    assert sorted(one.id for one in (*originals, *found.retired, *found.set_aside)) == sorted(one.id for one in ROWS)
    assert sum(one.times for one in found.decisions) == len(found.train) <= heaviest * len(originals) + 1
