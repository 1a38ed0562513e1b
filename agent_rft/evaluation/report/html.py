"""The few shapes that the report's sections are made of. Cells and drawings come as HTML; words are escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from agent_rft.evaluation.compare import sign


def section(name: str, title: str, body: str) -> str:
    """Nothing at all where there is nothing to tell."""
    return f'<section id="{name}"><h2>{escape(title)}</h2>{body}</section>' if body else ""


def figure(title: str, drawing: str) -> str:
    return f"<figure><h3>{escape(title)}</h3>{drawing}</figure>"


def table(names: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """Names are words, cells are HTML. The first column is of words, the others of numbers, unless `kind` says otherwise."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    opened = f'<table class="{kind}">' if kind else "<table>"
    return f'<div class="across">{opened}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def key(entries: Iterable[tuple[str, str]]) -> str:
    """A legend: class of the colour, and words."""
    shown = "".join(f'<span><i class="{kind}"></i>{escape(words)}</span>' for kind, words in entries)
    return f'<div class="key">{shown}</div>'


def coloured(value: float, form: str) -> str:
    kind = {1: "up", -1: "down", 0: "soft"}[sign(value)]
    return f'<span class="{kind}">{signless(format(value, form))}</span>'


def signless(text: str) -> str:
    """Without the sign of a rounded nothing, and with a minus as wide as a plus."""
    return text.lstrip("+-") if not text.strip("+-0.%") else text.replace("-", "\N{MINUS SIGN}")


def soft(words: str) -> str:
    return f'<p class="soft">{escape(words)}</p>'


def number(value: float | None, form: str) -> str:
    return "\N{EN DASH}" if value is None else signless(format(value, form))
