"""What made a run, so that it can be made again: versions and settings, without secrets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from typing import Any

import msgspec

from agent_rft.evaluation.report.contents import RunReport
from agent_rft.evaluation.report.html import section, table

SECRET_WORDS = {"token", "key", "secret", "password", "bearer"}
URL_PASSWORD = re.compile(r"(://[^:/@\s]*):\S*@")
"""Up to the last @: a password may hold one, and hiding too much does no harm."""


def versions(report: RunReport) -> str:
    rows = [(escape(name.replace("_", " ")), f"<code>{escape(value)}</code>") for name, value in version_names(report).items()]
    settings = msgspec.json.format(msgspec.json.encode(masked(report.settings), enc_hook=str), indent=2).decode()
    opened = f"<details><summary>Settings</summary><pre>{escape(settings)}</pre></details>"
    return section("versions", "What made this", table(("what", "version"), rows, "words") + opened)


def version_names(report: RunReport) -> dict[str, str]:
    return {name: str(value) for name, value in msgspec.to_builtins(report.versions).items()}


def masked(value: Any, name: str = "") -> Any:
    """Settings as they may be shown: reports travel further than secrets should. A secret is text under a name that ends in
    such a word, or the password within a URL."""
    if isinstance(value, dict):
        return {key: masked(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [masked(inner, name) for inner in value]
    if not isinstance(value, str):
        return value
    return "(hidden)" if value and name.lower().split("_")[-1] in SECRET_WORDS else URL_PASSWORD.sub(r"\1:(hidden)@", value)


def flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Settings by their full names, as one writes them on the command line."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{before}{name}.")
        else:
            found[f"{before}{name}"] = value
    return found
