"""The policy that learns: forward, backward, optimizer, on a CPU or one GPU."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.ports import Sampler
from agent_rft.contracts.training import Algorithm, Model
from agent_rft.training.guards import check_finite
from agent_rft.training.local.batches import Trajectory, micro_batches
from agent_rft.training.local.checkpoints import Checkpoints
from agent_rft.training.local.loss import grpo_loss, token_entropy
from agent_rft.training.local.models import load_policy, sampler_of
from agent_rft.training.local.ports import Position, Update
from agent_rft.training.local.scoring import Scorer

BETAS = (0.9, 0.95)
"""Adam's: the second is short for a training of tens of steps."""


class SavedState(msgspec.Struct, frozen=True):
    """state.json of a checkpoint: everything that is neither weight nor optimizer."""

    position: Position
    torch_rng: bytes
    numpy_rng: tuple[str, bytes, int, int, float]
    python_rng: tuple[int, tuple[int, ...], float | None]


class LocalEngine:
    """Weights, optimizer and frozen reference of one training run."""

    def __init__(self, model: Model, algorithm: Algorithm, checkpoints: Checkpoints, run_id: str, seed: int, resume: bool) -> None:
        self._spec, self._algorithm, self._checkpoints = model, algorithm, checkpoints
        newest = checkpoints.newest()
        if newest and not resume:
            raise UserError(f"{newest.parent} holds checkpoints of an earlier run", "resume it, or choose another run id")
        if newest:
            checkpoints.checked(newest)
        self.policy = load_policy(model, checkpoint=newest, trainable=True, seed=seed)
        self.reference_seconds = 0.0
        """Spent so far on what the frozen reference thinks of the samples."""
        self._frozen = None if model.lora else self._frozen_base(newest)
        self._recompute = False
        if self.policy.model.device.type == "cuda":
            self.recompute_activations()
        self.trained = [weight for weight in self.policy.model.parameters() if weight.requires_grad]
        self._optimizer = torch.optim.AdamW(self.trained, lr=0.0, betas=BETAS, weight_decay=0.0, fused=True)
        self._scorer = Scorer(self.policy.model)
        self._sampler = sampler_of(self.policy, model, algorithm.temperature, lambda: f"{run_id}/step-{self._position.step}")
        self._position = self._restore(newest) if newest else Position()

    def _frozen_base(self, checkpoint: Path | None) -> Scorer:
        """The reference of a model that is trained whole: a copy of the base, which a resumed run reads anew."""
        if checkpoint:
            again = load_policy(self._spec, checkpoint=None, trainable=True)  # in the precision that a fresh run's copy has
            return Scorer(again.model.requires_grad_(False))
        return Scorer(copy.deepcopy(self.policy.model).requires_grad_(False))

    def recompute_activations(self) -> None:
        """Make activations anew in the backward pass: on a GPU a long trajectory's would not fit beside the cache."""
        self._recompute = True
        model = self.policy.model
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable  # the older name
        enable({"use_reentrant": False})

    @property
    def sampler(self) -> Sampler:
        return self._sampler

    # --- learning --------------------------------------------------------------------------------------------------

    def update(self, trajectories: Sequence[Trajectory], learning_rate: float) -> Update:
        done = self.accumulate(trajectories)
        norm = float(torch.nn.utils.clip_grad_norm_(self.trained, self._algorithm.max_grad_norm))
        try:
            check_finite(done.loss, norm)
            if trajectories:
                for group in self._optimizer.param_groups:
                    group["lr"] = learning_rate
                self._optimizer.step()
        finally:
            self._optimizer.zero_grad(set_to_none=True)
        self._position = Position(self._position.step + 1)
        self._sampler.weights_changed()
        return msgspec.structs.replace(done, grad_norm=norm)

    def accumulate(self, trajectories: Sequence[Trajectory]) -> Update:
        """Add the batch's gradient to the weights' `grad`, micro-batch by micro-batch."""
        total = sum(trajectory.sampled_tokens for trajectory in trajectories)
        sums = torch.zeros(4, dtype=torch.float64)
        self.policy.model.train(self._recompute)  # there is no dropout: this only lets gradient checkpointing work
        for chosen in micro_batches([len(t.ids) for t in trajectories], self._algorithm.micro_batch_tokens):
            sums += self._learn_from([trajectories[i] for i in chosen], total)
        self.policy.model.eval()
        loss, kl, clip_fraction, entropy = sums.tolist()
        return Update(loss, kl, clip_fraction, entropy)

    def _learn_from(self, trajectories: Sequence[Trajectory], total: int) -> Tensor:
        """One forward and backward pass; answers loss, KL, clip fraction and entropy, each already over `total`."""
        batch = _Padded(trajectories, self.policy.model.device)
        began = time.perf_counter()
        reference = self._reference_logprobs(batch)
        self.reference_seconds += time.perf_counter() - began
        logits = self._scorer.logits(batch.ids, batch.chosen, use_cache=False) / (self._algorithm.temperature or 1.0)
        every = torch.log_softmax(logits, -1)
        new = every.gather(1, batch.targets)[:, 0]
        algorithm = self._algorithm
        part = grpo_loss(
            new, batch.old, reference, batch.advantages, clip_ratio=algorithm.clip_ratio, kl_coef=algorithm.kl_coef, tokens=total
        )
        part.loss.backward()
        entropy = token_entropy(every.detach()).sum() / total
        return torch.stack([part.loss.detach(), part.kl, part.clip_fraction, entropy]).double().cpu()

    @torch.no_grad()
    def _reference_logprobs(self, batch: _Padded) -> Tensor:
        if self._frozen is not None:
            return self._logprobs(self._frozen, batch)
        with self.policy.without_adapters():
            return self._logprobs(self._scorer, batch)

    def _logprobs(self, scorer: Scorer, batch: _Padded) -> Tensor:
        logits = scorer.logits(batch.ids, batch.chosen, use_cache=False) / (self._algorithm.temperature or 1.0)
        return torch.log_softmax(logits, -1).gather(1, batch.targets)[:, 0]

    # --- saving ----------------------------------------------------------------------------------------------------

    def save(self, position: Position) -> str:
        def fill(folder: Path) -> None:
            try:
                self.policy.save(folder)
                torch.save(self._optimizer.state_dict(), folder / "optimizer.pt")
            except (SafetensorError, RuntimeError) as error:  # what these libraries make of a full disk
                raise OSError(str(error)) from error
            (folder / "state.json").write_bytes(msgspec.json.encode(_state_at(position)))

        return str(self._checkpoints.write(position.step, fill))

    def _restore(self, checkpoint: Path) -> Position:
        state = msgspec.json.decode((checkpoint / "state.json").read_bytes(), type=SavedState)
        self._optimizer.load_state_dict(torch.load(checkpoint / "optimizer.pt", map_location=self.policy.model.device, weights_only=True))
        torch.set_rng_state(torch.frombuffer(bytearray(state.torch_rng), dtype=torch.uint8))
        name, keys, index, has_gauss, gauss = state.numpy_rng
        np.random.set_state((name, np.frombuffer(keys, dtype=np.uint32), index, has_gauss, gauss))
        random.setstate(state.python_rng)
        return state.position

    @property
    def position(self) -> Position:
        return self._position

    @property
    def newest_checkpoint(self) -> str:
        return str(self._checkpoints.newest() or self._spec.path)


class _Padded:
    """A micro-batch as tensors: rows padded at their ends, which causal attention never sees."""

    def __init__(self, trajectories: Sequence[Trajectory], device: torch.device) -> None:
        longest = max(len(trajectory.ids) for trajectory in trajectories)
        ids = np.zeros((len(trajectories), longest), dtype=np.int64)
        sampled = np.zeros((len(trajectories), longest), dtype=bool)
        old = np.zeros((len(trajectories), longest), dtype=np.float32)
        for row, trajectory in enumerate(trajectories):
            length = len(trajectory.ids)
            ids[row, :length], sampled[row, :length], old[row, :length] = trajectory.ids, trajectory.sampled, trajectory.logprobs
        advantages = np.array([trajectory.advantage for trajectory in trajectories], dtype=np.float32)[:, None]
        said = sampled[:, 1:]
        self.ids = torch.from_numpy(ids[:, :-1].copy()).to(device)
        self.chosen = torch.from_numpy(said.copy()).to(device)
        """Positions whose next token was sampled."""
        self.targets = torch.from_numpy(ids[:, 1:][said]).to(device)[:, None]
        self.old = torch.from_numpy(old[:, 1:][said]).to(device)
        self.advantages = torch.from_numpy(np.broadcast_to(advantages, said.shape)[said]).to(device)


def _state_at(position: Position) -> SavedState:
    name, keys, index, has_gauss, gauss = np.random.get_state(legacy=True)
    version, internal, gauss_next = random.getstate()
    return SavedState(
        position=position,
        torch_rng=torch.get_rng_state().numpy().tobytes(),
        numpy_rng=(str(name), np.asarray(keys, dtype=np.uint32).tobytes(), int(index), int(has_gauss), float(gauss)),
        python_rng=(version, internal, gauss_next),
    )
