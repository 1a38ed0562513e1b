"""What the model copies is one token; what it does not know is spelled; nothing is lost."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, Qwen2Config

from agent_rft.training.local.tiny.tokenizer import (
    CALL_CLOSE,
    CALL_OPEN,
    RESULT_CLOSE,
    RESULT_NEXT,
    RESULT_OPEN,
    USER_CLOSE,
    USER_OPEN,
    make_tokenizer,
)

TOKENIZER = make_tokenizer()
RESULT = (
    "filings/crown-optics-10q-2025-q3.html (score 0.62)\n  capital spending: $837M\n"
    "filings/crown-optics-10k-2024.html (score 0.57)\n  gross margin: 9.4%"
)
QUESTION = {"role": "user", "content": "What was the capital spending of Crown Optics in Q3 2025?"}


def call(name, **arguments):
    return {"type": "function", "id": "1", "function": {"name": name, "arguments": arguments}}


def tool(content):
    return {"role": "tool", "content": content, "tool_call_id": "1"}


def pieces(text):
    return [TOKENIZER.decode([i]) for i in TOKENIZER(text)["input_ids"]]


def rendered(messages, **options):
    return TOKENIZER.apply_chat_template(messages, tokenize=False, **options)


def test_a_line_of_a_filing_is_two_tokens_and_a_search_result_seven():
    assert pieces("\nfree cash flow: $99M\ngross margin: 31.0%") == ["\nfree cash flow: ", "$99M", "\ngross margin: ", "31.0%"]
    assert pieces(RESULT)[:7] == ["filings/", "crown", "-optics", "-10q-2025-q3.html", " (score 0.62)\n  ", "capital spending: ", "$837M"]


def test_a_question_is_a_token_a_word_with_its_names_whole():
    assert pieces("Crown Optics fiscal 2024: what was the net margin?") == [
        "Crown",
        " Optics",
        " fiscal 2024",
        ":",
        " what",
        " was",
        " the",
        " net margin",
        "?",
    ]


def test_a_call_is_its_frame_around_the_argument():
    text = '<tool_call>\n{"name": "read", "arguments": {"path": "filings/crown-optics-10k-2024.html"}}\n</tool_call>'
    assert pieces(text) == [CALL_OPEN["read"], "filings/", "crown", "-optics", "-10k-2024.html", CALL_CLOSE]


@given(st.text() | st.sampled_from([RESULT, "$1,234M or 113.4%", "Crowned Q3 20255", "<tool_call>\n{"]))
def test_decoding_gives_back_any_text(text):
    text = unicodedata.normalize("NFC", text)  # transformers gives Qwen2 models this normaliser
    assert TOKENIZER.decode(TOKENIZER(text)["input_ids"]) == text


def test_auto_tokenizer_loads_the_same_tokens_beside_a_qwen2_config(tmp_path):
    """transformers swaps a Qwen2 model's pre-tokenizer for Qwen2's own; a saved model must not notice."""
    Qwen2Config().save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = rendered(
        [QUESTION, {"role": "assistant", "content": "", "tool_calls": [call("search", query="Crown Optics revenue")]}, tool(RESULT)]
    )
    assert loaded(text)["input_ids"] == TOKENIZER(text)["input_ids"]
    assert loaded.eos_token == "<|im_end|>"
    assert loaded.chat_template == TOKENIZER.chat_template


def test_the_template_writes_calls_and_results_as_the_frames_do():
    messages = [
        QUESTION,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [call("search", query="Crown Optics"), call("list", prefix="filings/crown-optics")],
        },
        tool("first"),
        tool("second"),
    ]
    assert rendered(messages, add_generation_prompt=True) == (
        f"{USER_OPEN}{QUESTION['content']}{USER_CLOSE}"
        f"{CALL_OPEN['search']}Crown Optics{CALL_CLOSE}\n{CALL_OPEN['list']}filings/crown-optics{CALL_CLOSE}<|im_end|>"
        f"{RESULT_OPEN}first{RESULT_NEXT}second{RESULT_CLOSE}"
    )


def test_the_template_takes_a_system_message_and_tells_no_tools():
    spec = {"type": "function", "function": {"name": "search", "parameters": {}}}
    text = rendered([{"role": "system", "content": "Be brief."}, QUESTION], tools=[spec], add_generation_prompt=True)
    assert text == f"<|im_start|>system\nBe brief.<|im_end|>\n{USER_OPEN}{QUESTION['content']}{USER_CLOSE}"


@pytest.mark.parametrize("said", ["$837M", "about 9.4%", "", "a plain reply"])
def test_what_follows_a_turn_encodes_alike_alone_and_in_the_whole(said):
    """The engine adds only the tokens after the model's own end of turn; they must be those of the whole conversation."""
    turn = {"role": "assistant", "content": said, "tool_calls": [call("read", path="filings/crown-optics-10k-2024.html")]}
    whole = rendered([QUESTION, turn, tool(RESULT), tool("Crown Optics fiscal 2024")], add_generation_prompt=True)
    before, end, after = whole.rpartition("</tool_call><|im_end|>")
    encode = lambda text: TOKENIZER(text)["input_ids"]  # noqa: E731
    assert encode(whole) == encode(before + end) + encode(after)
    assert encode(before + end)[-1] == TOKENIZER.eos_token_id
