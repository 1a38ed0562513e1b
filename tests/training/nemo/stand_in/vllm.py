"""As much of vLLM's offline engine as scoring prompts needs, with its arguments and the shape of its answers, on whatever
small Hugging Face model lies at the path. Like vLLM it names the likeliest token beside the prompt's own where it is another,
and knows nothing of the first token."""

from types import SimpleNamespace

import torch
from transformers import AutoModelForCausalLM


class SamplingParams:
    def __init__(self, *, max_tokens, prompt_logprobs, temperature, detokenize) -> None:
        assert max_tokens == 1 and prompt_logprobs == 0 and not detokenize


class LLM:
    def __init__(
        self,
        *,
        model,
        dtype,
        quantization,
        max_model_len,
        max_num_batched_tokens,
        enable_chunked_prefill,
        enable_prefix_caching,
        gpu_memory_utilization,
        max_num_seqs,
        enforce_eager,
    ) -> None:
        assert dtype == "bfloat16" and quantization in (None, "fp8") and 0 < gpu_memory_utilization < 1
        assert enable_chunked_prefill and not enable_prefix_caching and max_num_batched_tokens > 0
        assert enforce_eager and max_num_seqs > 0
        self.longest = max_model_len
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()

    @torch.no_grad()
    def generate(self, prompts, sampling_params, use_tqdm):
        assert isinstance(sampling_params, SamplingParams) and not use_tqdm
        return [self._one(prompt["prompt_token_ids"]) for prompt in prompts]

    def _one(self, ids):
        assert len(ids) < self.longest, "no room for the token that must follow"
        every = self.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        told: list = [None]
        for before, token in enumerate(ids[1:]):
            named = {int(every[before].argmax()), token}
            told.append({one: SimpleNamespace(logprob=float(every[before, one])) for one in sorted(named)})
        return SimpleNamespace(prompt_logprobs=told)
