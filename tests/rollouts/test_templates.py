"""The template's tokens around the model's own: which they are, that they never include the model's end of turn, and what
is said when a template cannot serve."""

import jinja2
import pytest

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.messages import Message, ToolCall, ToolSpec
from agent_rft.rollouts.templates import ChatTemplate

# The parts of Qwen2.5's template that matter here: results of one parallel turn share a user turn.
QWEN = """\
{%- if tools %}{{- '<|im_start|>system\n# Tools\n' }}
{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}{{- '<|im_end|>\n' }}{%- endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{%- if loop.index0 == 0 or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
{{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\n' }}{%- endif %}
{%- else %}
{{- '<|im_start|>' + message.role + '\n' + message.content }}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}{{- call.function.arguments | tojson }}{{- '}\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""

# The parts of Llama 3.3's: a call is bare JSON, one a turn; a result is its own turn; it tells the model the day.
LLAMA = """\
{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string | default('none') + '<|eot_id|>' }}
{%- for message in messages %}
{%- if message.tool_calls is defined %}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "' + message.tool_calls[0].function.name + '", "parameters": ' }}
{{- message.tool_calls[0].function.arguments | tojson }}{{- '}<|eot_id|>' }}
{%- elif message.role == 'tool' %}
{{- '<|start_header_id|>ipython<|end_header_id|>\n\n' }}{{- message.content | tojson }}{{- '<|eot_id|>' }}
{%- else %}{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content + '<|eot_id|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"""


def render_with(source):
    template = jinja2.Environment().from_string(source)
    return lambda messages, tools, add_generation_prompt: template.render(
        messages=messages, tools=tools, add_generation_prompt=add_generation_prompt
    )


def letters(text: str) -> list[int]:
    return [ord(c) for c in text]


def text_of(ids: list[int]) -> str:
    return "".join(map(chr, ids))


def chat_template(source=QWEN, ends=("<|im_end|>",)) -> ChatTemplate:
    return ChatTemplate(render_with(source), letters, ends)


def test_the_opening_is_the_conversation_with_tools_up_to_the_models_turn():
    ids = chat_template().opening_ids([Message("user", "How much?")], [ToolSpec("search")])
    assert text_of(ids) == (
        '<|im_start|>system\n# Tools\n{"function": {"name": "search", "parameters": {}}, "type": "function"}<|im_end|>\n'
        "<|im_start|>user\nHow much?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_an_opening_may_hold_earlier_turns_with_calls():
    call = ToolCall("call-1", "search", {"query": "x"})
    said = [Message("user", "a"), Message("assistant", "", (call,)), Message("tool", "found", call_id="call-1")]
    assert (
        '<tool_call>\n{"name": "search", "arguments": {"query": "x"}}\n</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\nfound'
    ) in text_of(chat_template().opening_ids(said, []))


def test_between_begins_right_after_the_models_own_end_of_turn():
    assert text_of(chat_template().between_ids([Message("tool", "$842M")])) == (
        "\n<|im_start|>user\n<tool_response>\n$842M\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


def test_results_of_a_parallel_turn_share_one_user_turn():
    text = text_of(chat_template().between_ids([Message("tool", "one"), Message("tool", "two")]))
    assert text.count("<|im_start|>user") == 1
    assert text.index("one") < text.index("two")


def test_whichever_end_the_template_writes_is_cut_off():
    text = text_of(chat_template(ends=("<|endoftext|>", "<|im_end|>")).between_ids([Message("tool", "x")]))
    assert text.startswith("\n<|im_start|>user")


def test_llamas_template_serves_with_calls_as_bare_json():
    text = text_of(chat_template(LLAMA, ends=("<|eot_id|>", "<|eom_id|>")).between_ids([Message("tool", "found")]))
    assert text == ('<|start_header_id|>ipython<|end_header_id|>\n\n"found"<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n')


def test_the_model_may_say_what_the_template_says():
    """Tool results that look like template tokens stay where they are: only the first end after the sentinel is cut."""
    text = text_of(chat_template().between_ids([Message("tool", "a<|im_end|>b")]))
    assert "a<|im_end|>b" in text


@pytest.mark.parametrize(
    ("source", "what"),
    [
        (QWEN.replace("'\n<tool_response>\n' + message.content", "'\n<tool_response>\n'"), "leaves tool results out"),
        (QWEN.replace("message.content }}\n{%- for call", "message.content + '!' }}\n{%- for call"), "does not end the model's turn"),
        (QWEN.replace("{%- if add_generation_prompt %}", "{%- if false %}"), "hand the turn back"),
        (QWEN.replace("message.role == 'tool'", "message.role.nothing.at_all"), "does not render tool messages"),
        (QWEN.replace("'<tool_call>\n{", "'[TOOL_CALLS]{").replace("\n</tool_call>'", "'"), r"not read here: '\[TOOL_CALLS\]"),
        (QWEN.replace("call.function.arguments | tojson", "call.function.arguments.x.y"), "does not render tool calls"),
    ],
)
def test_a_template_that_cannot_serve_is_refused_at_once_with_the_cure(source, what):
    with pytest.raises(UserError, match=what) as caught:
        chat_template(source)
    assert "Qwen2.5-Instruct" in caught.value.cure


def test_rendering_is_done_once_for_the_same_words():
    rendered = []

    def render(messages, tools, add_generation_prompt):
        rendered.append(messages)
        return render_with(QWEN)(messages, tools, add_generation_prompt)

    template = ChatTemplate(render, letters, ("<|im_end|>",))
    before = len(rendered)
    first, second = (template.between_ids([Message("tool", "same")]) for _ in range(2))
    assert first == second and first is not second
    assert len(rendered) == before + 1
