"""How cards lie in a client's spool, and what a server's answer means for them. Pure.

A frame is the card's length, a checksum of that length, a checksum of the card, and the card. The length has a checksum of
its own, so that a write cut short by a kill (a beginning of a frame, cut off without loss: it was never acknowledged) and
damage to what had been kept (never cut off silently) are told apart.
"""

from __future__ import annotations

import struct
import zlib
from typing import Literal

import msgspec

from agent_rft.contracts.retries import TryAgain, seconds_asked_for

HEADER = struct.Struct("<III")
LENGTH = struct.Struct("<I")
MARK = struct.Struct("<QQQI")
SLOT = 512
"""Bytes between the two places where the mark is written in turn: one sector each, so that a torn write spoils one."""
REFUSED_FOR_GOOD = frozenset({400, 413, 422})
"""The card's own fault. Anything else that is no success (a wrong key, a wrong address, trouble) is mended on the other side of
the wire, and the cards wait for it."""


class Refused(Exception):
    """The server will never take this, however often it comes."""


class Position(msgspec.Struct, frozen=True, order=True):
    segment: int
    offset: int


class Scanned(msgspec.Struct, frozen=True):
    cards: tuple[bytes, ...]
    used: int
    """Bytes that these cards take."""
    then: Literal["end", "more", "short", "damaged"]
    """What comes after them: nothing, more than was asked for, the beginning of a frame, or no frame."""


def frame(card: bytes) -> bytes:
    length = LENGTH.pack(len(card))
    return HEADER.pack(len(card), zlib.crc32(length), zlib.crc32(card)) + card


def scan(data: bytes, most_cards: int | None = None) -> Scanned:
    """The whole frames at the beginning of `data`."""
    cards: list[bytes] = []
    at = 0
    while at < len(data):
        if most_cards is not None and len(cards) >= most_cards:
            return Scanned(tuple(cards), at, "more")
        if at + HEADER.size > len(data):
            return Scanned(tuple(cards), at, "short")
        length, of_length, of_card = HEADER.unpack_from(data, at)
        if zlib.crc32(LENGTH.pack(length)) != of_length:
            return Scanned(tuple(cards), at, "damaged")
        start = at + HEADER.size
        if start + length > len(data):
            return Scanned(tuple(cards), at, "short")
        card = data[start : start + length]
        if zlib.crc32(card) != of_card:
            return Scanned(tuple(cards), at, "damaged")
        cards.append(card)
        at = start + length
    return Scanned(tuple(cards), at, "end")


def mark(position: Position, count: int) -> tuple[int, bytes]:
    """Where to write the mark of what has been sent, the count-th, and its bytes. It is written over the last but one: a full
    disk always has room for it, and a torn write leaves the last one."""
    body = MARK.pack(count, position.segment, position.offset, 0)[: -LENGTH.size]
    return count % 2 * SLOT, body + LENGTH.pack(zlib.crc32(body))


def newest_mark(data: bytes) -> tuple[Position, int]:
    """The mark, and the how-manieth it is; the beginning where there is none."""
    found = [(0, Position(0, 0))]
    for at in (0, SLOT):
        slot = data[at : at + MARK.size]
        if len(slot) == MARK.size:
            count, segment, offset, checksum = MARK.unpack(slot)
            if zlib.crc32(slot[: -LENGTH.size]) == checksum:
                found.append((count, Position(segment, offset)))
    count, position = max(found)
    return position, count


def judge(status: int, retry_after: str, told: str, now: float) -> None:
    """Returns where the server has the cards. Raises Refused where it never will, TryAgain where it may later."""
    if 200 <= status < 300:
        return
    what = f"HTTP {status}" + (f": {told[:500]}" if told else "")
    if status in REFUSED_FOR_GOOD:
        raise Refused(what)
    raise TryAgain(what, seconds_asked_for(retry_after, now))
