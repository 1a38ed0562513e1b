"""The memory picture that this project was seeded with, beside our own arithmetic under the conditions it names.

Its caption says: bf16, LoRA of rank 32, numbers approximate; its text: a rollout buffer of groups of 16 trajectories of 4,096
tokens. Five parts are stacked, of which only the totals are told.
"""

from __future__ import annotations

import msgspec

from agent_rft.contracts.training import Lora
from agent_rft.planning.formulas import BF16, MASTER_AND_ADAM, activation_items, kv_bytes, logits_item, reference_weights
from agent_rft.planning.setup import GB, Item, Kind
from agent_rft.planning.shapes import CATALOGUE, ModelShape, lora_parameters

TOKENS, GROUP = 4096, 16
LORA = Lora(32, 64, ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))
PARTS: tuple[Kind, ...] = ("weights", "optimizer", "activations", "reference", "rollouts")
PART_NAMES: dict[Kind, str] = {
    "weights": "weights",
    "optimizer": "optimizer",
    "activations": "activations",
    "reference": "reference (KL)",
    "rollouts": "rollout buffer",
}
ALIKE = 0.05
"""Nearer than this share is called the same."""


class SeedBar(msgspec.Struct, frozen=True):
    label: str
    model: str
    total_gb: float
    """As the picture has it."""
    machine: str


SEED = (
    SeedBar("7B", "Qwen/Qwen2.5-7B-Instruct", 49.0, "1 x 80 GB"),
    SeedBar("14B", "Qwen/Qwen2.5-14B-Instruct", 92.0, "2 x 80 GB"),
    SeedBar("32B", "Qwen/Qwen2.5-32B-Instruct", 180.0, "4 x 80 GB"),
    SeedBar("70B", "meta-llama/Llama-3.3-70B-Instruct", 190.0, "8 x 80 GB, sharded"),
)


class Compared(msgspec.Struct, frozen=True):
    """One bar of theirs beside ours."""

    seed: SeedBar
    parts: dict[Kind, float]
    """Ours, in GB over all GPUs, by the picture's own names of parts."""
    why: str

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def seed_items(shape: ModelShape, group: int = GROUP) -> tuple[Item, ...]:
    """What the five parts are, summed over the GPUs: the reference a second bf16 copy, one trajectory in the backward pass."""
    trained = lora_parameters(shape, LORA, fused=False)
    rollouts = group * TOKENS * kv_bytes(shape) / GB
    return (
        Item("weights", "weights", (shape.parameters + trained) * BF16 / GB, "base and adapters, 2 B"),
        Item("optimizer", "optimizer", trained * (BF16 + MASTER_AND_ADAM) / GB, "gradients 2 B, float32 copy and moments 12 B"),
        *activation_items(shape, TOKENS, layers=shape.layers, recompute=True),
        logits_item(shape, TOKENS),
        reference_weights(shape, "bfloat16"),
        Item("keys and values", "rollouts", rollouts, f"{group} rollouts x {TOKENS:,} tokens"),
    )


def compared() -> tuple[Compared, ...]:
    return tuple(_compare(bar, CATALOGUE[bar.model]) for bar in SEED)


def _compare(bar: SeedBar, shape: ModelShape) -> Compared:
    items = seed_items(shape)
    parts: dict[Kind, float] = {part: sum(item.gb for item in items if item.kind == part) for part in PARTS}
    return Compared(bar, parts, _why(bar, shape, parts))


def _why(bar: SeedBar, shape: ModelShape, parts: dict[Kind, float]) -> str:
    """Which part must differ, found by leaving the others as we count them."""
    ours = sum(parts.values())
    gap = bar.total_gb - ours
    both = parts["weights"] + parts["reference"]
    if abs(gap) <= ALIKE * ours:
        return f"the same within {abs(gap) / ours:.0%}, {both:.0f} GB of it weights and reference"
    if gap > 0:
        buffer = parts["rollouts"] + gap
        rollouts = buffer / (TOKENS * kv_bytes(shape) / GB)
        return (
            f"{gap:.0f} GB more than ours: weights and reference are {both:.0f} GB for both, so rollout buffer or activations are "
            f"larger; a buffer of {buffer:.0f} GB is {rollouts:.0f} rollouts of {TOKENS:,} tokens, ours are {GROUP}"
        )
    if both > bar.total_gb:
        alone, int4 = ours - parts["reference"], reference_weights(shape, "int4").gb
        return (
            f"{-gap:.0f} GB less than ours: weights and a bf16 reference alone are {both:.0f} GB, so it cannot hold both; without the "
            f"reference, on a GPU of its own, ours is {alone:.0f} GB ({abs(bar.total_gb - alone) / alone:.0%} from it), "
            f"with an int4 one {alone + int4:.0f}"
        )
    return f"{-gap:.0f} GB less than ours: weights and reference leave it {bar.total_gb - both:.0f} GB, where we count {ours - both:.0f}"
