"""The tiny model's tokenizer: one token for whatever the model has to copy as a whole, bytes for everything else.

A name's word, a period, a metric, a figure with its unit and a path's tail are single tokens, so that copying one is one step of
attention and a tool call is six or seven tokens. Text outside this vocabulary is spelled in bytes: nothing is lost in decoding.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from agent_rft.datasets.filings import FIRST_WORDS, FISCAL_YEAR, METRICS, QUARTERS, SECOND_WORDS

PAD, TURN_END = "<|endoftext|>", "<|im_end|>"
ARGUMENT = {"search": "query", "list": "prefix", "read": "path"}
CALL_OPEN = {name: f'<tool_call>\n{{"name": "{name}", "arguments": {{"{argument}": "' for name, argument in ARGUMENT.items()}
CALL_CLOSE = '"}}\n</tool_call>'
USER_OPEN = "<|im_start|>user\n"
USER_CLOSE = "<|im_end|>\n<|im_start|>assistant\n"
RESULT_OPEN = "\n<|im_start|>user\n<tool_response>\n"
RESULT_NEXT = "\n</tool_response>\n<tool_response>\n"
RESULT_CLOSE = "\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
FRAMES = (*CALL_OPEN.values(), CALL_CLOSE, USER_OPEN, USER_CLOSE, RESULT_OPEN, RESULT_NEXT, RESULT_CLOSE)

# The separator is written before a turn, never after one, so that whatever follows a model's turn can be encoded on its own.
# `tools` are not told: the model knows its three by heart, and every token of a prompt is paid for in each rollout.
CHAT_TEMPLATE = r"""{%- for message in messages %}
{%- set after_tool = not loop.first and loop.previtem.role == 'tool' %}
{%- set before_tool = not loop.last and loop.nextitem.role == 'tool' %}
{%- if not loop.first and not (message.role == 'tool' and after_tool) %}{{- '\n' }}{%- endif %}
{%- if message.role == 'tool' %}
{{- '\n<tool_response>\n' if after_tool else '<|im_start|>user\n<tool_response>\n' }}{{- message.content }}{{- '\n</tool_response>' }}
{%- if not before_tool %}{{- '<|im_end|>' }}{%- endif %}
{%- else %}
{{- '<|im_start|>' + message.role + '\n' }}{{- message.content or '' }}
{%- for call in (message.tool_calls or []) %}
{%- set function = call.function if call.function is defined else call %}
{%- if not loop.first or message.content %}{{- '\n' }}{%- endif %}
{{- '<tool_call>\n{"name": "' + function.name + '", "arguments": ' + (function.arguments | tojson) + '}\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '\n<|im_start|>assistant\n' }}{%- endif %}"""

HEDGES = ("about ", "roughly ", "around ")
PLAIN_WORDS = (
    "What was the higher of in or as a share for what no results try fewer other words Error document at search list to find paths"
).split()


Kind = list[tuple[str, ...]]
"""Things of one kind, of each its spellings."""


def kinds() -> list[Kind]:
    """Kinds of thing (first words, periods, ...); of each kind its things; of each thing its spellings, always in the same order:
    in a question, in a title, in a path, in a filing's line.

    The model starts with the spellings of a thing close to one another, so that copying from one to the other is copying."""
    first = [(f" {word}", word, word.lower()) for word in FIRST_WORDS]
    second = [(f" {word}", word, f"-{word.lower()}") for word in SECOND_WORDS]
    quarters = [(f" Q{q} {y}", f"Q{q} {y}", f"-10q-{y}-q{q}.html") for q, y in QUARTERS]
    annual = [(f" fiscal {FISCAL_YEAR}", f"fiscal {FISCAL_YEAR}", f"-10k-{FISCAL_YEAR}.html")]
    metrics = [(f" {metric}", metric, f"{metric}: ", f"\n{metric}: ") for metric in METRICS]
    return [first, second, quarters + annual, metrics, [("filings/", "\nfilings/")], [(hedge,) for hedge in HEDGES]]


def figures() -> list[list[str]]:
    """Every figure that is one token, by kind, from the smallest to the largest."""
    return [[f"${value}M" for value in range(1000)], [f"{value / 10:.1f}%" for value in range(1000)]]


def vocabulary() -> list[str]:
    """Whatever is one token, bytes aside."""
    spelled = [form for kind in kinds() for forms in kind for form in forms]
    words = [form for word in PLAIN_WORDS for form in (word, f" {word}")]
    scores = [f" (score {hundredths / 100:.2f})\n  " for hundredths in range(101)]
    return list(dict.fromkeys([*FRAMES, *spelled, *words, *scores, *(figure for kind in figures() for figure in kind)]))


def make_tokenizer(whole: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Bytes without merges, and `whole` (the filings' vocabulary where nothing is given) as added tokens, the longest match first.

    Added tokens because transformers gives every Qwen2 model Qwen2's own pre-tokenizer, whatever its tokenizer.json says:
    what is matched before the pre-tokenizer is safe from it."""
    spelling = {byte: i for i, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=spelling, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(mark, normalized=False, special=True) for mark in (PAD, "<|im_start|>", TURN_END)])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in whole or vocabulary()])
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=PAD,
        padding_side="left",
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = CHAT_TEMPLATE
    return made


def token_id(tokenizer: PreTrainedTokenizerFast, text: str) -> int:
    """The one token that this text is."""
    (found,) = tokenizer.backend_tokenizer.encode(text).ids
    return found
