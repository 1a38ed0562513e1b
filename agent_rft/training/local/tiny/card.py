"""The tiny base's card: which weights these are, how they were made, and how they were found to behave."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
import transformers
from safetensors import safe_open

from agent_rft.training.local.tiny import teacher, warm_start

CARD, README, WEIGHTS = "card.json", "README.md", "model.safetensors"


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """What made the weights, besides the code."""

    seed: int
    steps: int
    held_out: int
    """How many companies the warm start never saw."""
    bfloat16: bool
    seconds: float


def write_card(folder: Path, recipe: Recipe) -> None:
    weights = folder / WEIGHTS
    with safe_open(weights, framework="pt") as tensors:
        parameters = sum(tensors.get_tensor(name).numel() for name in tensors.keys())  # noqa: SIM118 (not a mapping)
    card = {
        "name": folder.name,
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "parameters": parameters,
        "recipe": {
            **msgspec.to_builtins(recipe),
            "seconds": round(recipe.seconds),
            "step_tokens": warm_start.STEP_TOKENS,
            "muon_rate": warm_start.MUON_RATE,
            "adam_rate": warm_start.ADAM_RATE,
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
        },
        "stages": msgspec.to_builtins(warm_start.STAGES),
        "teacher": {"right_line": teacher.RIGHT_LINE, "hedged": teacher.HEDGED, "picks_higher": teacher.PICKS_HIGHER},
    }
    _write(folder, card)


def add_measurement(folder: Path, measured: Mapping[str, Any]) -> None:
    """Put what a prior check found (reward, tool calls, shares of never / sometimes / always) on the card."""
    card = msgspec.json.decode((folder / CARD).read_bytes(), type=dict[str, Any])
    _write(folder, {**card, "measured": dict(measured)})


def _write(folder: Path, card: dict[str, Any]) -> None:
    (folder / CARD).write_bytes(msgspec.json.format(msgspec.json.encode(card), indent=2) + b"\n")
    (folder / README).write_text(_readme(card), encoding="utf-8")


def _readme(card: dict[str, Any]) -> str:
    recipe = card["recipe"]
    lines = [
        f"# {card['name']}",
        "",
        f"A Qwen2 model of {card['parameters']:,} parameters that answers questions about generated company filings by calling the tools",
        "`search`, `list` and `read`. It is the base that the research example starts from: it copies names and paths reliably and figures",
        "mostly, and it has bad habits on purpose (needless calls, wrong lines, hedged answers), each taught as a chance, so that",
        "reinforcement has something to mend. It knows this one world and no language beyond it.",
        "",
        "`AutoModelForCausalLM` and `AutoTokenizer` load it without custom code. `make tiny-base` makes it again.",
        "",
        "| | |",
        "| --- | --- |",
        f"| sha256 of {WEIGHTS} | `{card['weights_sha256']}` |",
        f"| seed, steps | {recipe['seed']}, {recipe['steps']} of {recipe['step_tokens']} tokens |",
        f"| made in | {recipe['seconds'] / 60:.0f} minutes on one CPU thread{', bfloat16' if recipe['bfloat16'] else ''} |",
        f"| with | torch {recipe['torch']}, transformers {recipe['transformers']} |",
        f"| companies never seen | {recipe['held_out']}: those of the shipped questions |",
    ]
    lines += [f"| measured: {name} | {value} |" for name, value in card.get("measured", {}).items()]
    return "\n".join([*lines, ""])
