"""NeMo RL's side of a rollout: its environment is a Ray actor around our rollout machine.

NeMo RL samples a turn and asks `step` what happens next. So a limit, a parsing rule, an infrastructure failure mean the
same here as in every other place that runs an agent. What `step` answers at a rollout's end is the last that NeMo RL
keeps of it, so grading and recording happen in there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, AsyncExitStack
from typing import Any

import msgspec
import torch
from nemo_rl.environments.interfaces import EnvironmentReturn

from agent_rft.contracts.events import AskModel, CallTools, InfraFailed, ModelSpoke, TimeUp
from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.jobcards import Kind, Versions
from agent_rft.contracts.ports import Grader, Recorder, ToolBox
from agent_rft.contracts.rollouts import Rollout
from agent_rft.contracts.rows import Row
from agent_rft.rollouts.cards import card_of
from agent_rft.rollouts.driver import Clock, grade_or_fail, run_tools
from agent_rft.rollouts.machine import advance
from agent_rft.training.advantages import shaped
from agent_rft.training.pretrained import generation_config_of, load_tokenizer, template_of

THREADS = 64
"""Rollouts that one process grades at once."""
FAILED = float("nan")
"""The reward of a rollout that infrastructure failed, until it is taken out of the batch."""


class Seat(msgspec.Struct):
    """A rollout under way, as NeMo RL carries it from turn to turn: plain data, pickled each time."""

    row_id: str
    sample_index: int
    kind: Kind
    step: int
    checkpoint: str
    """Which weights speak."""
    began: float
    """On this machine's monotonic clock."""
    waited: float
    """Seconds outside the environment: NeMo RL samples all rollouts together, and they wait for the slowest one's tools. They
    count against no rollout."""
    left_at: float
    """When it last left the environment."""
    rollout: Rollout
    heard: list[int]
    """What the model was given since it last spoke: the tokens before its next turn."""


class Post(msgspec.Struct, frozen=True, kw_only=True):
    """What an environment is told once."""

    rows: dict[str, Row]
    model_path: str
    run_id: str
    tenant: str
    versions: Versions
    call_cost: float


class ToolEnvironment:
    """Runs tools, grades and records for any number of rollouts at once. One Ray actor each, see `launch.environments`."""

    def __init__(self, post: Post, tools: ToolBox, grader: Grader, recorder: Recorder) -> None:
        self._post, self._closed_tools, self._grader, self._recorder = post, tools, grader, recorder
        self._tools: ToolBox | None = None
        self._open = AsyncExitStack()
        if isinstance(recorder, AbstractContextManager):
            self._open.enter_context(recorder)  # left last: what the tools' end makes of a rollout is recorded too
        else:
            self._open.callback(recorder.flush)
        self._ended: dict[str, GradedRollout] = {}
        self._tokenizer = load_tokenizer(post.model_path)
        self._template, ends = template_of(self._tokenizer, generation_config_of(post.model_path))
        self._turn_ends = frozenset(ends)

    async def ready(self) -> bool:
        """Opens the tool client, in the event loop that it will be used in."""
        if self._tools is None:
            # a grader that waits for a judge takes a thread for as long
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix="grading"))
            opens = hasattr(self._closed_tools, "__aenter__")
            self._tools = await self._open.enter_async_context(self._closed_tools) if opens else self._closed_tools  # pyright: ignore
        return True

    async def step(self, message_log_batch: list[list[dict[str, Any]]], metadata: list[Seat]) -> EnvironmentReturn[Seat]:
        """What NeMo RL calls after each turn, for all rollouts that are still going on."""
        await self.ready()
        said = [log[-1] for log in message_log_batch]
        texts = await asyncio.gather(*(self._heard(seat, turn) for seat, turn in zip(metadata, said, strict=True)))
        over = [seat.rollout.ending is not None for seat in metadata]
        rewards = [self._reward(seat) if ended else 0.0 for seat, ended in zip(metadata, over, strict=True)]
        return EnvironmentReturn(
            observations=[{"role": "environment", "content": text} for text in texts],
            metadata=metadata,
            next_stop_strings=[None] * len(metadata),
            rewards=torch.tensor(rewards, dtype=torch.float32),
            terminateds=torch.tensor(over),
            answers=None,
        )

    async def settle(self, seats: Sequence[Seat]) -> list[GradedRollout]:
        """The ended rollouts of these seats, forgotten here. One that never ended was lost by the engine that samples."""
        for seat in seats:
            if seat.rollout.rollout_id not in self._ended:
                advance(seat.rollout, InfraFailed("model", "NeMo RL gave the rollout up; its log says why"))
                await self._end(seat, Clock(seat.rollout, seat.began))
        return [self._ended.pop(seat.rollout.rollout_id) for seat in seats]

    async def flush(self) -> None:
        """Returns once every card recorded here is durable."""
        await asyncio.to_thread(self._recorder.flush)

    async def close(self) -> None:
        """Every card is safe after it: in the store, or in the file of which the recorder's InfraError tells."""
        await self._open.aclose()

    # --- a turn ----------------------------------------------------------------------------------------------------

    async def _heard(self, seat: Seat, said: dict[str, Any]) -> str:
        """Take the model's turn into the rollout; answers what it reads before its next one, empty where it has ended."""
        rollout, clock = seat.rollout, Clock(seat.rollout, seat.began)
        seat.waited += time.monotonic() - seat.left_at
        clock.wait(seat.waited)
        if not rollout.turns:
            seat.heard = self._template.opening_ids(rollout.opening, rollout.tools)
        command = advance(rollout, self._spoken(seat, said) if clock.left() > 0 else TimeUp())
        if isinstance(command, CallTools) and self._tools:
            command = await run_tools(rollout, command, self._tools, clock)
        text = self._next_turn(seat, command) if isinstance(command, AskModel) else ""
        if rollout.ending is not None:
            await self._end(seat, clock)
        seat.left_at = time.monotonic()
        return text

    def _spoken(self, seat: Seat, said: dict[str, Any]) -> ModelSpoke:
        ids: list[int] = said["token_ids"].tolist()
        ended = bool(ids) and ids[-1] in self._turn_ends
        # special tokens are words here: <tool_call> is one in many tokenizers; only the end of the turn is none
        text = str(self._tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        return ModelSpoke(text, "stop" if ended else "length", seat.heard, ids, said["generation_logprobs"].tolist())

    def _next_turn(self, seat: Seat, ask: AskModel) -> str:
        """The template's own tokens around the tool results. NeMo RL encodes the text as it is, and would cut what does
        not fit and drop the rollout ungraded: so what leaves no room to speak ends here."""
        seat.heard = self._template.between_ids(ask.new_messages)
        if ask.room <= len(seat.heard):
            advance(seat.rollout, ModelSpoke("", "no_room"))
            return ""
        return self._template.between_text(ask.new_messages)

    async def _end(self, seat: Seat, clock: Clock) -> None:
        clock.stop()
        row, post = self._post.rows[seat.row_id], self._post
        grade = await asyncio.to_thread(grade_or_fail, row, seat.rollout, self._grader)
        graded = GradedRollout(row, seat.sample_index, seat.rollout, grade)
        self._ended[seat.rollout.rollout_id] = graded
        versions = msgspec.structs.replace(post.versions, checkpoint=seat.checkpoint)
        card = card_of(graded, kind=seat.kind, run_id=post.run_id, step=seat.step, versions=versions, tenant=post.tenant)
        self._recorder.record(card)

    def _reward(self, seat: Seat) -> float:
        graded = self._ended[seat.rollout.rollout_id]
        if graded.infra_failed or graded.reward is None:
            return FAILED
        return shaped(graded.reward, seat.rollout.tool_calls, self._post.call_cost) if seat.kind == "train" else graded.reward
