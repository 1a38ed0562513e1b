"""Texts as a store can hold them. Pure."""

from __future__ import annotations

import hashlib
import json
import zlib
from typing import Any

import msgspec


def storable(text: str) -> str:
    """A NUL becomes its picture, half a surrogate pair the replacement character: PostgreSQL refuses the first, UTF-8 the
    second, and one such answer must not hold up a store."""
    return text.replace("\0", "\u2400") if text.isascii() else without_halves(text.replace("\0", "\u2400"))


def without_halves(text: str) -> str:
    """Half a surrogate pair, which a model may sample and senders leave that cut texts to a length, becomes the replacement character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def to_json(value: object) -> str:
    """As the store keeps it. Half a surrogate pair in a call's arguments is kept, escaped."""
    try:
        return msgspec.json.encode(value).decode()
    except UnicodeEncodeError:
        return json.dumps(msgspec.to_builtins(value), ensure_ascii=True)


def from_json(text: str | bytes) -> Any:
    """As Python's json reads it, which reads more than the fast one: numbers that are none, halves of characters. Raises ValueError."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return json.loads(text)


SHORT = 4096


class Blobs:
    """Texts by the hash of what is stored of them, each once."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def put(self, text: str) -> str:
        text = storable(text)
        key = hashlib.sha256(text.encode()).hexdigest()
        self.texts[key] = text
        return key


def packed(text: str) -> bytes:
    """A short text needs no larger window than itself, which is made ready in half the time."""
    plain = text.encode()
    packer = zlib.compressobj(1, wbits=SHORT.bit_length() - 1) if len(plain) <= SHORT else zlib.compressobj(1)
    return packer.compress(plain) + packer.flush()


def unpacked(body: bytes) -> str:
    return zlib.decompress(body).decode()
