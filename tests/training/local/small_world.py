"""A world small enough for tests: a model of a few thousand random weights whose vocabulary makes it call a tool or answer
by chance, a tool that counts letters, a grader that likes the letter a. Used by the tests and by the processes they kill."""

import hashlib

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from agent_rft.contracts.errors import InfraError
from agent_rft.contracts.events import AskModel
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.jobcards import Versions
from agent_rft.contracts.messages import Message, ToolSpec
from agent_rft.contracts.rollouts import Limits, ToolResult
from agent_rft.contracts.rows import Row
from agent_rft.contracts.training import Algorithm, GuardLimits, Model, TrainingJob
from agent_rft.training.local.sampler import LocalSampler
from agent_rft.training.pretrained import template_of

CALLS = tuple(f'<tool_call>{{"name": "look", "arguments": {{"n": {n}}}}}</tool_call>' for n in range(4))
SPECIAL = ("<|end|>", "<|start|>", "<pad>", *CALLS)
LETTERS = tuple("?abcdefgh\n")
VOCABULARY = len(SPECIAL) + len(LETTERS)
TEMPLATE = """\
{%- for message in messages %}
{%- if message.role == 'tool' %}
{%- if messages[loop.index0 - 1].role != 'tool' %}{{- '<|start|>' }}{%- endif %}
{{- 'd' + message.content + 'e' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|end|>\n' }}{%- endif %}
{%- else %}{{- '<|start|>' + message.content + '<|end|>\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>a\n' }}{%- endif %}"""


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *LETTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(".|\n"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<pad>", unk_token="?")
    fast.add_special_tokens({"additional_special_tokens": ["<|start|>", *CALLS]})
    fast.chat_template = TEMPLATE
    return fast


def make_model(kind: str = "qwen2", *, key_value_heads: int = 2, tied: bool = True, layers: int = 2, seed: int = 0, **more):
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        kind,
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=key_value_heads,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        initializer_range=0.3,
        eos_token_id=0,
        bos_token_id=None,
        pad_token_id=2,
        **more,
    )
    return AutoModelForCausalLM.from_config(config).eval()


def save_base(folder) -> str:
    make_model(seed=5).save_pretrained(folder)  # this one calls its tool more often than most
    make_tokenizer().save_pretrained(folder)
    return str(folder)


LOOK = ToolSpec("look", "Looks.", {"type": "object", "properties": {}})


def make_rows(count: int, start: int = 0) -> tuple[Row, ...]:
    return tuple(Row(f"row-{i}", "abcdefgh"[i % 8] * (1 + i % 3), "a", tools=(LOOK,)) for i in range(start, start + count))


class LikesA:
    """The share of the answer's letters that are a."""

    ref = GraderRef("likes_a", "1", "0" * 16)

    def grade(self, item, sample) -> Grade:
        text = str(sample.get("output_text") or "")
        return Grade(self.ref, text.count("a") / len(text) if text else 0.0)


class Look:
    """Answers with letters that depend on nothing but how often it was asked within the rollout; fails when told to."""

    def __init__(self, fails=lambda number: False) -> None:
        self._fails = fails
        self.calls = 0

    async def call(self, rollout_id, call) -> ToolResult:
        self.calls += 1
        if self._fails(self.calls):
            raise InfraError("tool:look", "503 after 3 attempts")
        return ToolResult(call.call_id, "bcd"[: 1 + len(call.call_id) % 3])


class Cards:
    """A recorder that keeps cards in a list."""

    def __init__(self) -> None:
        self.cards, self.flushed = [], 0

    def record(self, card) -> None:
        self.cards.append(card)

    def flush(self, timeout: float = 60.0) -> None:
        self.flushed += 1


def make_job(base: str, run_dir, **changes) -> TrainingJob:
    """Changes to the job's own fields, to the algorithm's (algorithm={...}) or to the guards' (guards={...})."""
    algorithm = {
        "group_size": 4,
        "batch_size": 3,
        "epochs": 1,
        "learning_rate": 1e-2,
        "warmup_steps": 2,
        "kl_coef": 0.01,
        "clip_ratio": 0.2,
        "call_cost": 0.02,
        "temperature": 1.0,
        "max_grad_norm": 1.0,
        "micro_batch_tokens": 256,
    } | changes.pop("algorithm", {})
    guards = {"max_infra_rate": 0.01, "infra_window_calls": 10_000, "max_kl": 1e9} | changes.pop("guards", {})
    settings = {
        "run_id": "run",
        "run_dir": str(run_dir),
        "model": Model(path=base, threads=1, **changes.pop("model", {})),
        "limits": Limits(max_turns=4, max_tool_calls=4, max_trajectory_tokens=96, max_turn_tokens=12),
        "train_rows": make_rows(9),
        "val_rows": make_rows(4, 100),
        "val_samples": 2,
        "evaluate_every": 2,
        "checkpoint_every": 1,
        "keep_checkpoints": 2,
        "seed": 7,
        "resume": False,
        "versions": Versions(code="test", checkpoint="base"),
        "tenant": "test",
        "rollouts_in_flight": 64,
    } | changes
    return TrainingJob(algorithm=Algorithm(**algorithm), guards=GuardLimits(**guards), **settings)


def digest(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_killable_job(base, run_dir, resume: bool) -> TrainingJob:
    """Six updates, checkpoints after 2, 4 and 6, validation at 0, 3 and 6."""
    return make_job(
        base,
        run_dir,
        algorithm={"epochs": 2, "learning_rate": 1e-3},
        resume=resume,
        checkpoint_every=2,
        evaluate_every=3,
        keep_checkpoints=9,
    )


# --- asking samplers -----------------------------------------------------------------------------------------------


def local_sampler(model, temperature=1.0, **options) -> LocalSampler:
    tokenizer = make_tokenizer()
    template, ends = template_of(tokenizer, model.generation_config)
    return LocalSampler(model, tokenizer, template, ends, temperature=temperature, checkpoint=lambda: "test", **options)


def opening(rollout_id, seed, words="ab", max_tokens=40, room=400) -> AskModel:
    message = (Message("user", words),)
    return AskModel(rollout_id, 0, seed, message, message, (LOOK,), max_tokens, room)


def next_turn(ask: AskModel, results=("b",), max_tokens=40) -> AskModel:
    messages = tuple(Message("tool", result, call_id=f"c{i}") for i, result in enumerate(results))
    return AskModel(ask.rollout_id, ask.turn + 1, ask.seed, messages, (*ask.conversation, *messages), ask.tools, max_tokens, ask.room)


async def play(sampler, asks, turns, results=lambda row, turn: ("b" * (1 + row % 3),), leaves=lambda row, turn: False):
    """Several turns; rows that did not end their turn, or that leave, are not asked again. Tokens and log-probs by row."""
    told = {ask.rollout_id: [] for ask in asks}
    for turn in range(turns):
        if not asks:
            break
        replies = await sampler.sample(asks)
        for ask, reply in zip(asks, replies, strict=True):
            told[ask.rollout_id].append(reply)
        asks = [
            next_turn(ask, results(int(ask.rollout_id), turn))
            for ask, reply in zip(asks, replies, strict=True)
            if reply.stop == "stop" and not leaves(int(ask.rollout_id), turn)
        ]
    return told


def plain_logprobs(model, turns, temperature=1.0) -> list[float]:
    """Each sampled token's log-probability by one forward pass over the finished sequence, alone and without a cache."""
    ids = [token for turn in turns for token in turn.context_ids + turn.sampled_ids]
    sampled = [is_sampled for turn in turns for is_sampled in [False] * len(turn.context_ids) + [True] * len(turn.sampled_ids)]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1].float() / temperature
    every = torch.log_softmax(logits, -1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
    return [logprob for logprob, is_sampled in zip(every, sampled[1:], strict=True) if is_sampled]
