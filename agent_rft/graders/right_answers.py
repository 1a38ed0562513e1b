"""Where a grader finds the right answer of a row: in the texts that it holds answers against, else in `reference_answer`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.rows import Row
from agent_rft.graders.spec import F1Set, GraderSpec, Multi, Stack, StringCheck, TextSimilarity
from agent_rft.graders.templating import PLACE, MissingVariable, render, unusable_variables


def references_of(spec: GraderSpec) -> list[str]:
    """Templates. None of a judge, an endpoint or code: their JSON does not say which key they take for right."""
    return list(dict.fromkeys(_references(spec)))


def _references(spec: GraderSpec) -> Iterator[str]:
    match spec:
        case StringCheck(operation="ne"):
            return  # what it names is wrong
        case StringCheck() | TextSimilarity() | F1Set():
            yield from (text for text in (spec.reference, spec.input) if _names(text, "item") and not _names(text, "sample"))
        case Multi():
            for each in spec.graders.values():
                yield from _references(each)
        case Stack():
            for part in spec.parts().values():
                yield from _references(part.grader)
        case _:
            return


def _names(text: str, root: str) -> bool:
    return any(place[2:-2].strip().startswith(f"{root}.") for place in re.findall(PLACE, text))


def reference_at(key: str) -> str:
    """The template of a row's key, like answer or solution.value."""
    template = f"{{{{item.{key}}}}}"
    if set(key) & {"{", "}"} or unusable_variables(template):
        raise UserError(f"--reference {key} names no key of a row", "answer, or solution.value[0]")
    return template


def right_answers(row: Row, references: Sequence[str]) -> list[str]:
    """As texts: what the references say of this row, and its `reference_answer`. Empty where it is not known."""
    found: list[str] = [] if row.reference_answer is None else [_as_text(row.reference_answer)]
    for reference in references:
        try:
            found.append(render(reference, row.item(), {}))
        except MissingVariable:
            continue
    return [right for right in dict.fromkeys(found) if right not in ("", "null")]


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
