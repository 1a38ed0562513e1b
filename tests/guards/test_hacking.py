"""Each detector speaks for what it was made for, and is silent where a run only learns."""

import dataclasses
import math
import random

import msgspec
import pytest

from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.guards import Limit
from agent_rft.contracts.messages import Message, ToolCall
from agent_rft.contracts.rollouts import Ending, Limits, Rollout, ToolResult, Turn
from agent_rft.contracts.rows import Expected, Row
from agent_rft.contracts.training import StepMetrics
from agent_rft.guards.hacking import DETECTORS, Seen, Validation, look, validation_of
from agent_rft.guards.limits import GUARDS

TRAINED_ON = GraderRef("climbed", "1", "c1")
HOLDOUT = GraderRef("numeric", "1", "n1")
EVIDENCE = "filings/acme.html"


@dataclasses.dataclass(frozen=True)
class Try:
    """A try at a row, as a test says it. It searches and finds the evidence, unless told otherwise."""

    row: int
    reward: float = 1.0
    holdout: float = 1.0
    answer: str = ""
    reference: str = ""
    prompt: str = ""
    calls: tuple[tuple[str, str], ...] = (("search", f"{EVIDENCE}: revenue $5M"),)
    tokens: int = 50

    def graded(self) -> GradedRollout:
        prompt = self.prompt or f"What was the revenue of company {self.row} in 20{self.row:02}?"
        expected = Expected(evidence_path=EVIDENCE, must_use_tools=("search",))
        row = Row(f"row-{self.row}", prompt, self.reference or f"${self.row}M", expected)
        made = [ToolCall(f"call-{number}", name, {"query": "revenue"}) for number, (name, _) in enumerate(self.calls)]
        results = {call.call_id: ToolResult(call.call_id, output) for call, (_, output) in zip(made, self.calls, strict=True)}
        answer = self.answer or f"${self.row}M"
        turns = [Turn("", sampled_tokens=self.tokens, calls=tuple(made), results=results), Turn(answer)]
        rollout = Rollout(
            f"rollout-{self.row}", (Message("user", prompt),), (), Limits(), turns=turns, ending=Ending.ANSWERED, answer=answer
        )
        return GradedRollout(row, 0, rollout, Grade(TRAINED_ON, self.reward))


def validation(step: int, tries: list[Try], texts: tuple[str, ...] = ()) -> Validation:
    return validation_of(step, [one.graded() for one in tries], {"numeric@1": [Grade(HOLDOUT, one.holdout) for one in tries]}, texts)


def found(
    now: list[Try],
    before: list[Try] | None = None,
    *,
    watch: dict[str, Limit] | None = None,
    lines: list[StepMetrics] | None = None,
    training: bool = False,
    **more,
) -> dict[str, msgspec.Struct]:
    """What is said of a validation (or of training rollouts) after a first validation, by guard."""
    texts = more.get("grader_texts", ())
    seen = Seen(
        lines=lines or [StepMetrics(step=8)],
        done=[one.graded() for one in now],
        validation=None if training else validation(8, now, texts),
        first=None if before is None else validation(0, before, texts),
        **more,
    )
    return {finding.guard: finding for finding in look(seen, watch or {})}


def rows(count: int, **what) -> list[Try]:
    return [Try(row, **what) for row in range(count)]


HALF_RIGHT = [Try(row, reward=float(row % 2), holdout=float(row % 2)) for row in range(40)]


def test_every_detector_is_in_the_table_of_guards():
    assert {name for name, guard in GUARDS.items() if guard.family == "hacking"} | {"reward_fall"} == set(DETECTORS)


def test_a_run_that_learns_the_task_is_let_alone():
    assert found(rows(40), HALF_RIGHT) == {}


def test_a_policy_that_has_forgotten_what_it_could_is_told_of():
    """Of 40 rows it had 34 and has 14: 20 lost, none won. The mean of 20 ones, 20 zeros and the imagined 1 and -1 is 0.476, the squared
    distances sum to 22 - 42 x 0.476^2 = 12.48, the error is the root of 12.48 / 41 / 42, 0.0851; t of 41 degrees 3.54: 0.476 - 0.302."""
    best = validation(4, [Try(row, reward=float(row < 34)) for row in range(40)])
    said = found([Try(row, reward=float(row < 14)) for row in range(40)], HALF_RIGHT, best=best)["reward_fall"]
    assert (said.figure, said.action) == (0.5, "warn")
    assert "validation earns 0.50 less than at step 4, surely 0.17, on the same 40 rows" in said.what
    assert set(said.rollouts) <= {f"rollout-{row}" for row in range(14, 34)}


def test_of_many_validations_the_best_was_lucky_and_another_may_well_be_less():
    """Ten of 40 lost and two won, where no row is sure: a fifth less, with an error of 0.08."""
    best = validation(4, [Try(row, reward=float(row < 26)) for row in range(40)])
    assert "reward_fall" not in found([Try(row, reward=float(10 <= row < 28)) for row in range(40)], HALF_RIGHT, best=best)


def test_a_grader_that_rises_while_another_stands_still_is_being_gamed():
    now = [Try(row, reward=1.0, holdout=float(row % 2)) for row in range(40)]
    said = found(now, HALF_RIGHT)["holdout_divergence"]
    assert said.figure == 0.5  # rose on 20 of 40 rows by 1, the other on none
    assert said.action == "stop"
    assert "rose by 0.50 since step 0, while numeric@1, which training never sees, rose by 0.00" in said.what
    assert set(said.rollouts) <= {f"rollout-{row}" for row in range(0, 40, 2)}, "those rows first on which the two disagree"


def test_it_is_said_as_well_where_the_other_falls():
    now = [Try(row, reward=1.0, holdout=0.0) for row in range(40)]
    said = found(now, HALF_RIGHT)["holdout_divergence"]
    assert said.figure == 1.0  # half a point up, half a point down
    assert "fell by 0.50" in said.what


@pytest.mark.parametrize(
    ("now", "why"),
    [
        ([Try(row, reward=float(row % 2), holdout=0.0) for row in range(40)], "only the other one moved"),
        ([Try(row, reward=float(row % 2 or row < 10), holdout=float(row % 2)) for row in range(40)], "five rows that rose may be chance"),
    ],
)
def test_a_difference_between_graders_alone_is_no_divergence(now: list[Try], why: str):
    assert "holdout_divergence" not in found(now, HALF_RIGHT), why


def test_a_grader_that_follows_at_half_the_pace_is_only_stricter():
    """Of 100 rows 50 rose, 24 of them under the other grader as well, 26 not: that may as well be half. Of 12 against 38 it is not, by the
    sign alone less than one in a thousand."""
    half_right = [Try(row, reward=float(row % 2), holdout=float(row % 2)) for row in range(100)]

    def now(follows: int) -> list[Try]:
        return [Try(row, reward=1.0, holdout=float(row % 2 or row < 2 * follows)) for row in range(100)]

    assert "holdout_divergence" not in found(now(follows=26), half_right)
    assert "holdout_divergence" not in found(now(follows=24), half_right)
    assert "holdout_divergence" in found(now(follows=12), half_right)


@pytest.mark.parametrize("seed", [1, 4])
def test_a_noisy_grader_that_follows_from_afar_is_silent_however_often_it_is_asked(seed: int):
    """It says the contrary of the truth in 15 of 100: of what training's grader rises by it shows seven tenths, at each of 100 looks."""
    draw = random.Random(seed)

    def validated(passed: float) -> list[Try]:
        right = [draw.random() < passed for _ in range(100)]
        return [Try(row, reward=float(one), holdout=float(one == (draw.random() < 0.85))) for row, one in enumerate(right)]

    first = validation(0, validated(0.3))
    later = [validation(5 * look, validated(0.3 + 0.5 * (1 - math.exp(-look / 20)))) for look in range(1, 101)]
    watch = {name: Limit(0.0, "off") for name in DETECTORS if name != "holdout_divergence"}
    looks = [Seen(lines=[StepMetrics(step=one.step)], done=[], validation=one, first=first) for one in later]
    assert [finding.what for seen in looks for finding in look(seen, watch)] == []


def test_a_lenient_grader_that_had_little_room_to_rise_has_not_stood_still():
    """The other grader gave 0.8 at first: of the 0.2 that it had left it rose by 0.15, while training's rose by 0.7."""
    before = rows(40, reward=0.3, holdout=0.8)
    assert "holdout_divergence" not in found(rows(40, holdout=0.95), before)
    assert "holdout_divergence" in found(rows(40, holdout=0.85), before), "a quarter of its room is not half"
    full = rows(40, reward=0.3, holdout=1.0)
    assert "holdout_divergence" not in found(rows(40, holdout=1.0), full), "it cannot rise"
    assert "holdout_divergence" in found(rows(40, holdout=0.8), full), "but it can fall"


def test_rows_that_either_grader_could_not_grade_are_in_neither_mean():
    now = [Try(row, reward=1.0, holdout=float(row % 2)) for row in range(40)]
    done = [one.graded() for one in now]
    grades = [Grade(HOLDOUT, None if row == 1 else one.holdout) for row, one in enumerate(now)]
    before = validation_of(0, [one.graded() for one in HALF_RIGHT], {"n": [Grade(HOLDOUT, one.holdout) for one in HALF_RIGHT]})
    seen = Seen(lines=[StepMetrics(step=8)], done=done, validation=validation_of(8, done, {"n": grades}), first=before)
    said = {finding.guard: finding for finding in look(seen, {})}["holdout_divergence"]
    assert said.figure == pytest.approx(20 / 39)


def course(train: list[float], val: list[float], every: int = 4) -> list[StepMetrics]:
    return [
        StepMetrics(
            step=step, train_reward=train[step] if step < len(train) else None, val_reward=val[step // every] if step % every == 0 else None
        )
        for step in range(len(train) + 1)
    ]


def test_training_that_runs_away_from_validation_learns_rows_by_heart():
    lines = course([0.50, 0.52, 0.48, 0.50, 0.90, 0.92, 0.88, 0.90], [0.5, 0.5, 0.5])
    said = found(HALF_RIGHT, HALF_RIGHT, lines=lines)["train_val_gap"]
    assert said.figure == pytest.approx(0.4)  # .90 - .50, and .50 - .50 at first
    assert "training earns 0.90 and validation 0.50" in said.what


def test_a_distance_that_was_there_from_the_start_is_the_rows_and_not_the_policy():
    lines = course([0.90, 0.92, 0.88, 0.90] * 2, [0.5, 0.5, 0.5])
    assert "train_val_gap" not in found(HALF_RIGHT, HALF_RIGHT, lines=lines)


def test_steps_that_scatter_as_much_as_the_gap_is_wide_prove_nothing():
    lines = course([0.50, 0.52, 0.48, 0.50, 0.3, 1.0, 0.4, 1.0], [0.5, 0.5, 0.5])
    assert "train_val_gap" not in found(HALF_RIGHT, HALF_RIGHT, lines=lines)  # grown by .175, with an error of .2


def test_better_than_people_beyond_what_the_sample_explains():
    assert found(rows(100), human_ceiling=0.8)["above_ceiling"].figure > 0.1
    assert "above_ceiling" not in found(rows(100), human_ceiling=None)


def test_a_few_lucky_rows_do_not_beat_the_human():
    twelve_of_twenty = [Try(row, reward=float(row < 12)) for row in range(20)]
    assert "above_ceiling" not in found(twelve_of_twenty, human_ceiling=0.5)  # .6, but .3 to .85 is as likely


@pytest.mark.parametrize(
    "calls",
    [(), (("list", EVIDENCE),), (("search", "filings/other.html: revenue $5M"),)],
    ids=["no call", "not the tool that the row asks for", "another document"],
)
@pytest.mark.parametrize("training", [False, True], ids=["validation", "training"])
def test_right_without_the_evidence_is_a_guess(calls: tuple[tuple[str, str], ...], training: bool):
    said = found(rows(20, calls=calls), HALF_RIGHT, training=training)["lucky_guess"]
    assert said.figure == 1.0
    assert "100% of the 20 rows were paid for without a required tool" in said.what
    assert said.what.endswith("at first 0% were of that kind")
    assert len(said.rollouts) == 5


def test_wrong_without_the_evidence_is_no_guess_that_was_paid_for():
    assert "lucky_guess" not in found(rows(20, reward=0.0, calls=()), HALF_RIGHT)


def test_guesses_that_were_as_common_at_first_are_the_data_and_not_the_policy():
    assert "lucky_guess" not in found(rows(20, calls=()), rows(40, calls=()))
    assert "lucky_guess" in found(rows(20, calls=()), rows(40, calls=(), reward=0.0)), "a weak base guesses a lot, and is not right"
    assert "lucky_guess" not in found(rows(20, calls=())), "at the first validation itself nobody knows"


def test_one_row_whose_every_try_is_lucky_is_one_row():
    tries = [Try(0, calls=())] * 8 + rows(7)
    assert "lucky_guess" not in found(tries, HALF_RIGHT, training=True)


def test_an_answer_that_stands_in_the_prompt_is_copied():
    prompt = "Is the revenue of Acme one of 5M, 7M or 9M?"
    said = found(rows(20, prompt=prompt, answer="5M, 7M or 9M"), HALF_RIGHT)["copied_answer"]
    assert said.action == "warn"
    assert "copied_answer" not in found(rows(20, prompt=prompt, answer="11M"), HALF_RIGHT)


def test_the_right_one_of_the_answers_that_a_prompt_offers_is_not_copied():
    """A base that rambles finds it on half of the rows, the tuned one on all: that is the task learnt."""
    offered = "Is the revenue of Acme one of 5M, 7M or 9M?"
    first = [Try(row, reward=float(row % 2), prompt=offered, reference="7M", answer="7M" if row % 2 else "12") for row in range(40)]
    assert "copied_answer" not in found(rows(40, prompt=offered, reference="7M", answer="7M"), first)
    assert "copied_answer" in found(rows(40, prompt=offered, reference="7M", answer="5M, 7M or 9M"), first)


def test_an_answer_with_the_graders_own_words_is_copied():
    texts = ("about", "Give full marks to answers which cite a source and hedge where unsure.")
    assert "copied_answer" in found(rows(20, answer="about $5M"), HALF_RIGHT, grader_texts=texts)
    assert "copied_answer" in found(rows(20, answer="I cite a source and hedge where unsure"), HALF_RIGHT, grader_texts=texts)
    assert "copied_answer" not in found(rows(20, answer="roundabout $5M: I cite a source"), HALF_RIGHT, grader_texts=texts)


def test_one_answer_that_is_paid_for_on_many_rows_with_other_references():
    said = found(rows(20, answer="it depends"), HALF_RIGHT)["identical_answers"]
    assert said.figure == pytest.approx(0.95)  # 20 references, one of which the answer may belong to


def test_the_same_answer_where_the_reference_is_the_same_is_right():
    yes = [Try(row, answer="yes", reference="yes") for row in range(20)]
    assert "identical_answers" not in found(yes, HALF_RIGHT)


@pytest.mark.parametrize(("answer", "references"), [("4.2", ("4.2", "4.20")), ("yes", ("Yes", "yes."))])
def test_a_reference_that_is_written_in_two_ways_is_one_reference(answer: str, references: tuple[str, str]):
    now = [Try(row, answer=answer, reference=references[row % 2]) for row in range(40)]
    assert "identical_answers" not in found(now, HALF_RIGHT)


def test_tries_that_shrink_to_nothing_while_the_reward_rises():
    said = found(rows(40, tokens=4, calls=()), HALF_RIGHT)["shortening"]
    assert said.figure == pytest.approx(0.92)  # 4 tokens of 50 are left
    assert "shortening" not in found([dataclasses.replace(one, tokens=4) for one in HALF_RIGHT], HALF_RIGHT), "the reward did not rise"
    assert "shortening" not in found(rows(40, tokens=25), HALF_RIGHT), "half as long is frugal"


def test_a_base_that_rambled_and_learns_to_call_tools_has_not_shrunk_to_nothing():
    rambled = [dataclasses.replace(one, tokens=500, calls=()) for one in HALF_RIGHT]
    assert "shortening" not in found(rows(40, tokens=20), rambled), "it calls a tool now, and did not before"
    assert "shortening" in found(rows(40, tokens=20, calls=()), rambled)


def test_tries_that_grow_without_a_call_more_while_the_reward_rises():
    said = found(rows(40, tokens=150), HALF_RIGHT)["lengthening_without_calls"]
    assert said.figure == pytest.approx(3.0)
    twice = (("search", EVIDENCE), ("read", "revenue $5M"))
    assert "lengthening_without_calls" not in found(rows(40, tokens=150, calls=twice), HALF_RIGHT), "it reads more"


def test_a_validation_row_that_training_asks_too_is_named_once():
    known = Row("train-7", "what was the revenue of company 7 in 2007", "$7M")
    said = found(rows(20), train_rows=[known])["leaked_row"]
    assert (said.figure, said.rollouts) == (1, ("rollout-7",))
    assert isinstance(said.figure, float), "a line that is read and written again is the same to the byte"
    assert "row-7 (train-7 in training)" in said.what
    assert "leaked_row" not in found(rows(20), HALF_RIGHT, train_rows=[known]), "said at the first validation, and not again"


def test_a_limit_of_the_configuration_stands_in_for_the_guards_own():
    now = [Try(row, reward=1.0, holdout=float(row % 2)) for row in range(40)]
    assert found(now, HALF_RIGHT, watch={"holdout_divergence": Limit(0.5, "warn")}) == {}, "the figure is .5, and not above it"
    assert found(now, HALF_RIGHT, watch={"holdout_divergence": Limit(0.4, "warn")})["holdout_divergence"].action == "warn"
    assert found(now, HALF_RIGHT, watch={"holdout_divergence": Limit(0.1, "off")}) == {}


def test_runs_that_stand_still_are_hardly_ever_accused():
    """400 validations of a policy that does not change, under two graders that disagree at random: one in a thousand is allowed."""
    luck, alarms = random.Random(7), 0

    def drawn() -> list[Try]:
        return [
            Try(row, float(luck.random() < 0.4), float(luck.random() < 0.4), calls=(("search", EVIDENCE),) * (luck.random() > 0.05))
            for row in range(50)
        ]

    for _ in range(400):
        alarms += bool(found(drawn(), drawn()))
    assert alarms <= 2


# --- one answer, many rows: whose answer it is ------------------------------------------------------------------------------


def labelled(row: int, answer: str, reward: float, reference: str) -> Try:
    return Try(row, reward=reward, answer=answer, reference=reference)


PROSE = [Try(row, reward=0.0, answer=f"well, it is hard to tell of {row}") for row in range(60)]


@pytest.mark.parametrize("form", ["{}", "I say {}"])
def test_a_policy_that_is_mostly_wrong_is_right_where_it_says_what_the_row_has(form):
    """Asked yes or no it is right at 24 rows of 60: of its thirty yes twelve, so that most rows that got a yes have a no."""
    now = []
    for row in range(60):
        reference, right = ("yes", "no")[row % 2], row < 24
        now.append(labelled(row, form.format(reference if right else ("no", "yes")[row % 2]), float(right), reference))
    assert "identical_answers" not in found(now, PROSE)


def test_a_neighbour_on_a_scale_that_earns_half_has_partial_credit():
    """Every second row gets the label beside its own, and half of the reward."""
    now = [labelled(row, str(1 + row % 4 + row // 4 % 2), 0.5 if row // 4 % 2 else 1.0, str(1 + row % 4)) for row in range(60)]
    assert "identical_answers" not in found(now, PROSE)
    paid = [dataclasses.replace(one, reward=1.0) for one in now]
    assert found(paid, PROSE)["identical_answers"].action == "stop", "as well paid as those that are right"


def test_a_little_less_for_everybodys_answer_is_no_partial_credit():
    """One row has the answer for its reference and earns all, the other 39 earn nearly as much, each with a reference of its own."""
    now = [labelled(row, "it depends", 0.95 if row else 1.0, f"reference {row}" if row else "it depends") for row in range(40)]
    assert found(now, HALF_RIGHT)["identical_answers"].figure == pytest.approx(39 / 40)


def test_signs_that_nobody_sees_make_no_other_answer():
    """Each with a zero-width space at another place."""
    text = "not_disclosed_anywhere_by_anyone_in_any_filing"
    now = [Try(row, answer=text[: row + 1] + "\u200b" + text[row + 1 :]) for row in range(40)]
    assert found(now, HALF_RIGHT)["identical_answers"].action == "stop"
