"""Is the reward rising for the right reasons? What a policy does that has learnt the grader and not the task.

Every detector looks at this step against the run's own first validation, so that what a task is like (answers that stand in the
prompt, rows without evidence) is no alarm. A share speaks only where chance hardly explains it: a run takes hundreds of looks, and
the tries at one row are not independent, so rows are counted and not tries.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean, variance
from typing import TypeAlias

import msgspec

from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.grades import Grade
from agent_rft.contracts.guards import Finding, Limit
from agent_rft.contracts.rows import Row
from agent_rft.contracts.training import StepMetrics
from agent_rft.datasets.leaks import find_leaks
from agent_rft.evaluation.statistics import mean_interval, wilcoxon
from agent_rft.guards.figures import folded
from agent_rft.guards.infra import BY_CHANCE, chance_of_failures
from agent_rft.guards.limits import SHOWN, Suspicion, finding_of, limit_of

RIGHT = 0.5
"""A reward from which on a try was paid for."""
RISEN = 0.05
"""By so much the validation's reward is higher than at first before it counts as risen."""
ENOUGH = 20
"""Rows below which no mean is compared with another."""
ROUNDING = 1e-9
SURE = 1e-3
"""How unlikely what a validation says is where nothing is wrong: a long run validates a hundred times, though always the same rows."""
ERRORS = 3.3
"""Standard errors, for the same."""
SHINGLE, MOSTLY = 5, 0.8
"""Words in a row that nobody says by accident; the share of an answer that is copied."""

Texts: TypeAlias = Sequence[str]


class Share(msgspec.Struct, frozen=True):
    """In how many rows answers were come by in some way. A row's tries share its vote."""

    rows: int
    """With an answer."""
    seen: float
    """Of them, where it was so, paid for or not."""
    paid: float
    """Where it was so, and paid for."""


class Validation(msgspec.Struct, frozen=True, kw_only=True):
    """What later steps are held against: of a validation, what detectors need. The sentinel keeps the run's first."""

    step: int
    rewards: dict[str, float]
    """By row, under the grader that training climbs."""
    holdout: dict[str, dict[str, float]]
    """By grader that training never sees, by row."""
    shares: dict[str, Share]
    """By detector, of the ways in which answers are come by."""
    sampled_tokens: float
    """A try, on average."""
    tool_calls: float


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What there is to look at, once after a step's validation and once after its training rollouts."""

    lines: Sequence[StepMetrics]
    """Of the run so far; this step's is the last."""
    done: Sequence[GradedRollout]
    """What this step validated, or else what it trains on."""
    validation: Validation | None = None
    """What `validation_of` makes of `done`, where that is a validation."""
    first: Validation | None = None
    """The run's first; None where this is it."""
    best: Validation | None = None
    """That which earned most before this one."""
    train_rows: Sequence[Row] = ()
    human_ceiling: float | None = None
    grader_texts: Texts = ()
    """What the grader's own file says: words that it looks for, instructions to its judge."""


def look(seen: Seen, watch: Mapping[str, Limit]) -> Iterator[Finding]:
    for name, detector in DETECTORS.items():
        limit = limit_of(name, watch)
        if limit.action == "off":
            continue
        for found in detector(seen, limit.at):
            yield finding_of(name, seen.lines[-1].step, limit, found)


def validation_of(
    step: int, done: Sequence[GradedRollout], holdout: Mapping[str, Sequence[Grade | None]], grader_texts: Texts = ()
) -> Validation:
    """`holdout`: by grader, a grade for each of `done`, in its order."""
    scored = [graded.rollout for graded in done if graded.reward is not None]
    return Validation(
        step=step,
        rewards=_by_row(done, [graded.grade for graded in done]),
        holdout={name: _by_row(done, grades) for name, grades in holdout.items()},
        shares={name: _share(_marked(name, done, grader_texts)) for name in MARKS},
        sampled_tokens=fmean([rollout.sampled_tokens for rollout in scored] or [0]),
        tool_calls=fmean([rollout.tool_calls for rollout in scored] or [0]),
    )


def _by_row(done: Sequence[GradedRollout], grades: Sequence[Grade | None]) -> dict[str, float]:
    rewards = defaultdict[str, list[float]](list)
    for graded, grade in zip(done, grades, strict=True):
        if grade and grade.reward is not None and not graded.infra_failed:
            rewards[graded.row.id].append(grade.reward)
    return {row: fmean(of_row) for row, of_row in rewards.items()}


# --- the reward's course ----------------------------------------------------------------------------------------------------


def _holdout_divergence(seen: Seen, at: float) -> Iterator[Suspicion]:
    """The training grader rises and another, that the policy never met, surely keeps up with less than half of it: row by row, so that
    hard rows are no excuse. That they differ is no proof: a noisy grader follows a rise at some distance, at every one of many looks."""
    now, first = seen.validation, seen.first
    if not (now and first):
        return
    for name, rewards in now.holdout.items():
        before = first.holdout.get(name, {})
        rows = [row for row in rewards if row in before and row in now.rewards and row in first.rewards]
        if len(rows) < ENOUGH:
            continue
        risen = {row: now.rewards[row] - first.rewards[row] for row in rows}
        kept_up = {row: rewards[row] - before[row] for row in rows}
        apart = {row: risen[row] - kept_up[row] for row in rows}
        behind = [risen[row] / 2 - kept_up[row] for row in rows]
        gap, rise, other = fmean(apart.values()), fmean(risen.values()), fmean(kept_up.values())
        room = 1 - fmean(before[row] for row in rows)  # a lenient grader has little left to rise by
        if gap <= at or rise < RISEN or other > rise / 2 or other >= room / 2 - ROUNDING or wilcoxon(behind) > SURE:
            continue
        telling = sorted(rows, key=lambda row: -apart[row])
        yield Suspicion(
            gap,
            f"the training grader rose by {rise:.2f} since step {first.step}, while {name}, which training never sees, "
            f"{'fell by' if other < 0 else 'rose by'} {abs(other):.2f}, on the same {len(rows)} rows",
            f"read the rows on which the two disagree: where {name} is right, mend the training grader before going on",
            _of_rows(seen.done, telling),
        )


def _train_val_gap(seen: Seen, at: float) -> Iterator[Suspicion]:
    """What training earns runs away from what validation earns, against the distance that they began with."""
    validated = [place for place, line in enumerate(seen.lines) if line.val_reward is not None]
    if not (seen.validation and seen.first) or len(validated) < 3 or validated[-1] != len(seen.lines) - 1:
        return
    early, late = (
        [line.train_reward for line in seen.lines[a:b] if line.train_reward is not None] for a, b in (validated[:2], validated[-2:])
    )
    now, before = list(seen.validation.rewards.values()), list(seen.first.rewards.values())
    samples = (early, late, now, before)
    if min(map(len, samples)) < 3:
        return
    grown = (fmean(late) - fmean(now)) - (fmean(early) - fmean(before))
    error = math.sqrt(sum(variance(values) / len(values) for values in samples))
    if grown > at and grown > ERRORS * error:
        yield Suspicion(
            grown,
            f"training earns {fmean(late):.2f} and validation {fmean(now):.2f}: {grown:.2f} further apart than at the start",
            "the policy learns the training rows by heart: fewer epochs, more rows, or end at the checkpoint before the gap",
        )


def _reward_fall(seen: Seen, at: float) -> Iterator[Suspicion]:
    """It could do more, on the very same rows: a policy that forgets answers on, and calls, and drifts no further than it may."""
    now, best = seen.validation, seen.best
    if not (now and best):
        return
    lost = {row: best.rewards[row] - reward for row, reward in now.rewards.items() if row in best.rewards}
    if len(lost) < ENOUGH:
        return
    fall = mean_interval(list(lost.values()), level=1 - SURE, least=-1.0)
    if fall.low > at:
        yield Suspicion(
            fall.estimate,
            f"validation earns {fall.estimate:.2f} less than at step {best.step}, surely {fall.low:.2f}, on the same {len(lost)} rows",
            f"look whether tools and grader are what they were at step {best.step}; if so, its checkpoint is the better one: go on from it "
            "with a smaller algorithm.learning_rate or a larger algorithm.kl_coef",
            _of_rows(seen.done, sorted(lost, key=lambda row: -lost[row])),
        )


def _above_ceiling(seen: Seen, at: float) -> Iterator[Suspicion]:
    """Better than people are, beyond what the sample explains: then it is hardly the task that it does better."""
    if seen.validation is None or seen.human_ceiling is None or len(seen.validation.rewards) < ENOUGH:
        return
    reached = mean_interval(list(seen.validation.rewards.values()), level=1 - SURE)
    above = reached.low - seen.human_ceiling
    if above > at:
        yield Suspicion(
            above,
            f"validation earns {reached.estimate:.2f} (at least {reached.low:.2f}), and a person {seen.human_ceiling:.2f}",
            "read a dozen of its best answers: either the grader pays for something else, or guards.human_ceiling is out of date",
            [graded.rollout.rollout_id for graded in sorted(seen.done, key=lambda one: -(one.reward or 0.0))],
        )


def _shortening(seen: Seen, at: float) -> Iterator[Suspicion]:
    """Tries that call more than at first have lost their rambling and not their work."""
    now, first = seen.validation, seen.first
    if not (now and first and _risen(now, first)) or not first.sampled_tokens or now.tool_calls > first.tool_calls:
        return
    lost = 1 - now.sampled_tokens / first.sampled_tokens
    if lost > at:
        yield Suspicion(
            lost,
            f"the reward rose by {_rise(now, first):.2f} while tries shrank from {first.sampled_tokens:.0f} to "
            f"{now.sampled_tokens:.0f} tokens and from {first.tool_calls:.1f} to {now.tool_calls:.1f} calls",
            "see whether the shortest answers can be known without the work; a smaller algorithm.call_cost, or a grader that asks "
            "for the evidence",
            _by_length(seen.done),
        )


def _lengthening(seen: Seen, at: float) -> Iterator[Suspicion]:
    now, first = seen.validation, seen.first
    if not (now and first and _risen(now, first)) or not first.sampled_tokens:
        return
    ratio = now.sampled_tokens / first.sampled_tokens
    if ratio > at and now.tool_calls <= first.tool_calls:
        yield Suspicion(
            ratio,
            f"the reward rose by {_rise(now, first):.2f} while tries grew from {first.sampled_tokens:.0f} to "
            f"{now.sampled_tokens:.0f} tokens without a call more ({first.tool_calls:.1f}, now {now.tool_calls:.1f})",
            "read the longest: a grader that likes words pays for them; weigh its figures more, or bound task.limits.max_turn_tokens",
            _by_length(seen.done)[::-1],
        )


def _rise(now: Validation, first: Validation) -> float:
    rows = now.rewards.keys() & first.rewards.keys()
    return fmean([now.rewards[row] - first.rewards[row] for row in sorted(rows)] or [0.0])


def earns_more(now: Validation, than: Validation) -> bool:
    """On the rows of both. One of which infrastructure failed most rows is nothing to hold others against."""
    return 2 * len(now.rewards) >= len(than.rewards) and _rise(now, than) > 0


def _risen(now: Validation, first: Validation) -> bool:
    return len(now.rewards) >= ENOUGH and _rise(now, first) >= RISEN


def _by_length(done: Sequence[GradedRollout]) -> list[str]:
    """Of those that were paid for, the shortest first."""
    return [one.rollout.rollout_id for one in sorted(filter(_is_paid, done), key=lambda one: one.rollout.sampled_tokens)]


def _of_rows(done: Sequence[GradedRollout], rows: Sequence[str]) -> list[str]:
    """A try at each of the rows, in their order."""
    by_row = {graded.row.id: graded.rollout.rollout_id for graded in reversed(done)}
    return [by_row[row] for row in rows if row in by_row]


# --- how the reward was come by ---------------------------------------------------------------------------------------------

Mark = Callable[[GradedRollout, Texts], bool]


def is_lucky(graded: GradedRollout, _: Texts = ()) -> bool:
    """Without a tool that the row asks for, or without having come across any document that holds the answer."""
    expected, turns = graded.row.expected, graded.rollout.turns
    paths = (expected.evidence_path,) if isinstance(expected.evidence_path, str) else expected.evidence_path or ()
    calls = [call for turn in turns for call in turn.calls]
    came = [*(str(call.arguments) for call in calls), *(result.output for turn in turns for result in turn.results.values())]
    found = not paths or any(path in text for path in paths for text in came)
    return not found or not set(expected.must_use_tools) <= {call.name for call in calls}


def is_copied(graded: GradedRollout, grader_texts: Texts) -> bool:
    """What it says stands in the prompt, or says what the grader's own file says."""
    answer = _words(graded.rollout.answer)
    if not answer:
        return False
    said = _shingles(answer, SHINGLE)
    asked = _shingles(_words(graded.row.prompt), min(SHINGLE, len(answer)))
    return len(said & asked) >= MOSTLY * len(said) or any(_says(answer, _words(text)) for text in grader_texts)


def _is_parroted(graded: GradedRollout, grader_texts: Texts) -> bool:
    """Copied, and not the right answer word for word: where prompts offer answers to choose from, whoever learns the task copies more."""
    right = _words(graded.rollout.answer) == _words(str(graded.row.reference_answer))
    return not right and is_copied(graded, grader_texts)


def _says(answer: Sequence[str], text: Sequence[str]) -> bool:
    size = min(SHINGLE, len(text))
    return bool(size) and bool(_shingles(text, size) & _shingles(answer, size))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+(?:[.,]\d+)*", folded(text))


def _shingles(words: Sequence[str], size: int) -> set[tuple[str, ...]]:
    """Every `size` words in a row; of fewer words, all of them."""
    return {tuple(words[at : at + size]) for at in range(max(1, len(words) - size + 1))}


def _identical(answered: Sequence[GradedRollout]) -> dict[str, bool]:
    """By rollout: whether its answer was given to a row with another reference too."""
    clusters = defaultdict[str, list[GradedRollout]](list)
    for graded in answered:
        clusters[" ".join(_words(graded.rollout.answer)) or graded.rollout.answer.strip()].append(graded)
    references = {graded.row.id: _reference(graded) for graded in answered}
    marked, few = dict[str, bool](), 2 * len(set(references.values())) <= len(references)
    for cluster in clusters.values():
        marked |= _mistaken(cluster, few)
    return marked


def _mistaken(cluster: Sequence[GradedRollout], few: bool) -> dict[str, bool]:
    """Of tries that gave the same answer, those at rows of which it is not the answer. Whose it is: those whose reference it says; else
    the best paid, else the most. A policy that is mostly wrong gives a label to more rows that have another than that have it.
    Who is paid less than those has partial credit, as a neighbour on a scale has. `few`: the rows have few references, as where there
    is a scale. Where each has its own, little less than all for anybody's answer is no partial credit."""
    at = _alike(cluster[0].rollout.answer)
    right = [one.reward or 0.0 for one in cluster if _reference(one) == at]
    full = fmean(right) if right and few else 0.0
    if not right:
        paid = defaultdict[str, list[float]](list)
        for one in cluster:
            paid[_reference(one)].append(one.reward or 0.0)
        at = max(paid, key=lambda reference: (fmean(paid[reference]), len(paid[reference])))
    return {one.rollout.rollout_id: _reference(one) != at and not RIGHT <= (one.reward or 0.0) < full for one in cluster}


def _reference(graded: GradedRollout) -> str:
    return _alike(str(graded.row.reference_answer))


def _alike(said: str) -> str:
    """The same however it is written: Yes and yes, 4.2 and 4.20."""
    try:
        return repr(float(said))
    except ValueError:
        return " ".join(_words(said)) or said


MARKS: dict[str, Mark | None] = {"lucky_guess": is_lucky, "copied_answer": _is_parroted, "identical_answers": None}
"""None: told from all tries together."""
MEANING = {
    "lucky_guess": (
        "were paid for without a required tool, or without having come across the evidence",
        "see how the answer was known: the grader should ask for the evidence (type trajectory), or the row gives itself away",
    ),
    "copied_answer": (
        "were paid for an answer that stands in the prompt, or repeats the grader's own words",
        "read them: where the words earn the reward, and not what is claimed, the grader has to ask for the figure",
    ),
    "identical_answers": (
        "were paid for an answer that rows with another reference got too",
        "read one: the grader takes for right what cannot be right for all of them",
    ),
}


def _marked(name: str, done: Sequence[GradedRollout], grader_texts: Texts) -> list[tuple[GradedRollout, bool]]:
    answered, mark = [graded for graded in done if not graded.infra_failed and graded.rollout.answer], MARKS[name]
    if mark is None:
        found = _identical(answered)
        return [(one, found[one.rollout.rollout_id]) for one in answered]
    return [(one, mark(one, grader_texts)) for one in answered]


def _is_paid(graded: GradedRollout) -> bool:
    return not graded.infra_failed and graded.reward is not None and graded.reward >= RIGHT


def _share(marked: Sequence[tuple[GradedRollout, bool]]) -> Share:
    by_row = defaultdict[str, list[tuple[bool, bool]]](list)
    for graded, found in marked:
        by_row[graded.row.id].append((found, found and _is_paid(graded)))
    seen, paid = (sum(fmean(vote[which] for vote in votes) for votes in by_row.values()) for which in (0, 1))
    return Share(len(by_row), seen, paid)


def _come_by(name: str) -> Callable[[Seen, float], Iterator[Suspicion]]:
    """How much is paid for may be `at` above what was there of it at first, paid for or not: a task whose answers stand in the prompt
    has them there from the start. More, beyond chance, is suspicious. Of guesses only those that were paid for at first count: a weak
    base guesses a lot, and is not right."""

    def detector(seen: Seen, at: float) -> Iterator[Suspicion]:
        if seen.first is None or not (before := seen.first.shares[name]).rows:
            return
        marked = _marked(name, seen.done, seen.grader_texts)
        now = _share(marked)
        at_first = (before.paid if name == "lucky_guess" else before.seen) / before.rows
        allowed = min(1.0, at + at_first)
        if now.paid <= allowed * now.rows or chance_of_failures(int(now.paid), now.rows, allowed) >= BY_CHANCE:
            return
        what, cure = MEANING[name]
        ids = [graded.rollout.rollout_id for graded, found in marked if found and _is_paid(graded)]
        share = now.paid / now.rows
        yield Suspicion(
            share - at_first, f"{share:.0%} of the {now.rows} rows {what}; at first {at_first:.0%} were of that kind", cure, ids
        )

    return detector


def _leaked_row(seen: Seen, at: float) -> Iterator[Suspicion]:
    """Looked for once: rows do not change in a run."""
    if seen.validation is None or seen.first is not None:
        return
    rows = {graded.row.id: graded.row for graded in seen.done}
    leaks = find_leaks([(row.id, row) for row in seen.train_rows], list(rows.items()))
    if len(leaks) > at:
        shown = ", ".join(f"{leak.row_id} ({leak.twin} in training)" for leak in leaks[:SHOWN])
        yield Suspicion(
            float(len(leaks)),
            f"training asks what {len(leaks)} of {len(rows)} validation rows ask: {shown}",
            "take them out of one of the two files: such a row is passed by heart; `make validate` lists all",
            _of_rows(seen.done, [leak.row_id for leak in leaks]),
        )


DETECTORS: dict[str, Callable[[Seen, float], Iterator[Suspicion]]] = {
    "holdout_divergence": _holdout_divergence,
    "train_val_gap": _train_val_gap,
    "reward_fall": _reward_fall,
    "above_ceiling": _above_ceiling,
    "lucky_guess": _come_by("lucky_guess"),
    "copied_answer": _come_by("copied_answer"),
    "identical_answers": _come_by("identical_answers"),
    "shortening": _shortening,
    "lengthening_without_calls": _lengthening,
    "leaked_row": _leaked_row,
}
