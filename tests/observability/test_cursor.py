"""A page cursor says exactly where a page ended, and nothing that was made up is taken for one."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_rft.contracts.errors import UserError
from observability.cursor import Cursor, cursor_text, read_cursor


@given(st.datetimes(timezones=st.just(dt.UTC)), st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60))
def test_a_cursor_comes_back_to_the_microsecond_and_fits_into_a_url(started_at, rollout_id):
    text = cursor_text(Cursor(started_at, rollout_id))
    assert re.fullmatch(r"[\w-]+", text, re.ASCII)
    assert read_cursor(text) == Cursor(started_at, rollout_id)


def written(json: bytes) -> str:
    return base64.urlsafe_b64encode(json).decode().rstrip("=")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "é",
        "\ud800",
        "card-1",
        "a" * 100_000,
        written(b"[]"),
        written(b"[1]"),
        written(b'[1,"a",2]'),
        written(b'["1","a"]'),
        written(b'[1, "a"]'),
        written(b'[1e999,"a"]'),
        written(b'[999999999999999999999,"a"]'),
        written(b'[1,"\\u0000"]'),
        written(b'[1,"a"]') + "=",
        written(b'[1,"a"]') + "!",
    ],
)
def test_a_made_up_cursor_is_one_clear_error(text):
    with pytest.raises(UserError, match=r"the page cursor is none that this store gave\n  cure: begin with the first page"):
        read_cursor(text)


@given(st.text(max_size=40) | st.binary(max_size=40).map(written))
def test_no_text_makes_another_error(text):
    with contextlib.suppress(UserError):
        assert cursor_text(read_cursor(text)) == text
