"""FinQA's published JSON as an agentic task: the report is taken out of the prompt and put into a corpus to search.

An entry holds a page of an annual report (text before the table, the table, text after it) and one question about it with the
program that answers it. Several entries may ask about one page: it becomes one document. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, cast

import msgspec

from agent_rft.contracts.errors import Fault, FaultsFound
from agent_rft.contracts.messages import ToolSpec
from agent_rft.contracts.rows import Expected, Row
from agent_rft.datasets.filings import TOOLS as FILING_TOOLS
from agent_rft.graders.quantities import quantity_of

FOLDER = "reports"
CALL_BUDGET = 10
"""Tool calls that the agentic form of the task allows: conf/task/finqa.yaml holds runs to it."""
ROUNDING = 0.01
"""How far the published answer, a rounded text, may stand from the program's result and still be the same."""
SHAPE = '[{"filename", "pre_text": [...], "table": [[...]], "post_text": [...], "qa": {"question", "answer", "exe_ans", "program"}}, ...]'
SAYS = {
    "search": "Search the reports by words. Answers the best matching paths with scores and the matching line.",
    "read": "Read one page.",
}
TOOLS = tuple(ToolSpec(tool.name, SAYS.get(tool.name, tool.description), tool.parameters) for tool in FILING_TOOLS)
Placed = tuple[str, dict[str, Any]]
"""Where an entry begins, and the entry."""


class Entry(msgspec.Struct, frozen=True):
    page: str
    """The report's page without its ending: ADI/2009/page_49."""
    document: str
    row: Row


class Adapted(msgspec.Struct, frozen=True):
    documents: dict[str, str]
    """By path."""
    rows: dict[str, list[Row]]
    """By split."""


def read_finqa(text: str, name: str) -> list[Entry]:
    """Every entry, or every fault of the file at once."""
    placed, faults = _placed(text.removeprefix("\ufeff"), name)
    entries: list[Entry] = []
    for number, (where, value) in enumerate(placed, start=1):
        if wrong := _faults_of(value):
            faults += [Fault(where, f"entry {number}{_called(value)}: {what}", cure) for what, cure in wrong]
        else:
            entries.append(_entry(value, number))
    if faults or not entries:
        raise FaultsFound(f"{name} is not FinQA's JSON", faults or [Fault(name, "holds no entry")], f"a list of entries: {SHAPE}")
    return entries


def adapt(splits: Mapping[str, Sequence[Entry]]) -> Adapted:
    """One document a page, whichever splits ask about it. Where two entries show a page differently, both are kept."""
    documents: dict[str, str] = {}
    rows: dict[str, list[Row]] = {}
    for split, entries in splits.items():
        rows[split] = []
        for entry in entries:
            path = _free_path(entry, documents)
            documents[path] = entry.document
            rows[split].append(msgspec.structs.replace(entry.row, expected=Expected(evidence_path=path, must_use_tools=("search",))))
    return Adapted(documents, rows)


def _free_path(entry: Entry, documents: Mapping[str, str]) -> str:
    path, number = f"{FOLDER}/{entry.page}.html", 1
    while documents.get(path, entry.document) != entry.document:
        number += 1
        path = f"{FOLDER}/{entry.page}-{number}.html"
    return path


# --- reading ------------------------------------------------------------------------------------------------------------


def _placed(text: str, name: str) -> tuple[list[Placed], list[Fault]]:
    """The entries with file and line; what cannot be read as JSON ends the list with a fault."""
    decoder, placed = json.JSONDecoder(), list[Placed]()
    faults: list[Fault] = []
    at, line, counted = _skipped(text, 0, ""), 1, 0
    if text[at : at + 1] != "[":
        return [], [Fault(f"{name}:1", "is not a JSON list")]
    at = _skipped(text, at + 1, "")
    while text[at : at + 1] not in ("]", ""):
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            broken = line + text.count("\n", counted, error.pos) if isinstance(error, json.JSONDecodeError) else line
            return placed, [*faults, Fault(f"{name}:{broken}", f"broken JSON: {getattr(error, 'msg', error)}")]
        if isinstance(value, dict):
            placed.append((f"{name}:{line}", cast(dict[str, Any], value)))
        else:
            faults.append(Fault(f"{name}:{line}", "an entry is not an object"))
        at = _skipped(text, end, ",")
    if text[at : at + 1] != "]":
        faults.append(Fault(f"{name}:{text.count(chr(10)) + 1}", "the list has no end", "is the file whole?"))
    return placed, faults


def _skipped(text: str, at: int, more: str) -> int:
    while at < len(text) and (text[at].isspace() or text[at] in more):
        at += 1
    return at


def _faults_of(value: dict[str, Any]) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key in ("pre_text", "post_text"):
        if not _texts(value.get(key)):
            found.append((f"{key} is {'missing' if key not in value else 'no list of texts'}", "a list of sentences"))
    table = value.get("table")
    if not isinstance(table, list) or not all(_texts(row) for row in cast(list[Any], table)):
        found.append(
            (f"table is {'missing' if 'table' not in value else 'no list of rows of texts'}", "a list of rows, each a list of cells")
        )
    if not _page(value):
        found.append(("has neither a filename nor an id that names a page", "like ADI/2009/page_49.pdf"))
    qa = value.get("qa")
    if not isinstance(qa, dict):
        return [*found, ("qa is missing" if "qa" not in value else "qa is no object", "{question, answer, exe_ans, program}")]
    asked = cast(dict[str, Any], qa)
    question, result = asked.get("question"), asked.get("exe_ans")
    if not isinstance(question, str) or not question.strip():
        found.append(("qa.question is missing or empty", "a text"))
    if isinstance(result, bool) or not (isinstance(result, int | float) or result in ("yes", "no")):
        found.append((f"qa.exe_ans is {result!r}", "a number, yes or no"))
    return found


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in cast(list[object], value))


def _page(value: dict[str, Any]) -> str:
    """Part of a path, so held to plain names; empty where there is none."""
    named = value.get("filename") or re.sub(r"-\d+$", "", str(value.get("id", "")))
    if not isinstance(named, str):
        return ""
    page = re.sub(r"\.pdf$", "", named)
    return page if re.fullmatch(r"[\w-][\w .-]*(/[\w-][\w .-]*)*", page) else ""


def _called(value: dict[str, Any]) -> str:
    return f" ({value['id']})" if isinstance(value.get("id"), str) else ""


def _entry(value: dict[str, Any], number: int) -> Entry:
    page, asked = _page(value), cast(dict[str, Any], value["qa"])
    reference = _reference(asked.get("answer"), asked["exe_ans"])
    row = Row(
        id=value["id"] if isinstance(value.get("id"), str) else f"{page}-{number}",
        prompt=asked["question"].strip(),
        reference_answer=reference,
        tools=TOOLS,
        metadata={
            "task_type": "yes_no_qa" if reference in ("yes", "no") else "numerical_qa",
            "difficulty": _difficulty(str(asked.get("program", ""))),
        },
        extra={"finqa": {key: asked[key] for key in ("answer", "exe_ans", "program") if key in asked}},
    )
    return Entry(page, _document(page, value), row)


def _reference(answer: object, result: float | str) -> float | str:
    """The published answer as it is written, if it is the program's result, rounded at most; else the result itself.

    Published answers are sometimes empty, or off by a factor: the programs are what was checked.
    """
    if isinstance(result, str) or not isinstance(answer, str):
        return result
    shown = quantity_of(answer)
    if shown is None:
        return result
    told, meant = float(shown.value), [result]
    if shown.is_ratio:  # programs give 93.5% as 0.935 or as 93.5
        meant.append(result / 100)
    elif re.search(r"[a-z]", answer, re.IGNORECASE):  # "$3.8 million" of a table in millions, whose program says 3.8
        meant += [result * unit for unit in (10**3, 10**6, 10**9)]
    return answer.strip() if any(abs(told - one) <= ROUNDING * abs(one) for one in meant) else result


def _difficulty(program: str) -> str:
    """By the steps of the program: as the benchmark's own analyses group them."""
    steps = len(re.findall(r"\w+\(", program))
    return "easy" if steps <= 1 else "medium" if steps == 2 else "hard"


def _document(page: str, value: dict[str, Any]) -> str:
    title = escape(re.sub(r"[/_]", " ", page))
    before, after = ("\n".join(f"<p>{escape(said)}</p>" for said in value[key] if said.strip(" .")) for key in ("pre_text", "post_text"))
    rows = "\n".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in value["table"])
    head = f"<html><head><title>{title}</title></head>\n<body><h1>{title}</h1>"
    return f"{head}\n{before}\n<table>\n{rows}\n</table>\n{after}\n</body></html>\n"
