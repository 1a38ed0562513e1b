"""From graded rollouts to what a training step computes on: token sequences, cut into micro-batches of bounded size."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from agent_rft.contracts.graded import GradedRollout


class Trajectory(msgspec.Struct, frozen=True):
    """One rollout as the model lived it: every token that it read or wrote, in order."""

    ids: list[int]
    sampled: list[bool]
    """Which of them the model wrote. Only these are trained on; prompts and tool results are masked out."""
    logprobs: list[float]
    """Of each sampled token when it was sampled; 0 elsewhere."""
    advantage: float

    @property
    def sampled_tokens(self) -> int:
        return sum(self.sampled)


def trajectories(rollouts: Sequence[GradedRollout], advantages: Sequence[float | None]) -> list[Trajectory]:
    """What the step trains on: rollouts with an advantage, so none that infrastructure failed, and that wrote anything."""
    kept = [trajectory(g, a) for g, a in zip(rollouts, advantages, strict=True) if a is not None and not g.infra_failed]
    return [t for t in kept if t.sampled_tokens]


def trajectory(graded: GradedRollout, advantage: float) -> Trajectory:
    ids: list[int] = []
    sampled: list[bool] = []
    logprobs: list[float] = []
    for turn in graded.rollout.turns:
        heard, said = len(turn.context_ids), len(turn.sampled_ids)
        ids += turn.context_ids + turn.sampled_ids
        sampled += [False] * heard + [True] * said
        logprobs += [0.0] * heard + turn.logprobs
    return Trajectory(ids, sampled, logprobs, advantage)


def micro_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Positions of sequences of like length together, each batch at most `max_tokens` once padded to its longest.

    A sequence longer than that stands alone: what was rolled out is trained on.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batches and (len(batches[-1]) + 1) * lengths[i] <= max_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
