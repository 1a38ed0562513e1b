"""Rollouts with a known course, for our drivers and for NeMo RL's rollout functions alike: what is said depends on the
prompt's first word and on the turn alone. Imported by Ray's workers too."""

import asyncio
from pathlib import Path

import torch

from agent_rft.contracts.errors import InfraError
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.messages import ToolSpec
from agent_rft.contracts.rollouts import Limits, ToolResult
from agent_rft.contracts.rows import Row
from agent_rft.training.pretrained import generation_config_of, load_tokenizer, template_of

ROOT = Path(__file__).resolve().parents[3]
BASE = str(ROOT / "models" / "research-tiny")
TOOLS = tuple(ToolSpec(name, "Does it.", {"type": "object", "properties": {}}) for name in ("look", "broken", "slow"))
LIMITS = Limits(max_turns=4, max_tool_calls=3, max_trajectory_tokens=900, max_turn_tokens=280, max_seconds=2.0)


def call(name: str, count: int = 1) -> str:
    return "".join(f'<tool_call>\n{{"name": "{name}", "arguments": {{"n": {i}}}}}\n</tool_call>' for i in range(count))


COURSES = {  # what is said turn by turn; a missing end-of-turn token stands as ...
    "straight": ["42"],
    "one": [call("look"), "42"],
    "parallel": [call("look", 2), "7"],
    "spammer": [call("look")] * 9,
    "crowded": [call("look", 3), "42"],  # the third result leaves no room to speak
    "greedy": [call("look", 4)],
    "breathless": [call("look"), "4" * 400 + "..."],
    "broken": [call("broken"), "42"],
    "halfbroken": [call("look"), call("look") + call("broken"), "42"],
    "slow": [call("slow"), "42"],
    "garbled": ["<tool_call>\n{nothing"],
    "empty": [""],
    "wordy": [call("look"), call("look") + " " + "and " * 300],
}


def make_rows(names=tuple(COURSES), prefix="row") -> tuple[Row, ...]:
    return tuple(Row(f"{prefix}-{name}", f"{name} please", "42", tools=TOOLS) for name in names)


class Tools:
    """look answers; broken never does, after its retries; slow does not in time."""

    async def call(self, rollout_id, asked) -> ToolResult:
        if asked.name == "broken":
            await asyncio.sleep(0.05)
            raise InfraError("tool:broken", "503 after 5 attempts")
        if asked.name == "slow":
            await asyncio.sleep(60)
        return ToolResult(asked.call_id, f"seen {asked.arguments['n']} " * (300 if asked.arguments["n"] == 2 else 5))


class Exact:
    """1 for 42, 0.5 for another number."""

    ref = GraderRef("exact", "1", "f" * 16)

    def grade(self, item, sample) -> Grade:
        text = sample["output_text"]
        return Grade(self.ref, 1.0 if text == "42" else 0.5 if text.isdigit() else 0.0)


class Generation:
    """A NeMo RL generation that says the course, whole turns of it, cut where the room ends."""

    def __init__(self, cut_at: int = LIMITS.max_turn_tokens, longest: int = LIMITS.max_trajectory_tokens, lost: tuple[str, ...] = ()):
        self.tokenizer = load_tokenizer(BASE)
        self.template, self.ends = template_of(self.tokenizer, generation_config_of(BASE))
        self._cut_at, self._longest, self._lost = cut_at, longest, lost
        self.cfg = {"backend": "vllm", "vllm_cfg": {"async_engine": True}}

    def _says(self, ids: list[int]) -> list[int]:
        heard = self.tokenizer.decode(ids, skip_special_tokens=False)
        name = heard.partition("user\n")[2].partition(" ")[0]
        if name in self._lost:
            raise RuntimeError("the engine lost it")
        turn = heard.count("<|im_start|>assistant") - 1
        text = COURSES[name][turn]
        said = self.tokenizer(text.removesuffix("..."), add_special_tokens=False)["input_ids"]
        return [*said, *([] if text.endswith("...") else [self.ends[0]])][: min(self._cut_at, self._longest - len(ids))]

    def generate(self, data, greedy=False):
        from nemo_rl.distributed.batched_data_dict import BatchedDataDict

        rows = [ids[:n].tolist() for ids, n in zip(data["input_ids"], data["input_lengths"], strict=True)]
        said = [self._says(ids) for ids in rows]
        width = max(len(ids) + len(more) for ids, more in zip(rows, said, strict=True))
        out, logprobs = torch.full((len(rows), width), self.tokenizer.pad_token_id or 0), torch.zeros(len(rows), width)
        for i, (ids, more) in enumerate(zip(rows, said, strict=True)):
            out[i, : len(ids) + len(more)] = torch.tensor(ids + more)
            logprobs[i, len(ids) : len(ids) + len(more)] = -0.25
        lengths = torch.tensor([len(more) for more in said])
        return BatchedDataDict(
            output_ids=out,
            logprobs=logprobs,
            generation_lengths=lengths,
            unpadded_sequence_lengths=data["input_lengths"] + lengths,
            truncated=torch.tensor([not more or more[-1] not in self.ends for more in said]),
        )

    async def generate_async(self, data, greedy=False):
        for i in range(len(data["input_lengths"])):
            await asyncio.sleep(0)
            yield i, self.generate(data.slice(i, i + 1))
