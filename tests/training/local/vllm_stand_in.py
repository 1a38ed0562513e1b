"""As much of vLLM's offline engine as our adapter uses, with its arguments and the shape of its answers, on a small model
without any cache. It samples from the same scaled distribution and, as vLLM does, includes the token that ended the turn."""

import copy
from types import SimpleNamespace

import torch


class SamplingParams:
    def __init__(self, *, temperature, max_tokens, seed, stop_token_ids, logprobs, detokenize) -> None:
        self.temperature, self.max_tokens, self.seed, self.stop_token_ids = temperature, max_tokens, seed, stop_token_ids
        assert logprobs == 0 and detokenize is False


def make(model) -> SimpleNamespace:
    """A module to put in vllm's place. `model` stands for what vLLM loads from the path."""

    class LLM:
        def __init__(self, *, model: str, dtype, enable_prefix_caching, gpu_memory_utilization, logprobs_mode) -> None:
            assert enable_prefix_caching and 0 < gpu_memory_utilization < 1 and logprobs_mode == "processed_logprobs"
            self.path = model
            self.model = StandInModel(loaded)
            self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=loaded.config.max_position_embeddings))
            self.cache_resets = 0
            LLM.made = self

        def apply_model(self, function):
            return [function(self.model)]

        def reset_prefix_cache(self) -> bool:
            self.cache_resets += 1
            return True

        def generate(self, prompts, sampling_params, use_tqdm):
            assert not use_tqdm
            return [SimpleNamespace(outputs=[self._one(p["prompt_token_ids"], s)]) for p, s in zip(prompts, sampling_params, strict=True)]

        @torch.no_grad()
        def _one(self, prompt, params):
            source, ids, at = torch.Generator().manual_seed(params.seed), [], []
            while len(ids) < params.max_tokens and not (ids and ids[-1] in params.stop_token_ids):
                logits = self.model.inner(torch.tensor([prompt + ids])).logits[0, -1] / (params.temperature or 1.0)
                token = int(torch.multinomial(logits.softmax(-1), 1, generator=source) if params.temperature else logits.argmax())
                ids.append(token)
                at.append({token: SimpleNamespace(logprob=float(logits.log_softmax(-1)[token]))})
            return SimpleNamespace(token_ids=ids, logprobs=at)

    loaded = model
    return SimpleNamespace(LLM=LLM, SamplingParams=SamplingParams)


class StandInModel:
    def __init__(self, model) -> None:
        self.inner = copy.deepcopy(model)

    def load_weights(self, weights) -> set:
        """By name, every one of them known; what is not named stays."""
        own = dict(self.inner.named_parameters())
        with torch.no_grad():
            for name, weight in weights:
                own[name].copy_(weight)
        return set(own)
