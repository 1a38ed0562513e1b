"""The data sets that NeMo RL's loaders read: our rows as tokens, in the order that our schedule says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import torch
from torch.utils.data import Dataset

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.rollouts import Limits
from agent_rft.contracts.rows import Row
from agent_rft.contracts.training import Algorithm
from agent_rft.rollouts.templates import ChatTemplate
from agent_rft.training.schedule import rows_of_step, total_steps

SHOWN = 5


class Prompt(msgspec.Struct, frozen=True):
    """What the data set says of a sample, before it has a rollout."""

    row_id: str
    validating: bool
    sample_index: int = 0


class Prompts(Dataset[dict[str, Any]]):
    """NeMo RL appends the turns to what it is given, so each look makes a fresh one."""

    def __init__(self, rows: Sequence[Row], prompts: Sequence[Prompt], template: ChatTemplate, environments: Sequence[str]) -> None:
        self._rows, self._prompts = {row.id: row for row in rows}, prompts
        self._template, self._environments = template, environments

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        prompt = self._prompts[index]
        row = self._rows[prompt.row_id]
        ids = torch.tensor(self._template.opening_ids(row.opening(), row.tools))
        asked = row.opening()[-1]
        return {
            "message_log": [{"role": "user", "content": asked.content, "token_ids": ids}],
            "length": len(ids),
            "extra_env_info": prompt,
            "loss_multiplier": 1.0,
            "idx": index,
            "task_name": self._environments[index % len(self._environments)],
        }


def training_order(rows: Sequence[Row], algorithm: Algorithm, seed: int) -> list[Prompt]:
    """The prompts of all steps, one after another: as the local engine sees them, but for a pass's last batch where it is
    short, which NeMo RL cannot train on."""
    steps = range(total_steps(len(rows), algorithm.batch_size, algorithm.epochs, None))
    batches = (rows_of_step(rows, step, algorithm.batch_size, seed) for step in steps)
    whole = [batch for batch in batches if len(batch) == algorithm.batch_size]
    return [Prompt(row.id, False) for batch in whole[: algorithm.max_steps] for row in batch]


def validation_order(rows: Sequence[Row], samples: int) -> list[Prompt]:
    return [Prompt(row.id, True, sample) for row in rows for sample in range(samples)]


def check_room(rows: Sequence[Row], template: ChatTemplate, limits: Limits) -> None:
    """Refuse prompts that fill a rollout before the model has spoken: vLLM would fail on the first of them, hours in."""
    lengths = {row.id: len(template.opening_ids(row.opening(), row.tools)) for row in rows}
    if long := [f"{name} ({length} tokens)" for name, length in lengths.items() if length >= limits.max_trajectory_tokens]:
        more = f" and {len(long) - SHOWN} more" if len(long) > SHOWN else ""
        raise UserError(
            f"these prompts fill all of task.limits.max_trajectory_tokens={limits.max_trajectory_tokens}: {', '.join(long[:SHOWN])}{more}",
            "allow more tokens, or shorten the prompts or the tools' descriptions",
        )
