"""What the policy under NeMo RL asks of the rest of the run. [1] words; adapters stand behind them."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class Watch(Protocol):
    """Sees every update coming and gone, and may forbid it."""

    def refuse_update(self, kl: float | None, finite: bool) -> bool:
        """Asked before every update; True forbids it. `kl`: the batch's mean k3 to the reference, None without a reference or
        where no token counts; `finite`: whether advantages and log-probabilities are numbers wherever they count."""
        ...

    def updated(
        self,
        *,
        loss: float,
        grad_norm: float,
        clip_fraction: float | None,
        entropy: float | None,
        learning_rate: float | None,
        seconds: float,
    ) -> None:
        """An update was made. Raises Diverged where loss or gradient are no numbers, or where a guard will not have its weights."""
        ...


class ReferenceModel(Protocol):
    """The frozen base, somewhere else than in the policy's own workers."""

    def logprobs(self, data: Any, micro_batch_size: int) -> Tensor:
        """Log-probability of each token of NeMo RL's batch `data` given those before it, [row, position]; 0 for the first."""
        ...

    def shutdown(self) -> None: ...
