"""A client's spool: cards wait on its own disk until the server has them.

`keep` returns once the cards are on disk, whatever happens to this process then. It refuses, and says so, where the spool or
the disk is full: nothing is ever dropped to make room. A card leaves only after the server took it, or refused it for good,
which sets it aside with the reason. A kill between the server's answer and our note of it sends those cards again: they
arrive at least once, and the server tells them by their ids. Processes may share a spool: a lock keeps their writes apart,
and one at a time sends.
"""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import errno
import fcntl
import os
import random
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path

import msgspec
import structlog

from agent_rft.contracts.errors import InfraError
from agent_rft.contracts.retries import TryAgain, pause_before_next
from observability.spooling import Position, Refused, Scanned, frame, mark, newest_mark, scan

SUFFIX = ".spool"
log = structlog.get_logger(__name__)


class SpoolFull(InfraError):
    """The cards were not kept: there is no room for them."""


class Batch(msgspec.Struct, frozen=True):
    cards: tuple[bytes, ...]
    end: Position
    """What to call `sent` with once they are delivered."""


class Spool:
    """A folder with segments that only grow, a mark of what has been sent, and what the server refused."""

    def __init__(self, folder: Path, max_bytes: int, segment_bytes: int = 8 * 2**20) -> None:
        self.refused_file = folder / "refused.jsonl"
        self._folder = folder
        self._max_bytes = max_bytes
        self._segment_bytes = segment_bytes
        self._checked = Position(0, 0)  # up to here the newest segment is known to be whole frames
        self._open = (0, -1)  # the segment that cards are put into, and its file
        self._lock = -1  # the lock's file, which `put` keeps open
        self._used = 0  # as it was last counted, and what was put since
        self._unsynced = set[int]()
        self._doubtful = set[int]()
        """Of these a sync failed."""
        folder.mkdir(parents=True, exist_ok=True)
        with self._locked("write.lock"):
            if not (folder / "sent").exists():
                self._mark_sent(Position(0, 0))
                _sync(folder)
                _sync(folder.parent)

    # --- in ---------------------------------------------------------------------------------------------------------

    def keep(self, cards: Sequence[bytes]) -> Position:
        """All of them or, raising SpoolFull, none. Answers where they end: once `sent_up_to` has come there, they are delivered."""
        frames = b"".join(map(frame, cards))
        with self._locked("write.lock"):
            self._refuse_beyond(self.bytes_used(), len(frames))
            try:
                return self._append(self._writable_segment(), frames)
            except OSError as error:
                why = f"{self._folder}: {error.strerror}; {len(cards)} cards were not kept"
                raise SpoolFull("card spool", why, "make room on that disk") from error

    def put(self, card: bytes) -> Position:
        """As `keep`, but into the system's hands: safe from the end of this process when it returns, from that of the machine after
        `sync`. It takes a hundredth of the time. For one thread of a process."""
        data = frame(card)
        if self._lock < 0:
            self._lock = self._open_lock("write.lock")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            self._put(data)
            return self._checked
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _put(self, data: bytes) -> None:
        if not self._goes_on():
            self._go_on()
        if self._used + len(data) > self._max_bytes:
            self._used = self.bytes_used()
            self._refuse_beyond(self._used, len(data))
        try:
            _write_all(self._open[1], data, self._checked.offset)
        except OSError as error:
            os.ftruncate(self._open[1], self._checked.offset)
            raise SpoolFull("card spool", f"{self._folder}: {error.strerror}", "make room on that disk") from error
        self._checked = Position(self._checked.segment, self._checked.offset + len(data))
        self._used += len(data)
        self._unsynced.add(self._checked.segment)

    def sync(self) -> None:
        """All that was put before it was called is on the disk when it returns. Where the disk failed at it once, the system may have
        given up what it could not write, and would say yes the next time all the same: so it is written again first."""
        segments = list(self._unsynced)  # the set itself grows meanwhile, in the thread that puts
        self._unsynced.difference_update(segments)
        try:
            for segment in segments:
                with contextlib.suppress(FileNotFoundError):  # delivered meanwhile
                    if segment in self._doubtful:
                        self._write_again(segment)
                    _sync(self._path(segment))
            if segments:
                _sync(self._folder)
        except OSError:
            self._unsynced.update(segments)
            self._doubtful.update(segments)
            raise
        self._doubtful.difference_update(segments)

    def _write_again(self, segment: int) -> None:
        """As the system still has it in memory. Where it does not, what comes back are no whole cards: then they are gone, and no sync
        says otherwise."""
        with self._locked("write.lock"):
            data = self._read(segment, 0)
            cut_off = segment == self._checked.segment and len(data) < self._checked.offset
            if cut_off or scan(data).then == "damaged":
                self._checked = Position(0, 0)  # nothing more is put behind it
                raise OSError(errno.EIO, f"the disk lost cards of {self._path(segment).name}")
            file = os.open(self._path(segment), os.O_WRONLY)
            try:
                _write_all(file, data, 0)
            finally:
                os.close(file)

    def _goes_on(self) -> bool:
        """Whether nobody has written into the segment since, it was not delivered and deleted, and it is not full."""
        segment, file = self._open
        if file < 0 or segment != self._checked.segment or self._checked.offset >= self._segment_bytes:
            return False
        seen = os.fstat(file)
        return bool(seen.st_nlink) and seen.st_size == self._checked.offset

    def _go_on(self) -> None:
        segment, file = self._open
        self._open = (segment, -1)
        if file >= 0:
            os.close(file)
        self._checked = self._writable_segment()
        path = self._path(self._checked.segment)
        self._open = (self._checked.segment, os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
        self._used = self.bytes_used()

    def _refuse_beyond(self, used: int, more: int) -> None:
        if used + more > self._max_bytes:
            what = f"{more} bytes do not fit beside the {used} of {self._max_bytes} that wait in {self._folder}"
            raise SpoolFull("card spool", what, "bring the card server back, or give the spool more room")

    def bytes_used(self) -> int:
        """What counts against the bound: segments until their last card is sent, and what was set aside."""
        paths = [*self._folder.glob("*" + SUFFIX), *self._folder.glob("damaged-*"), self.refused_file]
        return sum(_size(path) for path in paths)

    def _writable_segment(self) -> Position:
        """Where the next frame goes. A write that a kill cut short is cut off first; nothing is written after damage."""
        segments = self._segments()
        newest = max([*segments, self._sent_so_far()[0].segment])
        if newest in segments:
            offset = self._checked.offset if self._checked.segment == newest else 0
            scanned = scan(self._read(newest, offset))
            good = offset + scanned.used
            if scanned.then == "short":
                os.truncate(self._path(newest), good)
                log.warning("cut off a card that was still being written when its process ended", spool=str(self._folder))
            if scanned.then != "damaged" and good < self._segment_bytes:
                return Position(newest, good)
        return Position(newest + 1, 0)

    def _append(self, at: Position, frames: bytes) -> Position:
        path = self._path(at.segment)
        file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            _write_all(file, frames, at.offset)
            os.fsync(file)
            if not at.offset:
                _sync(self._folder)
        except OSError:
            os.ftruncate(file, at.offset)
            raise
        finally:
            os.close(file)
        self._checked = Position(at.segment, at.offset + len(frames))
        return self._checked

    # --- out --------------------------------------------------------------------------------------------------------

    def unsent(self, most_cards: int, most_bytes: int) -> Batch | None:
        """The oldest cards that have not been sent; at least one, however large. None where all have."""
        if batch := self._seen(most_cards, most_bytes):
            return batch
        with self._locked("write.lock"):
            position = self._sent_so_far()[0]
            for segment in [number for number in self._segments() if number >= position.segment]:
                if not self._path(segment).exists():  # an empty one went with the damaged one before it
                    continue
                offset = position.offset if segment == position.segment else 0
                scanned = scan(self._read(segment, offset, most_bytes), most_cards)
                if not scanned.cards:
                    scanned = scan(self._read(segment, offset), 1)
                if scanned.cards:
                    return Batch(scanned.cards, Position(segment, offset + scanned.used))
                self._put_away_if_damaged(segment, offset, scanned)
        return None

    def _seen(self, most_cards: int, most_bytes: int) -> Batch | None:
        """Without the lock, so that who writes need not wait for who reads. None where there is nothing, or anything odd."""
        position = self._sent_so_far()[0]
        for segment in [number for number in self._segments() if number >= position.segment]:
            offset = position.offset if segment == position.segment else 0
            try:
                scanned = scan(self._read(segment, offset, most_bytes), most_cards)
            except FileNotFoundError:
                return None
            if scanned.cards:
                return Batch(scanned.cards, Position(segment, offset + scanned.used))
            if scanned.then != "end":
                return None
        return None

    def sent(self, position: Position) -> None:
        """Everything before it is delivered or set aside: it may go. Only one sends, so the mark needs no lock."""
        self._mark_sent(position)
        with self._locked("write.lock"):
            self._delete_sent(position)

    def sent_up_to(self) -> Position:
        return self._sent_so_far()[0]

    def set_aside(self, card: bytes, why: str) -> None:
        """For a person to look at: the server will never take it."""
        try:
            text = {"card": card.decode()}
        except UnicodeDecodeError:
            text = {"card_base64": base64.b64encode(card).decode()}
        line = msgspec.json.encode({"at": dt.datetime.now(dt.UTC), "why": why, **text}) + b"\n"
        with self._locked("write.lock"):
            self._append_line(line)
        log.error("the card server refused a card", why=why, set_aside_in=str(self.refused_file))

    @contextlib.contextmanager
    def sending(self) -> Generator[bool]:
        """Holds the right to send. False: another process has it."""
        with self._locked("send.lock", wait=False) as mine:
            yield mine

    def _delete_sent(self, position: Position) -> None:
        segments = self._segments()
        all_sent = not segments or position >= Position(segments[-1], _size(self._path(segments[-1])))
        for segment in segments:
            if segment < position.segment or all_sent:
                self._path(segment).unlink()

    def _append_line(self, line: bytes) -> None:
        file = os.open(self.refused_file, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            before = os.fstat(file).st_size
            try:
                _write_all(file, line, before)
                os.fsync(file)
            except OSError:
                os.ftruncate(file, before)
                raise
        finally:
            os.close(file)
        if not before:
            _sync(self._folder)

    def _put_away_if_damaged(self, segment: int, offset: int, scanned: Scanned) -> None:
        """What cannot be read is kept under another name, not sent and not thrown away."""
        last = segment == self._segments()[-1]
        if scanned.then == "damaged" or (scanned.then == "short" and not last):
            kept = self._folder / f"damaged-{segment:020d}-from-{offset}"
            self._path(segment).rename(kept)
            _sync(self._folder)
            self._mark_sent(Position(segment + 1, 0))
            self._delete_sent(Position(segment + 1, 0))
            log.error("the spool is damaged: cards in it cannot be read", kept_in=str(kept), bytes=_size(kept) - offset)

    # --- files ------------------------------------------------------------------------------------------------------

    def _sent_so_far(self) -> tuple[Position, int]:
        return newest_mark((self._folder / "sent").read_bytes() if (self._folder / "sent").exists() else b"")

    def _mark_sent(self, position: Position) -> None:
        _, count = self._sent_so_far()
        at, text = mark(position, count + 1)
        file = os.open(self._folder / "sent", os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            if not os.fstat(file).st_size:
                _write_all(file, bytes(1024), 0)  # takes now the room that it will ever need
            _write_all(file, text, at)
            os.fsync(file)
        finally:
            os.close(file)

    def _segments(self) -> list[int]:
        return sorted(int(path.stem) for path in self._folder.glob("*" + SUFFIX))

    def _path(self, segment: int) -> Path:
        return self._folder / f"{segment:020d}{SUFFIX}"

    def _read(self, segment: int, offset: int, most: int = -1) -> bytes:
        with self._path(segment).open("rb", buffering=0) as file:
            file.seek(offset)
            return file.read(most) or b""

    def _open_lock(self, name: str) -> int:
        return os.open(f"{self._folder}/{name}", os.O_RDWR | os.O_CREAT, 0o600)

    @contextlib.contextmanager
    def _locked(self, name: str, wait: bool = True) -> Generator[bool]:
        """Held against threads and processes alike, for each opening of the file has a lock of its own; a kill lets it go."""
        file = self._open_lock(name)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(file)


def _write_all(file: int, data: bytes, at: int) -> None:
    """A disk that is nearly full takes a part and only then says no."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(file, rest, at)
        rest, at = rest[written:], at + written


def _sync(path: Path) -> None:
    """A file's folder too: else the file may be durable and its name not."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


# --- sending ------------------------------------------------------------------------------------------------------------

Post = Callable[[Sequence[bytes]], Mapping[int, str]]
"""Delivers cards and returns once the server has them durably, but for those that it answers with: their places in what it was
given, and why the server will never take them. Raises Refused where it will never take them as they come together, TryAgain (or
an OSError) where it may take them later; `spooling.judge` reads both from an HTTP answer."""


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """How much goes at once, and how long to wait when it does not go."""

    batch_cards: int = 50
    batch_bytes: int = 4 * 2**20
    backoff_seconds: float = 0.5
    longest_seconds: float = 60.0
    idle_seconds: float = 0.25
    """Between looks at an empty spool: other processes fill it too."""
    busy_seconds: float = 0.25
    """The same, where the last look found as many as a fifth of a batch: what comes together costs less."""


class Sender:
    """Empties a spool into a server."""

    def __init__(self, spool: Spool, post: Post, patience: Patience | None = None) -> None:
        self._spool = spool
        self._post = post
        self._patience = patience or Patience()
        self.sent = self.refused = 0
        self.trouble = ""
        """Why the server takes nothing, while it does not."""
        self._set_aside: set[bytes] = set()  # of the batch that is under way
        self._busy = False

    def drain(self) -> None:
        """Sends what waits. Raises TryAgain or OSError where the server would not take it now; nothing is lost by that."""
        self._busy = False
        with self._spool.sending() as mine:
            while mine and (batch := self._spool.unsent(self._patience.batch_cards, self._patience.batch_bytes)):
                self._busy |= len(batch.cards) * 5 >= self._patience.batch_cards
                self._deliver([card for card in batch.cards if card not in self._set_aside])
                self._spool.sent(batch.end)
                self._set_aside.clear()

    def run(self, stopped: threading.Event) -> None:
        """Until told to stop. Waits longer after each failure, and as long as the server asks to."""
        failed = 0
        while not stopped.is_set():
            try:
                self.drain()
            except (TryAgain, OSError) as error:
                failed, self.trouble = failed + 1, str(error)
                pause = self._pause(failed, error.pause_seconds if isinstance(error, TryAgain) else 0.0)
                if failed == 1:
                    log.warning("the card server takes nothing; cards wait in the spool", why=str(error))
                stopped.wait(pause)
                continue
            if failed:
                log.info("the card server takes cards again", tries=failed)
            failed, self.trouble = 0, ""
            stopped.wait(self._patience.busy_seconds if self._busy else self._patience.idle_seconds)

    def _pause(self, failed: int, asked_seconds: float) -> float:
        patience = self._patience
        return pause_before_next(failed, asked_seconds, patience.backoff_seconds, patience.longest_seconds, random.uniform(0.5, 1.5))

    def _deliver(self, cards: Sequence[bytes]) -> None:
        """Where one card spoils a batch, its halves are sent by themselves until it is found."""
        if not cards:
            return
        try:
            refused = self._post(cards)
        except Refused as error:
            if len(cards) > 1:
                half = len(cards) // 2
                self._deliver(cards[:half])
                self._deliver(cards[half:])
                return
            refused = {0: str(error)}
        self.sent += len(cards) - len(refused)
        for place, why in refused.items():
            self._spool.set_aside(cards[place], why)
            self._set_aside.add(cards[place])
            self.refused += 1
