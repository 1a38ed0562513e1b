"""One line of JSONL to a row and back: this project's shape, and OpenAI's RFT shape unchanged.

OpenAI's rows have `messages` in place of `prompt`. There `messages` and `tools` are reserved and every other key belongs to
the user: one that happens to be called like ours but does not fit (an `expected` that is a text, say) stays what it is.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

import msgspec

from agent_rft.contracts.errors import Fault, did_you_mean
from agent_rft.contracts.messages import Message, Role, ToolCall, ToolSpec
from agent_rft.contracts.rows import Expected, Row

SHAPE = 'a row is {"id", "prompt", "reference_answer", "expected"?, "tools"?, "metadata"?}'
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
CALL = '{"id": text, "type": "function", "function": {"name": text, "arguments": text}}'
LAST = {"user": "user's question", "assistant": "assistant's answer"}
EXPECTED_KEYS = frozenset(Expected.__struct_fields__)
Found = tuple[str, str]
"""What is wrong, and the cure."""


class Line(msgspec.Struct, frozen=True):
    """One line as it was read. A line that is wrong has faults and no row, but may still have a value to look into."""

    where: str
    value: dict[str, Any] | None = None
    """Only where there is no row: a hundred thousand lines held twice would fill the memory."""
    row: Row | None = None
    faults: tuple[Fault, ...] = ()


def parse_line(line: bytes, where: str, default_id: str) -> Line:
    value = json_object(line, where, SHAPE)
    if isinstance(value, Fault):
        return Line(where, faults=(value,))
    row, found = row_of(value, default_id)
    return Line(where, None if row else value, row, tuple(Fault(where, what, cure) for what, cure in found))


def json_object(line: bytes, where: str, shape: str) -> dict[str, Any] | Fault:
    """One line's object. `shape` says what it should look like."""
    try:
        value = json.loads(line.decode("utf-8"))
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")  # NaN, 1e400, half a surrogate pair: not to be written again
    except json.JSONDecodeError as error:
        return Fault(where, f"column {error.colno}: broken JSON: {error.msg}", "one JSON object a line")
    except UnicodeDecodeError as error:
        return Fault(where, f"byte {error.start + 1} (0x{line[error.start]:02x}) is not UTF-8", "save the file as UTF-8")
    except (ValueError, RecursionError) as error:
        return Fault(where, f"not usable as JSON: {error}", "one JSON object a line")
    if not isinstance(value, dict):
        return Fault(where, f"not an object but {_kind(value)}", shape)
    return cast(dict[str, Any], value)


def row_of(value: dict[str, Any], default_id: str) -> tuple[Row | None, list[Found]]:
    """The row, or everything that is wrong with it. `default_id` is the id of an OpenAI row that has none."""
    chat = "messages" in value
    checks = {"id": _id, "prompt": _prompt, "reference_answer": _reference, "expected": _expected, "metadata": _metadata}
    known: dict[str, Any] = {}
    extra = {key: held for key, held in value.items() if key not in checks and key not in ("messages", "tools")}
    found = [] if chat else _missing(value, extra)
    for key, check in checks.items():
        if key not in value:
            continue
        wrong = check(value[key])
        if not wrong:
            known[key] = value[key]
        elif chat:
            extra[key] = value[key]
        else:
            found += wrong
    found += _tools(value.get("tools"))
    found += conversation(value["messages"], "user")[1] if chat else []
    return (None, found) if found else (_built(known, value, extra, default_id), [])


def _built(known: dict[str, Any], value: dict[str, Any], extra: dict[str, Any], default_id: str) -> Row:
    messages = tuple(_message(m) for m in value.get("messages") or ())
    more = {"messages": value["messages"]} if messages and value["messages"] != [_openai_message(m) for m in messages] else {}
    tools, more_of_tools = _read_tools(json.dumps(value["tools"])) if "tools" in value else ((), {})
    return Row(
        id=known.get("id", default_id),
        prompt=known["prompt"] if "prompt" in known else messages[-1].content,
        reference_answer=known.get("reference_answer"),
        expected=msgspec.convert(known.get("expected", {}), Expected),
        tools=tools,
        metadata=known.get("metadata", {}),
        messages=messages,
        extra=extra,
        as_given=more | more_of_tools,
    )


@lru_cache(256)
def _read_tools(tools: str) -> tuple[tuple[ToolSpec, ...], dict[str, Any]]:
    """The tools, and for `as_given` what the file says, where that is more. Rows that are told of the same tools share both: they
    are most of a row's bytes."""
    given = json.loads(tools)
    specs = tuple(ToolSpec.from_openai(tool) for tool in given or ())
    return specs, {} if specs and [tool.as_openai() for tool in specs] == given else {"tools": given}


def encode_row(row: Row) -> str:
    """One line, always the same for the same row; reading it gives the row again."""
    return json.dumps(_value_of(row) | _in_its_words(row), ensure_ascii=False, allow_nan=False)


def _value_of(row: Row) -> dict[str, Any]:
    value: dict[str, Any] = {"id": row.id}
    if not row.messages or row.prompt != row.messages[-1].content:
        value["prompt"] = row.prompt
    if row.messages:
        value["messages"] = [_openai_message(m) for m in row.messages]
    if row.reference_answer is not None:
        value["reference_answer"] = row.reference_answer
    expected = msgspec.to_builtins(row.expected)
    value |= {"expected": expected} if expected else {}
    value |= {"tools": [tool.as_openai() for tool in row.tools]} if row.tools else {}
    value |= {"metadata": row.metadata} if row.metadata else {}
    return {**value, **row.extra}


def _in_its_words(row: Row) -> dict[str, Any]:
    """What the file said, but for what has been changed since."""
    read: dict[str, Callable[[Any], bool]] = {
        "messages": lambda given: tuple(map(_message, given)) == row.messages,
        "tools": lambda given: _read_tools(json.dumps(given))[0] == row.tools,
    }
    return {key: given for key, given in row.as_given.items() if read[key](given)}


def encode_openai_row(row: Row) -> str:
    """One line of OpenAI's RFT shape: `messages` and `tools` are reserved, what else the row holds is item.* to a grader."""
    value = {"messages": [_openai_message(m) for m in row.opening()]} | _value_of(row) | _in_its_words(row)
    if not row.messages:
        del value["prompt"]  # it is the one message
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def dataset_hash(rows: Iterable[Row]) -> str:
    """Over every row in order, as model and grader see it, whatever the order of the keys within a row."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(_value_of(row), ensure_ascii=False, allow_nan=False, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()[:16]


def version_of(splits: Mapping[str, Sequence[Row]]) -> str:
    """The version of a data set: which rows are in which split. What runs and cards name."""
    body = json.dumps({split: dataset_hash(rows) for split, rows in splits.items()}, sort_keys=True)
    return hashlib.sha256(body.encode()).hexdigest()[:16]


# --- what can be wrong with each key ------------------------------------------------------------------------------------


def _missing(value: dict[str, Any], unread: Iterable[str]) -> list[Found]:
    near = {key: difflib.get_close_matches(key, unread, n=1) for key in ("id", "prompt", "reference_answer") if key not in value}
    return [(f"missing {key}", f"is '{names[0]}' meant to be it?" if names else SHAPE) for key, names in near.items()]


def _id(value: object) -> list[Found]:
    return (
        [] if isinstance(value, str) and value.strip() else [(f"id is {_kind(value)}", "a text that is not empty, unique over all files")]
    )


def _prompt(value: object) -> list[Found]:
    return [] if isinstance(value, str) and value.strip() else [(f"prompt is {_kind(value)}", "a text that is not empty")]


def _reference(value: object) -> list[Found]:
    empty = value is None or (isinstance(value, str) and not value.strip())
    return [(f"reference_answer is {_kind(value)}", "what a right answer says")] if empty else []


def _metadata(value: object) -> list[Found]:
    return [] if isinstance(value, dict) else [(f"metadata is {_kind(value)}", 'an object, like {"task_type": "...", "difficulty": "..."}')]


def _expected(value: object) -> list[Found]:
    if not isinstance(value, dict):
        return [(f"expected is {_kind(value)}", "an object")]
    expected = cast(dict[str, Any], value)
    found = [(f"expected has an unknown key '{key}'", did_you_mean(key, EXPECTED_KEYS)) for key in expected if key not in EXPECTED_KEYS]
    tolerance, paths, tools = expected.get("tolerance_rel"), expected.get("evidence_path"), expected.get("must_use_tools", [])
    if tolerance is not None and (isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 <= tolerance <= 1):
        found.append((f"expected.tolerance_rel is {tolerance!r}", "a number from 0 to 1, like 0.001"))
    if paths is not None and not isinstance(paths, str) and not _texts(paths):
        found.append((f"expected.evidence_path is {_kind(paths)}", "a path, or a list of paths"))
    if not _texts(tools):
        found.append((f"expected.must_use_tools is {_kind(tools)}", "a list of tool names"))
    return found


def _tools(value: object) -> list[Found]:
    if value is None:
        return []
    if not isinstance(value, list):
        return [(f"tools is {_kind(value)}", "a list of tools in OpenAI's shape")]
    found: list[Found] = []
    for at, tool in enumerate(cast(list[Any], value)):
        body = cast(dict[str, Any], tool).get("function", tool) if isinstance(tool, dict) else None
        fields = cast(dict[str, Any], body) if isinstance(body, dict) else {}
        shaped = isinstance(fields.get("name"), str) and fields["name"] and isinstance(fields.get("parameters"), dict | None)
        if not shaped or not isinstance(fields.get("description"), str | None):
            found.append((f"tools[{at}] is not a tool", '{"type": "function", "function": {"name", "description"?, "parameters"}}'))
    return found


def conversation(value: object, last: Role) -> tuple[tuple[Message, ...], list[Found]]:
    """What `messages` holds, where nothing is wrong with it; it ends with the `last` one's words."""
    if not isinstance(value, list) or not value:
        return (), [(f"messages is {_kind(value)}", f"a list of messages that ends with the {last}'s")]
    read: list[Message] = []
    found: list[Found] = []
    for at, message in enumerate(cast(list[Any], value)):
        try:
            read.append(_message(message))
        except _Unreadable as error:
            found.append((f"messages[{at}]{error.what}", error.cure))
    given = cast(dict[str, Any], value[-1])
    if not found and (read[-1].role != last or not read[-1].content.strip()):
        what = "empty" if read[-1].role == last else f"the {given['role']}'s"
        found.append((f"the last message is {what}", f"end with the {LAST[last]}"))
    return (() if found else tuple(read)), found


# --- messages -----------------------------------------------------------------------------------------------------------


class _Unreadable(Exception):
    def __init__(self, what: str, cure: str) -> None:
        super().__init__(what)
        self.what, self.cure = what, cure


def _message(value: object) -> Message:
    message = _object(value, "", f'{{"role": {" | ".join(ROLES)}, "content": text}}')
    role, call_id, calls = message.get("role"), message.get("tool_call_id"), message.get("tool_calls")
    if not isinstance(role, str) or role not in ROLES:
        said = repr(role) if isinstance(role, str) else _kind(role)
        raise _Unreadable(f".role is {said}", f"one of: {', '.join(ROLES)}")
    if not isinstance(calls, list | None):
        raise _Unreadable(f".tool_calls is {_kind(calls)}", "a list of calls")
    read = tuple(_tool_call(call, f".tool_calls[{at}]") for at, call in enumerate(cast(list[Any], calls or ())))
    if not isinstance(call_id, str | None):
        raise _Unreadable(f".tool_call_id is {_kind(call_id)}", "the id of the call that it answers")
    return Message(cast(Role, ROLES[role]), _content(message), read, call_id or "")


def _tool_call(value: object, where: str) -> ToolCall:
    call = _object(value, where, CALL)
    called = _object(call.get("function"), f"{where}.function", CALL)
    for key, held in ((".id", call.get("id")), (".function.name", called.get("name"))):
        if not isinstance(held, str):
            raise _Unreadable(f"{where}{key} is {_kind(held)}", CALL)
    return ToolCall(call["id"], called["name"], _arguments(called.get("arguments"), f"{where}.function.arguments"))


def _arguments(value: object, where: str) -> dict[str, Any]:
    """A call without any may come with an empty text."""
    cure = 'an object\'s JSON in a text, like "{\\"query\\": \\"x\\"}"'
    if not isinstance(value, str):
        raise _Unreadable(f"{where} is {_kind(value)}", cure)
    try:
        arguments = json.loads(value) if value.strip() else {}
        json.dumps(arguments, ensure_ascii=False, allow_nan=False).encode()  # it is written again
    except (ValueError, RecursionError) as error:
        raise _Unreadable(f"{where} is not usable as JSON: {error}", cure) from None
    return _object(arguments, where, cure)


def _object(value: object, where: str, cure: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Unreadable(f"{where} is {_kind(value)}", cure)
    return cast(dict[str, Any], value)


def _content(message: dict[str, Any]) -> str:
    """A text, or a list of text parts; images and the like cannot be read."""
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return ""
    if isinstance(content, str):
        return content
    cure = 'a text, or a list of parts like {"type": "text", "text": "..."}'
    if not isinstance(content, list) or not content:
        raise _Unreadable(f".content is {_kind(content)}", cure)
    parts: list[str] = []
    for at, given in enumerate(cast(list[Any], content)):
        part = _object(given, f".content[{at}]", cure)
        if part.get("type") not in ("text", "input_text") or not isinstance(part.get("text"), str):
            raise _Unreadable(f".content[{at}] is no text", cure)
        parts.append(part["text"])
    return "".join(parts)


def _openai_message(message: Message) -> dict[str, Any]:
    value: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        value["tool_calls"] = [
            {"id": c.call_id, "type": "function", "function": {"name": c.name, "arguments": json.dumps(c.arguments, ensure_ascii=False)}}
            for c in message.tool_calls
        ]
    return value | ({"tool_call_id": message.call_id} if message.call_id else {})


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in cast(list[object], value))


def _kind(value: object) -> str:
    """What a wrong value is, in the words of JSON."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str):
        return "a text" if value.strip() else "an empty text"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return "an object" if isinstance(value, dict) else f"the number {value}"
