"""Roots outlive a clock that steps back, a full disk, a kill in the middle of a line, and a file that was lost or cut."""

from __future__ import annotations

import datetime as dt
import io
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.jobcards import JobCard
from observability import roots
from observability.chain import SignedRoot
from observability.ingest import insert_cards
from observability.records import RecordedCard
from observability.roots import LedgerFiles, read_roots
from observability.signing import known_keys, open_keys, rotate, why_not_signed
from observability.store import Store, open_store
from observability.tables import ledger_roots

HOUR = "2026-11-22T{:02}:00:00.000000+00:00"
Enter = Callable[[], None]


@pytest.fixture
def files(tmp_path: Path, store: Store) -> LedgerFiles:
    return LedgerFiles.of(store, str(tmp_path / "outside"))


@pytest.fixture
def enter(store: Store, make_card: Callable[..., JobCard]) -> Enter:
    """One more card of one tenant."""
    numbers = iter(range(100))

    def one() -> None:
        card = make_card(f"0198c2{next(numbers):02d}-0000-7000-8000-000000000000", tenant="acme")
        insert_cards(store, [RecordedCard(card, dt.datetime(2026, 11, 22, tzinfo=dt.UTC))])

    return one


def sign(store: Store, files: LedgerFiles, at: str) -> SignedRoot | None:
    return roots.sign(store, "acme", open_keys(files.keys, at), files.roots, at)


def test_a_clock_that_steps_back_spoils_no_root(store, files, enter):
    """Signed at 10, at 9 and, behind a rotation at 12, at 11: no root is dated before its key or before the last root."""
    enter()
    sign(store, files, HOUR.format(10))
    enter()
    sign(store, files, HOUR.format(9))
    rotate(files.keys, HOUR.format(12))
    enter()
    sign(store, files, HOUR.format(11))
    signed = read_roots(files.roots)
    assert [root.at for root in signed] == [HOUR.format(10), HOUR.format(10), HOUR.format(12)]
    assert [why_not_signed(root, known_keys(files.keys)) for root in signed] == ["", "", ""]


def test_signing_goes_on_from_the_newest_root_that_counts(store, files, enter):
    enter()
    first = sign(store, files, HOUR.format(10))
    assert first
    void = msgspec.structs.replace(first, size=first.size + 1, at=HOUR.format(9))  # as an older version left them
    files.roots.write_bytes(files.roots.read_bytes() + msgspec.json.encode(void) + b"\n")
    enter()
    second = sign(store, files, HOUR.format(11))
    assert second and second.size == 2 * first.size and why_not_signed(second, known_keys(files.keys)) == ""


def test_a_root_that_would_count_for_nothing_is_not_written(store, files, enter):
    enter()
    open_keys(files.keys, HOUR.format(8))
    files.keys.write_text(files.keys.read_text().replace('"until": null', f'"until": "{HOUR.format(9)}"'))
    with pytest.raises(UserError, match="would count for nothing"):
        sign(store, files, HOUR.format(10))
    assert not files.roots.exists()


def test_half_a_line_counts_as_never_written_and_goes_with_the_next_root(store, files, enter):
    enter()
    first = sign(store, files, HOUR.format(10))
    enter()
    whole = files.roots.read_bytes()
    files.roots.write_bytes(whole + whole[:-40])
    assert read_roots(files.roots) == [first] and roots.is_torn(files.roots)
    second = sign(store, files, HOUR.format(11))
    assert second and read_roots(files.roots) == [first, second] and not roots.is_torn(files.roots)
    assert files.roots.read_bytes() == whole + msgspec.json.encode(second) + b"\n"


@pytest.mark.parametrize("fails", ["a part", "sync"])
def test_a_full_disk_is_one_clear_error_and_leaves_the_file_as_it_was(store, files, enter, monkeypatch, fails):
    enter()
    sign(store, files, HOUR.format(10))
    before = files.roots.read_bytes()
    enter()
    keys = open_keys(files.keys, HOUR.format(11))
    with monkeypatch.context() as full:

        def no_room(_: int) -> None:
            raise OSError(28, "No space left on device")

        if fails == "sync":
            full.setattr(os, "fsync", no_room)
        else:
            full.setattr(roots, "_write", lambda line, out, whole: WRITE(line, Small(out), whole))
        with pytest.raises(UserError, match=r"cannot be written to .*roots\.jsonl: (No space left|the disk took only a part)") as told:
            roots.sign(store, "acme", keys, files.roots, HOUR.format(11))
    assert told.value.cure
    assert files.roots.read_bytes() == before and len(stored(store)) == 1
    assert sign(store, files, HOUR.format(12))


WRITE = roots._write  # pyright: ignore[reportPrivateUsage]


class Small:
    """A file on a disk that has room for ten bytes."""

    def __init__(self, file: io.FileIO) -> None:
        self.file = file

    def write(self, line: bytes) -> int:
        return self.file.write(line[:10])

    def truncate(self, size: int) -> int:
        return self.file.truncate(size)


def stored(store: Store) -> list[int]:
    with store.reading() as connection:
        return list(connection.scalars(sa.select(ledger_roots.c.size)))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda file: file.unlink(), "lacks"),
        (lambda file: file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:1])), "lacks"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "lacks"),  # a last line that does not end was never written
        (lambda file: file.write_text(file.read_text().replace(HOUR.format(11), HOUR.format(10))), "has otherwise"),
    ],
)
def test_a_root_that_the_store_knows_and_the_file_does_not_is_told_and_ends_the_signing(store, files, enter, harm, words):
    for hour in (10, 11):
        enter()
        sign(store, files, HOUR.format(hour))
    assert roots.lost_roots(store, files.roots) == []
    largest = max(stored(store))
    harm(files.roots)
    left = files.roots.read_bytes() if files.roots.exists() else None
    expected = f"the store has a root of acme over {largest} entries, signed on {HOUR.format(11)}, which {files.roots} {words}"
    assert roots.lost_roots(store, files.roots)[-1] == expected
    assert roots.lost_roots(store, files.roots, "beta") == []
    enter()
    with pytest.raises(UserError, match="the ledger of acme is not signed") as told:
        sign(store, files, HOUR.format(12))
    assert "delete those rows of ledger_roots" in told.value.cure
    assert (files.roots.read_bytes() if files.roots.exists() else None) == left


def test_stores_of_nearly_one_name_have_ledger_folders_of_their_own(tmp_path):
    folders = [
        LedgerFiles.of(open_store(f"sqlite:///{tmp_path}/{name}"), None).keys.parent for name in ("cards.db", "cards.sqlite", "cards")
    ]
    assert folders == [tmp_path / name for name in ("cards-ledger", "cards.sqlite.ledger", "cards.ledger")]


@pytest.mark.parametrize(
    ("url", "folder"),
    [
        ("postgresql://me:secret@one.example/cards", "runs/cards@one.example-5432-ledger"),
        ("postgresql://two.example:5433/cards", "runs/cards@two.example-5433-ledger"),
        ("postgresql:///cards", "runs/cards@localhost-5432-ledger"),
        ("postgresql:///cards?host=/var/run", "runs/cards@_var_run-5432-ledger"),
    ],
)
def test_databases_of_one_name_on_two_servers_have_ledger_folders_of_their_own(url, folder):
    store = Store(sa.create_engine(sa.make_url(url).set(drivername="postgresql+psycopg")), "", Path())
    assert LedgerFiles.of(store, None).roots == Path(folder) / "roots.jsonl"
