"""Frames, marks and answers: what is told apart and what is never mistaken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_rft.contracts.retries import TryAgain
from observability.spooling import SLOT, Position, Refused, frame, judge, mark, newest_mark, scan

CARDS = st.lists(st.binary(max_size=20), max_size=5)


@given(CARDS, st.integers(0, 200))
def test_a_write_cut_short_loses_only_what_was_not_whole(cards, cut):
    frames = [frame(card) for card in cards]
    whole = b"".join(frames)
    scanned = scan(whole[:cut])
    kept = [n for n in range(len(cards) + 1) if sum(map(len, frames[:n])) <= cut][-1]
    assert scanned.cards == tuple(cards[:kept])
    assert scanned.used == sum(map(len, frames[:kept]))
    assert scanned.then == ("end" if scanned.used == len(whole[:cut]) else "short")


@given(CARDS.filter(bool), st.data())
def test_a_changed_byte_is_damage_and_never_another_card(cards, data):
    whole = bytearray(b"".join(map(frame, cards)))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    scanned = scan(bytes(whole))
    assert scanned.then == "damaged"
    assert scanned.cards == tuple(cards[: len(scanned.cards)]) and scanned.used <= at


def test_zeros_that_a_power_cut_left_are_no_empty_cards():
    assert scan(frame(b"a") + bytes(64)).then == "damaged"


def test_a_frame_is_spelt_out():
    """Nine bytes of length 9, little-endian; 0xCBF43926 is the published check value of CRC-32 over the nine digits."""
    assert frame(b"123456789")[8:12] == (0xCBF43926).to_bytes(4, "little")
    assert frame(b"123456789")[:4] == b"\x09\0\0\0"


def test_no_more_is_read_than_was_asked_for():
    scanned = scan(b"".join(map(frame, (b"a", b"b", b"c"))), 2)
    assert (scanned.cards, scanned.used, scanned.then) == ((b"a", b"b"), 26, "more")  # 12 of header and 1 of card, twice


def written(marks):
    data = bytearray(1024)
    for position, count in marks:
        at, text = mark(position, count)
        data[at : at + len(text)] = text
    return data


@given(st.integers(1, 30), st.integers(0, 28))
def test_a_mark_torn_while_it_is_written_leaves_the_one_before(last, cut):
    data = written((Position(n, 10 * n), n) for n in range(1, last))
    at, text = mark(Position(last, 10 * last), last)
    data[at : at + cut] = text[:cut]
    position, count = newest_mark(bytes(data))
    assert (position, count) in [(Position(n, 10 * n), n) for n in (last - 1, last)]
    assert (count == last) or cut < 28


def test_no_mark_is_the_beginning():
    assert newest_mark(b"") == newest_mark(bytes(1024)) == (Position(0, 0), 0)
    assert {mark(Position(1, 1), n)[0] for n in range(4)} == {0, SLOT}


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_cards_own_fault_is_for_good(status):
    with pytest.raises(Refused, match=f"HTTP {status}: no kind"):
        judge(status, "", "no kind", 0.0)


@pytest.mark.parametrize("status", [301, 401, 403, 404, 408, 429, 500, 503])
def test_anything_else_may_be_mended_at_the_server_and_the_cards_wait(status):
    with pytest.raises(TryAgain) as caught:
        judge(status, "7", "", 0.0)
    assert caught.value.pause_seconds == 7.0


def test_success_is_silent():
    assert judge(200, "", "", 0.0) is judge(202, "9", "", 0.0) is None
