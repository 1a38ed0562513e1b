"""What is known of a Hugging Face model before its weights are loaded: its name, tokenizer and chat template, whether its
files are whole. Both engines stand on it. Faults in what the user named are theirs.

transformers takes seconds to load, so each function that needs it does: who asks for a name, or the hub, seldom has to wait for it."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

from agent_rft.contracts.errors import UserError
from agent_rft.rollouts.templates import ChatTemplate

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

SOURCE = "name a folder with config.json and *.safetensors, or a Hugging Face id that this machine can reach, with model.path=..."
HUB_SECONDS = 10.0
DATE = "26 Jul 2024"
"""Llama's templates tell the model the date of the day, and this one where they have no clock: a run must not depend on its day."""


@functools.cache
def weights_name(path: str) -> str:
    """A model's path with a hash of its weights, so that on a job card the same name never means other weights."""
    if not looks_local(path):
        return f"{path}@{getattr(config_of(path), '_commit_hash', None) or 'unknown'}"
    check_folder(Path(path))
    digest = hashlib.sha256()
    for file in sorted(Path(path).glob("*.safetensors")):
        with file.open("rb") as weights:
            digest.update(hashlib.file_digest(weights, "sha256").digest())
    return f"{path}@{digest.hexdigest()[:12]}"


def config_of(path: str) -> PretrainedConfig:
    if not looks_local(path):
        ask_hub(path)
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path)
    except Exception as error:  # no such id, no network, no right to it
        raise UserError(f"model {path} could not be loaded: {first_line(error)}", SOURCE) from error


def ask_hub(path: str) -> None:
    """Once, where nothing is cached: a download tries for half a minute to reach a hub that does not answer."""
    try:
        if not isinstance(try_to_load_from_cache(path, "config.json"), str):
            get_hf_file_metadata(hf_hub_url(path, "config.json"), timeout=HUB_SECONDS)
    except (RepositoryNotFoundError, EntryNotFoundError):
        return  # it does answer; what it holds against the id, or the user, is told best by what loads it
    except Exception as error:
        raise UserError(f"model {path} is not on this machine, and the hub cannot be asked: {first_line(error)}", SOURCE) from error


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception as error:
        raise UserError(f"the tokenizer of {path} could not be loaded: {first_line(error)}", SOURCE) from error
    if not tokenizer("a")["input_ids"]:  # transformers makes one without words where a folder has none
        raise UserError(f"model folder {path} has no tokenizer", "put tokenizer.json and tokenizer_config.json of the model into it")
    return tokenizer


def looks_local(path: str) -> bool:
    """A path with one slash may be a Hugging Face id; anything else, or anything that exists, is a folder."""
    return Path(path).exists() or path.startswith((".", "/", "~")) or path.count("/") != 1 or "\\" in path


def check_folder(folder: Path) -> None:
    """What is wrong with a model's folder, said before a library says it less clearly."""
    if not folder.is_dir():
        raise UserError(f"there is no model folder {folder}", SOURCE)
    if not (folder / "config.json").is_file():
        raise UserError(f"model folder {folder} has no config.json", SOURCE)
    for file in sorted(folder.glob("*.safetensors")):
        if not is_whole(file):
            raise UserError(
                f"{file} is cut short or is no safetensors file", "copy or make the model anew, or name another with model.path=..."
            )


def is_whole(file: Path) -> bool:
    """A safetensors file says in its head how long it is."""
    with file.open("rb") as opened:
        head = int.from_bytes(opened.read(8), "little")
        size = file.stat().st_size
        if not 0 < head <= size - 8:
            return False
        try:
            tensors = json.loads(opened.read(head))
            ends = [tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            return False
    return 8 + head + max(ends, default=0) == size


def template_of(tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig | None) -> tuple[ChatTemplate, tuple[int, ...]]:
    """The chat template, and the tokens that end the model's turn."""
    if not tokenizer.chat_template:
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path} has no chat template",
            "use an instruct model, or put a chat template with tool messages into the tokenizer's folder",
        )
    named: list[Any] = [tokenizer.eos_token_id, getattr(generation, "eos_token_id", None)]
    listed = [end for name in named for end in (name if isinstance(name, list) else [name])]
    ends = tuple(dict.fromkeys(int(end) for end in listed if end is not None))
    if not ends:
        raise UserError(f"neither tokenizer nor generation config of {tokenizer.name_or_path} names an end-of-turn token", "set eos_token")

    def render(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, add_generation_prompt: bool) -> str:
        said = tokenizer.apply_chat_template(
            messages,  # pyright: ignore[reportArgumentType]
            tools=tools,  # pyright: ignore[reportArgumentType]
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            date_string=DATE,
        )
        return str(said)

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])  # pyright: ignore[reportArgumentType]

    texts = [str(tokenizer.decode([end])) for end in ends]
    return ChatTemplate(render, encode, texts), ends


def generation_config_of(path: str) -> GenerationConfig | None:
    """What the model's makers say about sampling from it; not every model has it."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(path)
    except OSError:
        return None


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
