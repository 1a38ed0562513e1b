"""Addresses that no tool goes to, whoever wrote them: this machine, its network, and the cloud's own services.

A model writes what a document told it to write. A URL among a call's arguments that names an address inside is refused before any tool
sees it, in each of the ways in which an address can be written. No name is looked up here: to look up what a model wrote would itself
carry words out. A tool that opens addresses has to look names up, hold what comes back against `is_inside`, and connect to that address.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

URL = re.compile(r"\b[a-z][a-z0-9+.-]*:[/\\]{1,3}[^\s\"'<>]*", re.IGNORECASE)
NAMES = ("localhost", "localdomain", "local", "internal", "intranet", "lan", "home.arpa", "metadata", "metadata.google.internal")
"""And all that ends in one of them."""
FILES = ("file", "unix", "jar", "netdoc")
LONGEST_SHOWN = 100


def internal_addresses(value: Any) -> str:
    """The first that is found in a text, or anywhere in lists and objects of them; empty where there is none."""
    return next((url[:LONGEST_SHOWN] for text in _texts(value) for url in URL.findall(text) if _leads_inside(url)), "")


def is_inside(address: str) -> bool:
    """Of an address as numbers: whether it is not one of the public internet."""
    found = ipaddress.ip_address(address.partition("%")[0])
    carried = getattr(found, "ipv4_mapped", None) or getattr(found, "sixtofour", None)
    return not found.is_global or found.is_multicast or (carried is not None and not carried.is_global) or found in NAT64


NAT64 = ipaddress.ip_network("64:ff9b::/96")


def _texts(value: Any) -> Iterator[str]:
    waiting = [value]
    while waiting:
        match waiting.pop():
            case str() as text:
                yield text
            case dict() as several:
                waiting += [*several.keys(), *several.values()]
            case list() as several:
                waiting += several
            case _:
                pass


def _leads_inside(url: str) -> bool:
    scheme, _, rest = url.partition(":")
    if scheme.lower() in FILES:
        return True
    try:
        host = urlsplit(f"http://{rest.lstrip('/' + chr(92))}".replace("\\", "/")).hostname or ""
    except ValueError:
        return True  # what cannot be read here, something else may read
    host = unicodedata.normalize("NFKC", unquote(host)).translate(_DOTS).rstrip(".").lower()
    if any(host == name or host.endswith(f".{name}") for name in NAMES):
        return True
    address = _address(host)
    return address is not None and is_inside(address)


_DOTS = str.maketrans({"\u3002": ".", "\uff0e": ".", "\uff61": "."})


def _address(host: str) -> str | None:
    """None of a name. Numbers may be one to four, decimal, octal or hexadecimal, as inet_aton reads them."""
    try:
        return str(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    parts = [_number(part) for part in host.split(".")]
    if not 1 <= len(parts) <= 4 or None in parts:
        return None
    *first, last = [part for part in parts if part is not None]
    if any(part > 255 for part in first) or last >= 256 ** (4 - len(first)):
        return None
    return str(ipaddress.IPv4Address(sum(part << 8 * (3 - at) for at, part in enumerate(first)) + last))


def _number(part: str) -> int | None:
    if not part.isascii() or not part.isalnum():
        return None
    try:
        return int(part, 16) if part.startswith("0x") else int(part, 8) if part.startswith("0") and part != "0" else int(part)
    except ValueError:
        return None
