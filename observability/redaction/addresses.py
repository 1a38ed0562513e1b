"""E-mail addresses. Looked for around each @, so that a text costs what its @ signs cost."""

from __future__ import annotations

import re
from collections.abc import Iterator

from observability.redaction.detector import Detector, Found

LETTER = "A-Za-z0-9\u00c0-\u024f"
"""Latin, with the accents that addresses may carry; the scripts that write without spaces would run into their neighbours."""
DOMAIN = re.compile(rf"@(?:[{LETTER}](?:[{LETTER}-]{{0,62}})\.){{1,8}}(xn--[a-z0-9-]{{2,60}}|[A-Za-z]{{2,24}})(?![{LETTER}(_])")
LOCAL_SIGNS = frozenset(".+-_'%&!#~")
LONGEST_LOCAL = 64
USER_OF_URL = re.compile(r"://[^\s/@]*\Z")
NOT_DOMAINS = frozenset("png jpg jpeg gif svg webp ico css js ts tsx jsx json md py html pdf txt local localdomain internal".split())
"""`logo@2x.png` is a file; and what ends in `local` reaches nobody outside."""


def find_emails(text: str) -> Iterator[Found]:
    if "@" not in text:
        return
    done = 0
    for domain in DOMAIN.finditer(text):
        start = _start_of_local(text, domain.start(), done)
        if start < domain.start() and domain[1].lower() not in NOT_DOMAINS and not _is_of_a_url(text, start, domain.end()):
            done = domain.end()
            yield Found("EMAIL", start, done)


def _start_of_local(text: str, at: int, done: int) -> int:
    start, first = at, max(done, at - LONGEST_LOCAL)
    while start > first and (text[start - 1] in LOCAL_SIGNS or (text[start - 1].isalnum() and text[start - 1] < "\u0250")):
        start -= 1
    while start < at and text[start] in ".'-!#~%&":
        start += 1
    return start


def _is_of_a_url(text: str, start: int, end: int) -> bool:
    """`https://user@host/...`, or `git@host:path`, which names a repository."""
    if text[start:end].startswith("git@") and text[end : end + 1] == ":":
        return True
    return USER_OF_URL.search(text, max(0, start - 80), start) is not None


EMAILS = Detector(("EMAIL",), find_emails, "@")
