"""Whatever is done to a ledger or its records is found, and named: the entry, the record, and what was done."""

from __future__ import annotations

import hashlib
import json
import runpy
import tracemalloc
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observability.chain import (
    GENESIS,
    Entry,
    Record,
    canonical_bytes,
    check_chain,
    check_record,
    entry_hash,
    facts_digest,
    next_entry,
    payload_digest,
    root_statement,
    unrecorded,
)

SAMPLE = runpy.run_path(str(Path(__file__).parent / "sample_ledger.py"))
make_ledger, make_root, TENANT = SAMPLE["make_ledger"], SAMPLE["make_root"], SAMPLE["TENANT"]
SIZE = 12
WHOLE = make_ledger(SIZE)
places = st.integers(0, SIZE - 1)
SALT = bytes(range(16))


def changed(entry: Entry, **values: object) -> Entry:
    return msgspec.structs.replace(entry, **values)


def rehashed(entry: Entry, **values: object) -> Entry:
    entry = changed(entry, **values)
    return changed(entry, hash=entry_hash(entry))


def renumbered(entries: list[Entry]) -> list[Entry]:
    """Numbered without gaps, as someone would who hides what he did; the hashes are as they were."""
    return [changed(entry, seq=seq) for seq, entry in enumerate(entries, 1)]


def relinked(entries: list[Entry]) -> list[Entry]:
    """Written anew, with numbers, links and hashes that fit."""
    made: list[Entry] = []
    for entry in entries:
        before = made[-1].hash if made else GENESIS
        made.append(rehashed(entry, seq=len(made) + 1, previous=before))
    return made


def found(entries: list[Entry], *root_sizes: int) -> list[tuple[str, int]]:
    roots = [make_root(WHOLE[:size]) for size in root_sizes]
    return [(finding.what, finding.seq) for finding in check_chain(TENANT, entries, roots)]


# --- digests ----------------------------------------------------------------------------------------------------------


def test_the_digests_are_those_that_anyone_can_compute():
    facts = {"tenant": "acme", "rollout_id": "card-1", "step": 3, "seconds": 1.5}
    written = b'{"rollout_id":"card-1","seconds":1.5,"step":3,"tenant":"acme"}'
    assert canonical_bytes(facts) == written
    assert facts_digest(facts) == hashlib.sha256(written).hexdigest()
    assert payload_digest({"answer": "14 \u20ac"}, SALT) == hashlib.sha256(SALT + b'{"answer":"14 \xe2\x82\xac"}').hexdigest()
    first = next_entry(None, tenant="acme", at="2026-11-21T04:00:00+00:00", kind="card", subject="card-1", facts="ab", payload="cd")
    content = (
        '{"at":"2026-11-21T04:00:00+00:00","facts":"ab","kind":"card","payload":"cd","previous":"' + "0" * 64 + '",'
        '"seq":1,"subject":"card-1","tenant":"acme"}'
    )
    assert first.hash == hashlib.sha256(content.encode()).hexdigest() == entry_hash(first)
    second = next_entry(first, tenant="acme", at="", kind="grade", subject="1", facts="ab")
    assert (second.seq, second.previous, second.payload) == (2, first.hash, "")


def test_a_root_is_signed_over_a_statement_that_says_what_it_is():
    root = make_root(WHOLE[:1])
    assert root_statement(root) == (
        b'{"at":"2026-11-22T00:00:01+00:00","key":"k","root":"' + root.root.encode() + b'","size":1,'
        b'"statement":"agent-rft ledger root 1","tenant":"acme"}'
    )


def test_text_that_no_store_can_hold_is_hashed_as_the_store_keeps_it():
    assert canonical_bytes({"said": ["a\0b", "\ud83d"]}) == canonical_bytes({"said": ["a\u2400b", "\ufffd"]})
    assert canonical_bytes("a\\u0000") == b'"a\\\\u0000"', "a backslash and digits are no NUL"
    assert canonical_bytes("\U0001f600\ud83d") == '"\U0001f600\ufffd"'.encode()


def test_a_number_that_json_has_not_and_a_short_salt_are_refused():
    with pytest.raises(ValueError, match="Out of range"):
        canonical_bytes(float("nan"))
    with pytest.raises(ValueError, match="16 bytes; this one has 3"):
        payload_digest({}, b"abc")
    with pytest.raises(ValueError, match="acme cannot go on with an entry of other"):
        next_entry(WHOLE[0], tenant="other", at="", kind="card", subject="", facts="")


# --- the chain --------------------------------------------------------------------------------------------------------


@given(st.integers(0, 40), st.lists(st.integers(1, 40), max_size=5))
def test_an_untouched_ledger_has_no_findings_even_where_the_clock_stepped_back(size, root_sizes):
    ledger = make_ledger(size)
    roots = [make_root(ledger[:one]) for one in root_sizes if one <= size]
    assert not list(check_chain(TENANT, iter(ledger), roots))


@given(places, st.sampled_from(["at", "kind", "subject", "facts", "payload", "previous", "hash"]))
def test_an_edited_entry_is_named(place, column):
    tampered = list(WHOLE)
    tampered[place] = changed(WHOLE[place], **{column: "f" * 64})
    assert found(tampered) == [("edited", place + 1)]
    assert found(tampered, 4, SIZE)[0] == ("edited", place + 1)


@given(st.integers(0, SIZE - 2))
def test_an_edited_entry_that_was_given_a_new_hash_is_named_by_the_one_after_it(place):
    tampered = list(WHOLE)
    tampered[place] = rehashed(WHOLE[place], facts="f" * 64)
    assert found(tampered) == [("edited", place + 1)]


def test_the_last_entry_with_a_new_hash_is_found_by_the_root():
    tampered = [*WHOLE[:-1], rehashed(WHOLE[-1], facts="f" * 64)]
    assert found(tampered, 4, SIZE) == [("chain replaced", 5)], "entries 5 to 12 are not those that were signed"


@given(st.integers(0, SIZE - 2), st.integers(1, 4))
def test_removed_entries_are_named_by_the_gap_that_they_leave(place, count):
    tampered = WHOLE[:place] + WHOLE[place + count :]
    expected = [("removed", place + 1)] if place + count < SIZE else [("tail cut", place + 1)]
    assert found(tampered, 2, SIZE) == expected


@given(st.integers(0, SIZE - 2), st.integers(1, 4))
def test_removed_entries_are_found_behind_new_numbers(place, count):
    tampered = renumbered(WHOLE[:place] + WHOLE[place + count :])
    if place + count < SIZE:
        assert found(tampered) == found(tampered, SIZE) == [("removed", place + 1)]
    else:
        assert found(tampered, SIZE) == [("tail cut", place + 1)]


@given(places, st.booleans())
def test_an_inserted_entry_is_named(place, links):
    """The later ones keep their hashes and get new numbers, else they would be another chain."""
    before = WHOLE[place - 1].hash if place else GENESIS
    forged = rehashed(WHOLE[place], seq=place + 1, subject="forged", previous=before if links else "e" * 64)
    tampered = renumbered([*WHOLE[:place], forged, *WHOLE[place:]])
    assert found(tampered) == found(tampered, SIZE) == [("inserted", place + 1)]
    assert [finding.subject for finding in check_chain(TENANT, tampered)] == ["forged"]


@given(places, st.integers(2, 4))
def test_several_inserted_entries_that_link_are_found_where_the_ledger_goes_on(place, count):
    forged = relinked([*WHOLE[:place], *make_ledger(count, word="forged ")])
    tampered = renumbered([*forged, *WHOLE[place:]])
    assert found(tampered) == [("inserted", place + count + 1)]
    assert found(tampered, SIZE) in ([("inserted", place + count + 1)], [("chain replaced", 1), ("inserted", place + count + 1)])


@given(st.integers(0, SIZE - 2), st.booleans(), st.booleans())
def test_an_entry_with_the_number_of_another_is_named_whichever_comes_first(place, first, links):
    before = WHOLE[place - 1].hash if place else GENESIS
    forged = rehashed(WHOLE[place], subject="forged", previous=before if links else "e" * 64)
    pair = [forged, WHOLE[place]] if first else [WHOLE[place], forged]
    findings = list(check_chain(TENANT, [*WHOLE[:place], *pair, *WHOLE[place + 1 :]]))
    assert [(one.what, one.subject) for one in findings] == [("inserted", "forged")]


@given(places, places)
def test_swapped_entries_are_named(one, other):
    first, second = min(one, other), max(one, other)
    tampered = list(WHOLE)
    tampered[first], tampered[second] = changed(WHOLE[second], seq=first + 1), changed(WHOLE[first], seq=second + 1)
    whats = found(tampered, SIZE)
    if first == second:
        assert not whats
    elif second == first + 1:
        assert whats == [("swapped", first + 1)]
    else:
        assert whats == [("edited", first + 1), ("swapped", second + 1)]


def test_lines_of_a_file_that_changed_places_are_named():
    assert ("swapped", 3) in found([*WHOLE[:2], WHOLE[3], WHOLE[2], *WHOLE[4:]])


@given(st.integers(0, SIZE - 1))
def test_a_cut_tail_is_found_by_the_root(left):
    assert found(WHOLE[:left], SIZE) == [("tail cut", left + 1)]
    assert not found(WHOLE[:left]), "the entries alone cannot tell"


@given(places, st.integers(SIZE, SIZE + 5))
def test_a_chain_that_was_written_anew_from_some_entry_on_is_found_by_the_root(place, length):
    tampered = relinked([*WHOLE[:place], *make_ledger(length, word="other ")[place:]])
    signed_before = max((size for size in (3, 7) if size <= place), default=0)
    assert found(tampered, 3, 7, SIZE) == [("chain replaced", signed_before + 1)]
    assert not found(tampered), "the entries alone cannot tell"


def test_the_words_tell_a_reviewer_what_was_done():
    replaced = list(check_chain(TENANT, make_ledger(SIZE, word="x"), [make_root(WHOLE)]))
    assert [str(one) for one in replaced] == [
        "tenant acme, entry 1: chain replaced: entries 1 to 12 are well linked, but not those that were signed on "
        "2026-11-22T00:00:12+00:00: they were written anew"
    ]
    edited = changed(WHOLE[2], at="")
    assert str(next(check_chain(TENANT, [*WHOLE[:2], edited]))) == (
        "tenant acme, entry 3, card subject-3: edited: its content does not give its hash"
    )


def test_an_entry_of_another_tenant_is_named_and_the_rest_still_looked_at():
    foreign = make_ledger(3, tenant="other")[2]
    edited = changed(WHOLE[5], at="")
    assert found([*WHOLE[:3], foreign, *WHOLE[3:5], edited, *WHOLE[6:]]) == [("wrong tenant", 3), ("edited", 6)]
    moved = changed(WHOLE[3], tenant="other")
    assert found([*WHOLE[:3], moved, *WHOLE[4:]], SIZE) == [("wrong tenant", 4), ("removed", 4)]


def test_numbers_that_were_never_given_are_a_gap_and_nothing_missing():
    third = next_entry(changed(WHOLE[1], seq=4), tenant=TENANT, at="", kind="card", subject="", facts="")
    assert found([*WHOLE[:2], third]) == [("gap", 3)]


Change = tuple[str, int, int]


@settings(max_examples=300)
@given(st.lists(st.tuples(st.sampled_from(["edit", "rehash", "delete", "insert", "swap", "renumber", "relink"]), places, places)))
def test_whatever_is_done_to_what_was_signed_something_is_found(changes):
    tampered = list(WHOLE)
    for what, place, other_place in changes:
        if not tampered:
            break
        one, other = place % len(tampered), other_place % len(tampered)
        if what == "edit":
            tampered[one] = changed(tampered[one], facts="a" * 64)
        elif what == "rehash":
            tampered[one] = rehashed(tampered[one], facts="b" * 64)
        elif what == "delete":
            del tampered[one]
        elif what == "insert":
            tampered.insert(one, rehashed(tampered[other], subject="forged"))
        elif what == "swap":
            tampered[one], tampered[other] = tampered[other], tampered[one]
        else:
            tampered = renumbered(tampered) if what == "renumber" else relinked(tampered)
    assert bool(found(tampered, 3, 7, SIZE)) == (tampered[:SIZE] != WHOLE)


def test_a_ledger_is_checked_in_the_memory_of_a_few_entries():
    def peak(size: int) -> int:
        tracemalloc.start()
        assert not list(check_chain(TENANT, stream(size)))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    def stream(size: int):
        entry = None
        for _ in range(size):
            entry = next_entry(entry, tenant=TENANT, at="", kind="card", subject="s", facts="f")
            yield entry

    assert peak(4000) < peak(400) + 20_000


# --- records ----------------------------------------------------------------------------------------------------------

FACTS, PAYLOAD = {"rollout_id": "card-1", "tenant": TENANT, "seconds": 1.5}, {"answer": "13.4%", "steps": [{"said": "I look"}]}
ENTRY = next_entry(
    None, tenant=TENANT, at="", kind="card", subject="card-1", facts=facts_digest(FACTS), payload=payload_digest(PAYLOAD, SALT)
)  # fmt: skip


def what_of(**held: object) -> str:
    finding = check_record(Record(**({"entry": ENTRY, "facts": FACTS, "payload": PAYLOAD, "salt": SALT} | held)))
    return finding.what if finding else ""


def test_a_record_as_it_was_recorded_has_no_finding():
    assert what_of() == ""
    assert what_of(entry=changed(ENTRY, payload=""), payload=None, salt=None) == "", "one without a payload"


@pytest.mark.parametrize(
    "held",
    [{"facts": FACTS | {"seconds": 1.6}}, {"payload": PAYLOAD | {"answer": "13.5%"}}, {"salt": bytes(16)}, {"salt": b"short"}],
)
def test_an_edited_record_is_named(held):
    assert what_of(**held) == "edited"


def test_a_record_that_is_gone_is_named_and_one_that_was_never_recorded_too():
    assert what_of(facts=None) == "removed"
    assert unrecorded(TENANT, "card", "card-9").what == "inserted"


def test_an_erased_payload_leaves_the_record_valid_and_one_that_merely_vanished_does_not():
    assert what_of(payload=None, salt=None, erased=True) == ""
    assert what_of(payload=None, salt=None) == "removed"
    assert what_of(facts=FACTS | {"seconds": 2.0}, payload=None, salt=None, erased=True) == "edited"


FLOATS = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(
    [0.0, -0.0, 1e-4, 9.9e-5, 1e16, 9999999999999998.0, 1e15, 0.1, 5e-324]
)
VALUES = st.recursive(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")) | st.integers() | FLOATS | st.booleans() | st.none(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=4), inner, max_size=4)
        | st.dictionaries(st.integers(), inner, max_size=2)
    ),
    max_leaves=12,
)


@settings(max_examples=500)
@given(VALUES)
def test_the_canonical_bytes_are_those_of_pythons_own_json_whichever_way_they_are_written(value):
    assert canonical_bytes(value) == json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def test_every_character_is_written_as_pythons_own_json_writes_it():
    every = "".join(map(chr, [*range(1, 0xD800), *range(0xE000, 0x110000)]))
    assert canonical_bytes({"every": every}) == json.dumps({"every": every}, separators=(",", ":"), ensure_ascii=False).encode()
