"""What things are called: OpenTelemetry's GenAI conventions, OpenInference's, and our own where neither has a word.

Each question is asked here once, in the order in which the conventions are believed, so that nothing else knows two names
for one thing.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from observability.otlp.spans import Span

Attributes = Mapping[str, Any]

OPERATION = "gen_ai.operation.name"
SPAN_KIND = "openinference.span.kind"
AGENT_NAME = ("gen_ai.agent.name", "agent.name", "graph.node.name")
CONVERSATION = ("gen_ai.conversation.id", "session.id")
PROVIDER = ("gen_ai.provider.name", "gen_ai.system", "llm.provider", "llm.system")
MODEL = ("gen_ai.response.model", "gen_ai.request.model", "llm.response.model_name", "llm.model_name", "llm.request.model_name")
TOKENS_READ = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.token_count.prompt")
TOKENS_WRITTEN = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens", "llm.token_count.completion")
SYSTEM = "gen_ai.system_instructions"
INPUT, OUTPUT = "gen_ai.input.messages", "gen_ai.output.messages"
FLAT_INPUT, FLAT_OUTPUT, FLAT_TOOLS = "llm.input_messages", "llm.output_messages", "llm.tools"
PLAIN_INPUT, PLAIN_OUTPUT = "input.value", "output.value"
DEFINITIONS = "gen_ai.tool.definitions"
FINISHED = "gen_ai.response.finish_reasons"
FLAT_FINISHED = "llm.finish_reason"
TOOL_NAME = ("gen_ai.tool.name", "tool.name")
CALL_ID = ("gen_ai.tool.call.id", "tool.id", "tool_call.id")
ARGUMENTS = ("gen_ai.tool.call.arguments", PLAIN_INPUT, "tool.parameters")
RESULT = ("gen_ai.tool.call.result", PLAIN_OUTPUT)
ERROR = "error.type"

EVALUATION = "gen_ai.evaluation.result"
EVALUATION_NAME = "gen_ai.evaluation.name"
SCORE = "gen_ai.evaluation.score.value"
LABEL = "gen_ai.evaluation.score.label"
EXPLANATION = "gen_ai.evaluation.explanation"

OURS = "rft."


class Role(Enum):
    """What a span is to a job card."""

    AGENT = "agent"
    CHAIN = "chain"
    """Work that holds other work together, without being called an agent."""
    MODEL = "model"
    TOOL = "tool"
    OTHER = "other"


ROLES = {
    "invoke_agent": Role.AGENT,
    "invoke_workflow": Role.CHAIN,
    "chat": Role.MODEL,
    "text_completion": Role.MODEL,
    "generate_content": Role.MODEL,
    "execute_tool": Role.TOOL,
    "AGENT": Role.AGENT,
    "CHAIN": Role.CHAIN,
    "LLM": Role.MODEL,
    "TOOL": Role.TOOL,
}


def role_of(span: Span) -> Role:
    """GenAI's word first: a span that carries both is OpenInference's translation of the other."""
    for name in (OPERATION, SPAN_KIND):
        word = span.attributes.get(name)
        if isinstance(word, str) and word in ROLES:
            return ROLES[word]
    return Role.OTHER


def first(attributes: Attributes, names: tuple[str, ...]) -> Any:
    """The first of these that says anything."""
    for name in names:
        value = attributes.get(name)
        if value is not None and value != "":
            return value
    return None


def words(attributes: Attributes, names: tuple[str, ...]) -> str:
    value = first(attributes, names)
    return "" if value is None else str(value)


def count(attributes: Attributes, names: tuple[str, ...]) -> int:
    """A number of tokens; what is no number counts nothing."""
    value = first(attributes, names)
    try:
        return min(max(0, int(value)), MOST) if value is not None else 0
    except (TypeError, ValueError, OverflowError):
        return 0


MOST = 2**31 - 1
"""What the store's columns of counts hold."""
