"""Everything of NeMo RL v0.7.0 that is replaced while it trains for us, each with its reason.

A patch says which parameters the replaced thing takes; where they are others, this is not the NeMo RL that we know, and
nothing is replaced. Each has a test that fails once NeMo RL no longer needs it.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import torch
from nemo_rl.utils.timer import TimeoutChecker

from agent_rft.contracts.errors import UserError
from agent_rft.training.nemo.find import CURE, VERSION
from agent_rft.training.nemo.rollouts import ADVANTAGES, Rollouts
from agent_rft.training.nemo.watch import Watch

ROLLOUT_PARAMETERS = ("policy_generation", "input_batch", "tokenizer", "task_to_env", "max_seq_len", "max_rollout_turns", "greedy")


class Patch(msgspec.Struct, frozen=True, kw_only=True):
    where: str
    """Module and name, as `nemo_rl.algorithms.grpo:validate`."""
    parameters: tuple[str, ...]
    """Those that the original takes."""
    replacement: Callable[[Any], Any]
    """From the original, what stands in its place."""
    reason: str


def patches(watch: Watch, rollouts: Rollouts, generation: type | None) -> tuple[Patch, ...]:
    """`generation`: what stands in for vLLM; None on GPUs."""
    grpo = "nemo_rl.algorithms.grpo:"
    around_rollouts = [
        Patch(
            where=grpo + name,
            parameters=ROLLOUT_PARAMETERS,
            replacement=rollouts.around,
            reason="a sample has no id of its own, and one that infrastructure failed cannot be taken out: its reward counts as it is",
        )
        for name in ("run_multi_turn_rollout", "run_async_multi_turn_rollout")
    ]
    stand_in = Patch(
        where=grpo + "VllmGeneration",
        parameters=("cluster", "config", "name_prefix", "workers_per_node", "defer_model_load"),
        replacement=lambda original: generation,
        reason="setup() takes a factory for the policy and none for the generation: workers on a CPU cannot be plugged in",
    )
    return (
        *around_rollouts,
        Patch(
            where="nemo_rl.experience.rollouts:get_keys_from_message_log",
            parameters=("message_log", "keys"),
            replacement=_with_tokens,
            reason="the environment is sent words only: it could neither count a turn's tokens nor tell its end",
        ),
        Patch(
            where=grpo + "GRPOAdvantageEstimator",
            parameters=("estimator_config", "loss_config"),
            replacement=lambda original: GivenAdvantages,
            reason="baselines run over every rollout of a group, those masked out of the loss included",
        ),
        Patch(
            where=grpo + "TimeoutChecker",
            parameters=("timeout", "fit_last_save_time"),
            replacement=lambda original: _stopping(watch),
            reason="the loop can be stopped with a checkpoint only by its time being up",
        ),
        Patch(
            where=grpo + "validate",
            parameters=("policy_generation", "val_dataloader", "tokenizer", "val_task_to_env", "step", "master_config", "logger"),
            replacement=lambda original: _validating(original, watch),
            reason="its accuracy counts a rollout that infrastructure failed as 0",
        ),
        Patch(
            where=grpo + "MemoryTracker",
            parameters=("data_points",),
            replacement=lambda original: NoMemoryTracker,
            reason="it asks Ray over a new connection at each of a step's eight stages, for its log alone, and one that fails ends the run",
        ),
        *([stand_in] if generation else []),
    )


@contextmanager
def patched(wanted: Sequence[Patch]) -> Generator[None]:
    """Everything replaced while the block runs, or nothing at all."""
    found = [(_module_of(patch), patch.where.partition(":")[2], patch) for patch in wanted]
    for module, name, patch in found:
        _check(getattr(module, name, None), patch)
    originals = [(module, name, getattr(module, name)) for module, name, _ in found]
    try:
        for (module, name, patch), (_, _, original) in zip(found, originals, strict=True):
            setattr(module, name, patch.replacement(original))
        yield
    finally:
        for module, name, original in originals:
            setattr(module, name, original)


def _module_of(patch: Patch) -> Any:
    return importlib.import_module(patch.where.partition(":")[0])


def _check(original: Any, patch: Patch) -> None:
    takes = None if original is None else tuple(name for name in inspect.signature(original).parameters if name != "self")
    if takes != patch.parameters:
        seen = "is gone" if takes is None else f"takes {', '.join(takes)}"
        raise UserError(f"this NeMo RL is not the {VERSION} that is expected: {patch.where} {seen}", CURE)


# --- the replacements -------------------------------------------------------------------------------------------------


class GivenAdvantages:
    """Advantages that are known already: computed with the groups, by the same function as on every engine."""

    def __init__(self, estimator_config: Any, loss_config: Any) -> None:
        pass

    def compute_advantage(self, prompt_ids: Any, rewards: Any, mask: torch.Tensor, repeated_batch: Any, **_: Any) -> torch.Tensor:
        return repeated_batch[ADVANTAGES].unsqueeze(-1).expand(mask.shape)


class NoMemoryTracker:
    """What the driver's memory was is in no log."""

    def snapshot_start_of_stage(self, new_stage: str, all_current_variables: list[str]) -> None:
        pass


def _with_tokens(original: Callable[..., Any]) -> Callable[..., Any]:
    def keys_of(message_log: list[Mapping[str, Any]], keys: list[str]) -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = original(message_log, keys)
        if message_log:
            sent[-1] |= {key: message_log[-1][key] for key in ("token_ids", "generation_logprobs") if key in message_log[-1]}
        return sent

    return keys_of


def _stopping(watch: Watch) -> type[TimeoutChecker]:
    class Stopping(TimeoutChecker):
        def check_save(self) -> bool:
            return super().check_save() or watch.halt is not None

    return Stopping


def _validating(original: Callable[..., Any], watch: Watch) -> Callable[..., Any]:
    def validate(*args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        metrics, timings = original(*args, **kwargs)
        reward = watch.validated()
        return metrics | {"accuracy": float("nan") if reward is None else reward}, timings

    return validate
