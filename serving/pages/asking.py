"""What a click does to the query that stands in the search box. Pure: the words that were typed stay as they were typed."""

from __future__ import annotations

import datetime as dt
import re

from agent_rft.contracts.errors import Fault, FaultsFound
from observability.query import Or, parse

WHEN = re.compile(r'(?<!\S)(?:after|before|started(?:[<>]=?))[:=]?[^\s()"]+')
PLACE = re.compile(r"character ([0-9]+)")


def narrowed(typed: str, term: str, now: dt.datetime) -> str:
    """Asks for this, too. A whole made of alternatives goes into parentheses, or the term would belong to the last of them."""
    typed = typed.strip()
    if not typed:
        return term
    return f"({typed}) {term}" if isinstance(parse(typed, now), Or) else f"{typed} {term}"


def has_term(typed: str, term: str) -> bool:
    return f" {term} " in f" {typed.strip()} "


def without_term(typed: str, term: str) -> str:
    return f" {typed.strip()} ".replace(f" {term} ", " ", 1).strip()


def between(typed: str, start: dt.datetime, end: dt.datetime, now: dt.datetime) -> str:
    """Only what started then. An older time range makes way, unless it stands in parentheses, where it may mean anything."""
    if "(" not in typed and '"' not in typed:
        typed = " ".join(WHEN.sub("", typed).split())
    return narrowed(typed, f"after:{_moment(start)} before:{_moment(end)}", now)


def _moment(moment: dt.datetime) -> str:
    text = moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return text.removesuffix("T00:00:00").removesuffix(":00")


def marked(typed: str, error: FaultsFound) -> list[tuple[Fault, str, str, str]]:
    """Each fault with the typed text before its place, what stands there, and after it."""
    return [(fault, *_split(typed, fault)) for fault in error.faults]


def _split(typed: str, fault: Fault) -> tuple[str, str, str]:
    found = PLACE.fullmatch(fault.where)
    if not found:
        return "", "", ""
    at = int(found[1]) - 1
    there = re.match(r"[()]|[^\s]+|\s", typed[at:])
    end = at + (there.end() if there else 0)
    return typed[max(0, at - 60) : at], typed[at:end] or "\N{SYMBOL FOR SPACE}", typed[end : end + 60]
