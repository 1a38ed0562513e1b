"""Where a page of cards ended, as a word that fits into a URL. Pure.

It names the last card shown and not a page number, so cards that arrive meanwhile neither repeat nor hide one.
"""

from __future__ import annotations

import base64
import datetime as dt

import msgspec

from agent_rft.contracts.errors import UserError

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
MICROSECOND = dt.timedelta(microseconds=1)
LENGTH = 1_000
"""Characters of a cursor: an id is far shorter."""


class Cursor(msgspec.Struct, frozen=True):
    """The last card of a page; the next page begins after it."""

    started_at: dt.datetime
    rollout_id: str


class _Written(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    microseconds: int
    """Since 1970: whole, so that no moment is rounded past a card."""
    rollout_id: str


def cursor_text(cursor: Cursor) -> str:
    written = msgspec.json.encode(_Written((cursor.started_at - EPOCH) // MICROSECOND, cursor.rollout_id))
    return base64.urlsafe_b64encode(written).decode().rstrip("=")


def read_cursor(text: str) -> Cursor:
    """Only what `cursor_text` wrote is taken; anything else is one error and reaches no database."""
    try:
        if len(text) > LENGTH:
            raise ValueError
        written = msgspec.json.decode(base64.urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4)), type=_Written)
        cursor = Cursor(EPOCH + written.microseconds * MICROSECOND, written.rollout_id)
        if "\0" in cursor.rollout_id or cursor_text(cursor) != text:
            raise ValueError
    except (ValueError, OverflowError, msgspec.MsgspecError):
        raise UserError("the page cursor is none that this store gave", "begin with the first page: leave the cursor out") from None
    return cursor
