"""The same sampler port on vLLM's offline engine, for one GPU: its kernels, its paging, our tokens.

It holds each conversation's ids and sends them whole; prefix caching makes a later turn cost only its new tokens. Weights
are handed over in process after each update. Held to the same tests as our own sampler, against a stand-in for vLLM: it
has NOT yet run on a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.events import AskModel, InfraFailed, ModelSpoke
from agent_rft.rollouts.seeds import derive_seed
from agent_rft.rollouts.templates import ChatTemplate
from agent_rft.training.turns import Ready, Row, ready, spoken

MEMORY_SHARE = 0.4
"""Of the GPU's memory; the rest is the trainer's."""

Weights = Callable[[], Iterable[tuple[str, Tensor]]]
"""Names as a plain checkpoint has them, adapters already added in."""


class VllmSampler:
    """vLLM behind the sampler port."""

    batched = True

    def __init__(
        self,
        path: str,
        tokenizer: PreTrainedTokenizerBase,
        template: ChatTemplate,
        turn_ends: Sequence[int],
        *,
        temperature: float,
        checkpoint: Callable[[], str],
        dtype: str,
        weights: Weights | None = None,
    ) -> None:
        """`path` is loaded first; `weights`, where given, replace it now and whenever they change."""
        vllm = _import_vllm()
        self._params = vllm.SamplingParams
        self._llm = vllm.LLM(
            model=path,
            dtype=dtype,
            enable_prefix_caching=True,
            gpu_memory_utilization=MEMORY_SHARE,
            logprobs_mode="processed_logprobs",  # of the distribution sampled from, temperature included
        )
        self._longest = int(self._llm.llm_engine.model_config.max_model_len)
        self._tokenizer, self._template, self._turn_ends = tokenizer, template, tuple(turn_ends)
        self._temperature, self._checkpoint, self._weights = temperature, checkpoint, weights
        self._rows: dict[str, Row] = {}
        self.weights_changed()

    @property
    def checkpoint(self) -> str:
        return self._checkpoint()

    def weights_changed(self) -> None:
        """Take over the trained weights; what was cached under the old ones is worth nothing any more."""
        if self._weights is None:
            return
        weights = list(self._weights())
        self._llm.apply_model(lambda model: model.load_weights(weights) and None)
        self._llm.reset_prefix_cache()

    async def sample(self, asks: Sequence[AskModel]) -> Sequence[ModelSpoke | InfraFailed]:
        looked_at = [ready(ask, self._rows.get(ask.rollout_id), self._template, self._longest) for ask in asks]
        wanted = [one for one in looked_at if isinstance(one, Ready)]
        self._rows = {one.ask.rollout_id: one.row for one in wanted}
        replies = iter(self._speak(wanted))
        return [next(replies) if isinstance(one, Ready) else one for one in looked_at]

    def _speak(self, wanted: Sequence[Ready]) -> list[ModelSpoke | InfraFailed]:
        if not wanted:
            return []
        prompts = [{"prompt_token_ids": one.row.ids + one.context} for one in wanted]
        try:
            outputs = self._llm.generate(prompts, [self._asked_as(one) for one in wanted], use_tqdm=False)
        except Exception as error:  # an engine of somebody else's: whatever it is, it is not the model's fault
            return [InfraFailed("model", f"vLLM: {type(error).__name__}: {error}")] * len(wanted)
        return [self._reply(one, output.outputs[0]) for one, output in zip(wanted, outputs, strict=True)]

    def _asked_as(self, one: Ready) -> Any:
        return self._params(
            temperature=self._temperature,
            max_tokens=one.budget,
            seed=derive_seed(one.ask.seed, "turn", one.ask.turn),
            stop_token_ids=list(self._turn_ends),
            logprobs=0,  # of the sampled token alone
            detokenize=False,
        )

    def _reply(self, one: Ready, said: Any) -> ModelSpoke | InfraFailed:
        ids = [int(token) for token in said.token_ids]
        if not ids or said.logprobs is None:
            return InfraFailed("model", "vLLM answered without tokens or without their log-probabilities")
        logprobs = [float(at[token].logprob) for token, at in zip(ids, said.logprobs, strict=True)]
        return spoken(one, ids, logprobs, self._tokenizer, self._turn_ends)


def _import_vllm() -> Any:
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # weights are handed over within the process
    try:
        import vllm  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            "model.sampler=vllm, but vLLM is not installed",
            "install the extra: pip install 'agent-rft[vllm]'; or use model.sampler=batched",
        ) from error
    return vllm
