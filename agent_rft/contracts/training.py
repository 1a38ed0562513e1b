"""What a training engine is given and gives back. Two engines stand behind it: local, and NeMo RL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from agent_rft.contracts.guards import Finding, Limit
from agent_rft.contracts.jobcards import Versions
from agent_rft.contracts.ports import Grader, Recorder, Sampler, ToolBox
from agent_rft.contracts.rollouts import Limits, Rollout
from agent_rft.contracts.rows import Row


class Lora(msgspec.Struct, frozen=True):
    rank: int
    alpha: int
    target_modules: tuple[str, ...]


class Model(msgspec.Struct, frozen=True, kw_only=True):
    path: str
    """A folder, or a Hugging Face id."""
    lora: Lora | None = None
    """None: every weight is trained."""
    device: str = "cpu"
    dtype: str = "float32"
    sampler: str = "batched"
    """batched: our own, in process. vllm: vLLM's, on one GPU."""
    threads: int | None = None
    """CPU threads for the arithmetic; None lets the engine choose."""


class Algorithm(msgspec.Struct, frozen=True, kw_only=True):
    """GRPO's numbers."""

    group_size: int
    compute_multiplier: int = 1
    """Rollouts a prompt = group_size x compute_multiplier."""
    batch_size: int
    """Prompts a step."""
    epochs: int
    """Passes over the training rows."""
    max_steps: int | None = None
    """Stop earlier than the epochs would."""
    learning_rate: float
    warmup_steps: int
    kl_coef: float
    clip_ratio: float
    call_cost: float
    """Taken off the reward of a right answer for each tool call it used; wrong answers are never charged."""
    temperature: float
    max_grad_norm: float
    micro_batch_tokens: int
    """Padded tokens that one forward and backward pass holds; gradients accumulate over them."""

    @property
    def rollouts_per_prompt(self) -> int:
        return self.group_size * self.compute_multiplier


class GuardLimits(msgspec.Struct, frozen=True, kw_only=True):
    max_infra_rate: float
    """Training halts when a larger share of calls fails from infrastructure, after retries (1%), beyond what chance explains."""
    infra_window_calls: int
    """The share is judged over the latest steps that hold this many calls."""
    max_kl: float
    """Training halts when the KL to the reference passes this."""
    watch: dict[str, Limit] = {}
    """By guard, where it differs from the guard's own; guards/limits.py lists them all."""
    human_ceiling: float | None = None
    """The reward that a person reaches on the validation rows; None where nobody measured it."""
    audit_every: int = 10
    """Steps between random samples for the review queue; 0: none is drawn."""
    audit_sample: int = 4
    """Rollouts of such a sample."""


LeaksIn = Callable[[Rollout], Sequence[str]]
"""Kinds of secrets that a rollout's answer gives away. Only those who keep secrets can tell, so whoever begins the run brings it."""


class TrainingJob(msgspec.Struct, frozen=True, kw_only=True):
    run_id: str
    run_dir: str
    model: Model
    algorithm: Algorithm
    guards: GuardLimits
    grader_texts: tuple[str, ...] = ()
    """What the grader's own file says (words that it looks for, instructions to its judge): no answer should repeat it."""
    leaks_in: LeaksIn | None = None
    """None: nobody looks for secrets in answers."""
    limits: Limits
    train_rows: tuple[Row, ...]
    val_rows: tuple[Row, ...]
    val_samples: int
    """Tries a validation row gets during training."""
    evaluate_every: int
    checkpoint_every: int
    keep_checkpoints: int
    seed: int
    resume: bool
    versions: Versions
    tenant: str
    rollouts_in_flight: int


class StepMetrics(msgspec.Struct, kw_only=True):
    """One line of metrics.jsonl. Everything but times and ids of rollouts is the same for the same seed."""

    step: int
    val_reward: float | None = None
    """None on steps without validation."""
    val_tool_calls: float | None = None
    train_reward: float | None = None
    """Mean grade of the step's graded rollouts; None on the last line, which only validates."""
    tool_calls: float | None = None
    kl_to_ref: float | None = None
    """Mean k3 estimate over the sampled tokens."""
    loss: float | None = None
    entropy: float | None = None
    grad_norm: float | None = None
    clip_fraction: float | None = None
    flat_groups: float | None = None
    """Share of prompts whose rollouts all scored the same: no signal there."""
    infra_failures: int = 0
    infra_failure_rate: float = 0.0
    """Failed tool calls over tool calls, in the guard's window."""
    grader_failure_rate: float = 0.0
    """Gradings that gave no score over gradings, in the guard's window."""
    learning_rate: float | None = None
    figures: dict[str, float] = msgspec.field(default_factory=dict)
    """What guards look at besides, by name: reward_spread, tokens_a_try, parallel_share, infra.search, ..."""
    holdout: dict[str, float] = msgspec.field(default_factory=dict)
    """Mean reward of the validation under each grader that training never sees, by name@version."""
    findings: list[Finding] = msgspec.field(default_factory=list)
    """What guards said of this step, warnings too."""
    audit: tuple[str, ...] = ()
    """Rollouts of the step that were drawn for a person to look at."""
    undone: bool = False
    """A guard ended the run here, and it has gone on since from before this step: a later line tells the step anew."""
    rollouts: int = 0
    tokens: int = 0
    seconds: float = 0.0
    rollout_seconds: float = 0.0
    train_seconds: float = 0.0


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What training leaves."""

    checkpoint: str
    """Folder of the last checkpoint, loadable as a model."""
    steps: int
    total_steps: int
    metrics: tuple[StepMetrics, ...]
    halted: str = ""
    """Why a guard stopped it, empty where none did."""
    cure: str = ""


OnStep = Callable[[StepMetrics, int], None]
"""Called after each step with its metrics and the total number of steps."""


class Backend(Protocol):
    """A training engine."""

    def name_of(self, model: Model, checkpoint: str | None) -> str:
        """What these weights are called on job cards: the same words always mean the same weights."""
        ...

    def sampler(self, model: Model, checkpoint: str | None, temperature: float) -> Sampler:
        """The base (checkpoint None) or a checkpoint, ready to speak."""
        ...

    async def train(
        self, job: TrainingJob, tools: ToolBox, grader: Grader, recorder: Recorder, on_step: OnStep, holdouts: Sequence[Grader] = ()
    ) -> Outcome:
        """`holdouts` grade what validations bring, for the guards alone: no gradient ever sees them."""
        ...
