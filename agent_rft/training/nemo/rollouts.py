"""Between NeMo RL's training loop and its rollout functions: each sample gets a rollout of its own before, and what came of
it is settled after. A rollout that infrastructure failed leaves the gradient here, and was never in a baseline."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import ray
import torch

from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.jobcards import Versions
from agent_rft.contracts.ports import Recorder
from agent_rft.contracts.rollouts import Limits, Rollout
from agent_rft.contracts.rows import Row
from agent_rft.rollouts.cards import card_of
from agent_rft.rollouts.driver import new_rollout_id
from agent_rft.training.nemo.environment import Seat
from agent_rft.training.nemo.prompts import Prompt
from agent_rft.training.nemo.watch import Watch

ADVANTAGES = "group_advantages"
"""The batch's own column of them."""
RolloutFunction = Callable[..., tuple[Any, dict[str, Any]]]


class Rollouts:
    def __init__(
        self,
        watch: Watch,
        environments: Mapping[str, Any],
        recorder: Recorder,
        *,
        rows: Mapping[str, Row],
        limits: Limits,
        run_id: str,
        tenant: str,
        versions: Versions,
        group: int,
        call_cost: float,
    ) -> None:
        """`environments`: the actors, by the task names that the data set gives its samples."""
        self._watch, self._environments, self._recorder = watch, environments, recorder
        self._rows, self._limits, self._group, self._call_cost = rows, limits, group, call_cost
        self._run_id, self._tenant, self._versions = run_id, tenant, versions

    def around(self, function: RolloutFunction) -> RolloutFunction:
        """NeMo RL's function, with our beginning and end."""

        def run(policy_generation: Any, input_batch: Any, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
            began = time.monotonic()
            seated = input_batch.copy()
            seated["extra_env_info"] = self._seats(input_batch["extra_env_info"], began)
            batch, metrics = function(policy_generation, seated, *args, **kwargs)
            done = self._settled(batch["task_name"], batch["extra_env_info"])
            seconds = time.monotonic() - began
            if input_batch["extra_env_info"][0].validating:
                self._watch.tried(done, seconds)
            else:
                self._learn_from(batch, done, seconds)
            _take_out_failures(batch, done)
            metrics["infra_failure_rate"] = sum(graded.infra_failed for graded in done) / len(done)
            return batch, {name: value for name, value in metrics.items() if not (isinstance(value, float) and math.isnan(value))}

        return run

    def _seats(self, prompts: Sequence[Prompt], began: float) -> list[Seat]:
        """NeMo RL repeats a prompt by copying it; here each copy becomes a rollout with an id of its own."""
        step = self._watch.step
        return [
            Seat(
                row_id=prompt.row_id,
                sample_index=prompt.sample_index if prompt.validating else position % self._group,
                kind="eval" if prompt.validating else "train",
                step=step,
                checkpoint=self._checkpoint,
                began=began,
                waited=0.0,
                left_at=began,
                rollout=Rollout(new_rollout_id(), self._rows[prompt.row_id].opening(), self._rows[prompt.row_id].tools, self._limits),
                heard=[],
            )
            for position, prompt in enumerate(prompts)
        ]

    @property
    def _checkpoint(self) -> str:
        return f"{self._run_id}/step-{self._watch.step}"

    def _settled(self, names: Sequence[str], seats: Sequence[Seat]) -> list[GradedRollout]:
        """Each rollout's end, from the environment that led it there."""
        positions = {name: [i for i, given in enumerate(names) if given == name] for name in dict.fromkeys(names)}
        asked = [self._environments[name].settle.remote([seats[i] for i in mine]) for name, mine in positions.items()]
        ended: dict[int, GradedRollout] = {}
        for mine, settled in zip(positions.values(), ray.get(asked), strict=True):
            ended.update(zip(mine, settled, strict=True))
        return [ended[i] for i in range(len(seats))]

    def _learn_from(self, batch: Any, done: Sequence[GradedRollout], seconds: float) -> None:
        advantages = self._watch.rolled_out(done, self._group, self._call_cost, seconds)
        batch[ADVANTAGES] = torch.tensor([advantage or 0.0 for advantage in advantages], dtype=torch.float32)
        versions = msgspec.structs.replace(self._versions, checkpoint=self._checkpoint)
        for graded, advantage in zip(done, advantages, strict=True):
            if advantage is not None:  # the environment has recorded the card; what it was worth is known only now
                self._recorder.record(
                    card_of(
                        graded,
                        kind="train",
                        run_id=self._run_id,
                        step=self._watch.step,
                        advantage=advantage,
                        versions=versions,
                        tenant=self._tenant,
                    )
                )


def _take_out_failures(batch: Any, done: Sequence[GradedRollout]) -> None:
    """Reward 0 and no weight in the loss. And ids stay whole numbers: NeMo RL's tokens of an empty observation are floats."""
    counts = torch.tensor([not graded.infra_failed for graded in done])
    batch["total_reward"] = torch.where(counts, batch["total_reward"], 0.0)
    batch["loss_multiplier"] = batch["loss_multiplier"] * counts
    for message in (message for log in batch["message_log"] for message in log):
        message["token_ids"] = message["token_ids"].long()
