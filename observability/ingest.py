"""Takes job cards into the store. Training never waits for it: `record` only queues, one thread settles what waits, here or
(settler_process.py) in a process of its own.

A card counts as acknowledged once its transaction is durable. A store that is locked, gone or full is tried again, with
growing pauses, and the cards wait in memory; one that never comes back gets them written to a file beside it, which
`replay` brings in later. A card that the store refuses for good goes to that file at once: it is safe there, so it is
warned about and counted in `refused`, and holds up neither other cards nor checkpoints.
"""

from __future__ import annotations

import atexit
import datetime as dt
import itertools
import json
import os
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import msgspec
import sqlalchemy as sa
import structlog
from sqlalchemy import exc

from agent_rft.contracts.errors import InfraError, UserError
from agent_rft.contracts.jobcards import JobCard
from observability.book import Book
from observability.records import CardRows, RecordedCard, Values, rows_of, without_token_ids
from observability.redaction.cards import redact_card
from observability.redaction.detectors import BUILT_IN_ONLY, Detectors, detectors_of
from observability.rows import add_rows
from observability.sources import Said, note_all, source_name
from observability.store import Store, one_of, open_store
from observability.tables import blobs, card_steps, grades, job_cards
from observability.texts import packed, storable

BATCH = 50  # cards a transaction: larger ones are hardly faster, and hold other processes up longer
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0  # seconds between tries
WARN_WAITING = 100_000  # cards, some 20 KB each: 2 GB that only the database's return can free
STORE_AWAY = (exc.OperationalError, exc.InterfaceError, exc.InternalError, exc.TimeoutError, OSError)
"""Locked, gone, full, read-only: nothing is wrong with the card, unless `is_away` knows better. Any other failure is the card's own."""
CARDS_OWN = ("22", "23", "54")
"""Classes of PostgreSQL's errors: a value is wrong, a rule forbids it, it is larger than an index holds."""

CREDIT = (
    sa.update(job_cards)
    .where(job_cards.c.rollout_id == sa.bindparam("credited"), job_cards.c.tenant == sa.bindparam("of_tenant"))
    .values(advantage=sa.bindparam("worth"), credit_entry=sa.bindparam("credit"))
)
log = structlog.get_logger(__name__)


class Refusal(NamedTuple):
    """A card that will never be in the store. It is safe in the rescue file."""

    rollout_id: str
    why: str


class Settled(NamedTuple):
    refused: tuple[Refusal, ...]
    rescue_file: Path
    """Where cards go that are not stored: another than it was where that disk is full."""


class Settling(Protocol):
    """Brings cards to where they are safe."""

    def settle(self, batch: Sequence[RecordedCard], rescue_file: Path) -> Settled:
        """All of them; raises one of STORE_AWAY where it has to be tried again."""
        ...

    def close(self) -> None: ...


class Settler:
    """In this process."""

    def __init__(
        self,
        store: Store,
        redacting: bool = True,
        patterns: Mapping[str, str] | None = None,
        tenant_patterns: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self._store = store
        self._detectors = detectors_of(redacting, patterns, tenant_patterns)

    def settle(self, batch: Sequence[RecordedCard], rescue_file: Path) -> Settled:
        """One that cannot be redacted never comes into the store: it waits in the rescue file for detectors that can."""
        sound, faults = list[RecordedCard](), list[tuple[RecordedCard, Exception]]()
        for recorded in batch:
            try:
                sound.append(redacted(recorded, self._detectors))
            except Exception as error:  # nobody may hold up the others, neither a card nor a tenant's pattern
                faults.append((recorded, error))
        faults += self._inserted(sound)
        if faults:
            rescue_file = rescue([recorded for recorded, _ in faults], rescue_file)
        return Settled(tuple(Refusal(recorded.card.rollout_id, reason(error)) for recorded, error in faults), rescue_file)

    def _inserted(self, sound: Sequence[RecordedCard]) -> list[tuple[RecordedCard, Exception]]:
        """The batch, or each card alone where one spoils it; those that the store refuses."""
        try:
            if sound:
                insert_cards(self._store, sound)
        except Exception as error:
            if is_away(error):
                raise
            if len(sound) == 1:
                return [(sound[0], error)]
            return [refused for recorded in sound for refused in self._inserted([recorded])]
        return []

    def close(self) -> None:
        pass


class StoreRecorder:
    """The recorder port over a store. Use it as a context manager, or call `close` at the end.

    The queue in memory has no bound: dropping a card or blocking training would each break a promise. At 100,000 waiting
    cards it says so in the log, once.
    """

    def __init__(
        self,
        store: Store,
        redacting: bool = True,
        patterns: Mapping[str, str] | None = None,
        tenant_patterns: Mapping[str, Mapping[str, str]] | None = None,
        part: str = "recorder",
        settling: Callable[..., Settling] = Settler,
    ) -> None:
        """`patterns`: what is removed besides, names and regular expressions; `tenant_patterns`: what is removed from one tenant's
        cards only. `part`: who records, for the list of sources, where it gets a name that no other has. `settling`: where cards are
        redacted and stored, made with the store and the three before."""
        self._recipe = (redacting, patterns, tenant_patterns, part, settling)
        self._source = source_name(part)
        self._given: dict[str, int] = {}  # numbers, by tenant: each sees its own cards only, and should see no gaps among them
        self._detectors = detectors_of(redacting, patterns, tenant_patterns)
        self.recorded = 0
        self.acknowledged = 0
        self.refused = 0
        self.rescue_file = store.folder / f"cards-unsaved-{os.getpid()}.jsonl"
        self._store = store
        self._waiting: deque[RecordedCard] = deque()
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._settler = settling(store, redacting, patterns, tenant_patterns)
        self._trouble = ""
        self._refusal = ""
        self._warned = False
        self._writer = threading.Thread(target=self._write, name="card-writer", daemon=True)
        self._writer.start()
        atexit.register(self.close)

    def __reduce__(self) -> tuple[Callable[..., StoreRecorder], tuple[Any, ...]]:
        """Sent to another process, it is a recorder of its own there, over the same store."""
        return recorder_at, (self._store.address, *self._recipe)

    def record(self, card: JobCard) -> None:
        kept, now = without_token_ids(card), dt.datetime.now(dt.UTC)
        with self._changed:
            if self._stopped.is_set():
                raise RuntimeError("this recorder is closed")
            number = self._given[card.tenant] = self._given.get(card.tenant, 0) + 1
            self._waiting.append(RecordedCard(kept, now, source=self._source, number=number))
            self.recorded += 1
            crowded = len(self._waiting) >= WARN_WAITING and not self._warned
            self._warned |= crowded
            self._changed.notify_all()
        if crowded:
            log.warning("job cards pile up in memory", waiting=WARN_WAITING, store=self._store.name, trouble=self._trouble)

    def flush(self, timeout: float = 60.0) -> None:
        """Returns once every card recorded so far is durable, in the store or, refused by it, in the rescue file. Raises
        InfraError saying how many are not, and why."""
        with self._changed:
            target = self.recorded
            self._changed.wait_for(lambda: self._settled >= target or self._stopped.is_set(), timeout)
            waiting, trouble = target - self._settled, self._trouble or "still being written"
        if waiting > 0:
            raise InfraError("card store", f"{waiting} of {target} cards are not durable after {timeout:g} s: {trouble}")

    def close(self, timeout: float = 60.0) -> None:
        """Flushes and stops. Cards that the store did not take in that time are saved to the rescue file."""
        if self._stopped.is_set():
            return
        why = "recorded while closing"
        try:
            self.flush(timeout)
            self._announce()
        except InfraError as error:
            why = error.what
        unsaved = self._stop()
        if self.refused:
            log.warning("cards refused", refused=self.refused, of=self.recorded, saved_in=str(self.rescue_file))
        if unsaved:
            try:
                self.rescue_file = rescue(unsaved, self.rescue_file)
            except OSError as error:
                raise InfraError("card store", f"{why}. Nor could they be saved to a file: {error}. They are lost") from error
            raise InfraError("card store", f"{why}. They are safe in {self.rescue_file}: replay that file once the store is back")

    def _announce(self) -> None:
        """Says how many cards there were, so that one which was lost on its way shows, even the last."""
        said = [Said(tenant=tenant, source=self._source, announced=given) for tenant, given in self._given.items()]
        try:
            if said:
                insert_cards(self._store, (), said)
        except (exc.SQLAlchemyError, OSError) as error:  # every card is safe, and reviewers will read that no number was announced
            log.warning("the number of cards could not be announced", source=self._source, trouble=reason(error))

    def __enter__(self) -> StoreRecorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # --- the writer's side ------------------------------------------------------------------------------------------

    @property
    def _settled(self) -> int:
        return self.acknowledged + self.refused

    def _stop(self) -> list[RecordedCard]:
        """Stops the writer; answers the cards that are not settled. One it may still be writing is among them: the store
        takes a card once, however often it comes."""
        with self._changed:
            self._stopped.set()
            self._changed.notify_all()
            unsaved = [self._for_the_file(recorded) for recorded in self._waiting]
        self._writer.join(timeout=LONGEST_PAUSE)
        self._settler.close()
        atexit.unregister(self.close)  # only now: an interrupted close is done again at exit
        return unsaved

    def _for_the_file(self, recorded: RecordedCard) -> RecordedCard:
        try:
            return redacted(recorded, self._detectors)
        except Exception:  # unredacted rather than lost: nobody but its owner reads that file
            return recorded

    def _write(self) -> None:
        pause, away = FIRST_PAUSE, False
        batch = list[RecordedCard]()
        while batch := batch or self._next_batch():
            try:
                settled = self._settler.settle(batch, self.rescue_file)
            except STORE_AWAY as error:
                self._trouble = reason(error)
                if not away and pause == LONGEST_PAUSE:  # a moment's lock is nobody's business, this is longer
                    away = True
                    log.warning("card store away; cards wait in memory", waiting=len(self._waiting), trouble=self._trouble)
                if self._stopped.wait(pause):
                    return
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            if away:
                log.info("card store back", store=self._store.name)
            pause, away, self._trouble = FIRST_PAUSE, False, ""
            self._settled_now(len(batch), settled)
            batch = []

    def _settled_now(self, count: int, settled: Settled) -> None:
        for refusal in settled.refused:
            if refusal.why != self._refusal:  # what spoils every card is told once; `close` tells how many
                self._refusal = refusal.why
                log.warning("card refused", rollout_id=refusal.rollout_id, trouble=refusal.why, saved_in=str(settled.rescue_file))
        with self._changed:
            for _ in range(count):
                self._waiting.popleft()
            self.rescue_file = settled.rescue_file
            self.acknowledged += count - len(settled.refused)
            self.refused += len(settled.refused)
            self._changed.notify_all()

    def _next_batch(self) -> list[RecordedCard]:
        """The oldest waiting cards, left in the queue until they are settled. Empty when it is time to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopped.is_set())
            return [] if self._stopped.is_set() else list(itertools.islice(self._waiting, BATCH))


def recorder_at(address: str, *recipe: Any) -> StoreRecorder:
    return StoreRecorder(open_store(address), *recipe)


def redacted(recorded: RecordedCard, detectors: Detectors) -> RecordedCard:
    """As it may be stored or sent. What cannot be redacted leaves the memory for the rescue file only."""
    if not (its := detectors.of(recorded.card.tenant)):
        return msgspec.structs.replace(recorded, card=without_token_ids(recorded.card))
    card, removed = redact_card(recorded.card, its)
    return msgspec.structs.replace(recorded, card=card, removed=(*(recorded.removed or ()), *removed))


Keyed = dict[tuple[str, str], CardRows]
"""Cards to be added, by rollout and tenant."""


def insert_cards(store: Store, batch: Sequence[RecordedCard], said: Sequence[Said] = ()) -> int:
    """One transaction, which notes besides what came from which source. Answers how many cards were new."""
    rows = keyed((recorded.card, rows_of(recorded)) for recorded in batch)
    with store.writing() as connection:
        book = Book(connection, (tenant for _, tenant in rows))
        new = add_cards(connection, book, rows)
        book.close()
        note_all(connection, batch, said, dt.datetime.now(dt.UTC))
    return len(new)


def keyed(cards: Iterable[tuple[JobCard, CardRows]]) -> Keyed:
    """Of a card that comes twice the first counts, the first advantage that any of them has, and the grades of all."""
    rows = Keyed()
    for card, its_rows in cards:
        first = rows.setdefault((card.rollout_id, card.tenant), its_rows)
        if first is its_rows:
            continue
        first.card["advantage"] = card.advantage if first.card["advantage"] is None else first.card["advantage"]
        there = {grade_key(grade) for grade in first.grades}
        first.grades.extend(grade for grade in its_rows.grades if grade_key(grade) not in there)
    return rows


def grade_key(row: Mapping[str, Any] | sa.RowMapping) -> tuple[Any, ...]:
    """What tells one grade of a card from another: one that says again what the same grader's version has said adds nothing."""
    return tuple(row[name] for name in ("tenant", "rollout_id", "grader", "version", "reward", "passed"))


def add_cards(connection: sa.Connection, book: Book, rows: Keyed) -> set[tuple[str, str]]:
    """A card that the store holds already stays as it is, but for a grade and an advantage that it did not have: its trace may have
    come before its recorder's card, and what a rollout was worth is known once its group has ended. Answers which were new."""
    held = _held(connection, rows)
    new = {key: row for key, row in rows.items() if key not in held}
    for row in new.values():
        book.card(row)
    _insert(connection, list(new.values()))
    worth = [rows[key].card for key, there in held.items() if there["advantage"] is None and rows[key].card["advantage"] is not None]
    if worth:
        connection.execute(CREDIT, [_credit(card, book.credit(card)) for card in worth])
    add_grades(connection, book, [grade for key in held for grade in rows[key].grades])
    for key, there in held.items():
        if not there["erased"] and storable(rows[key].card["answer"]) != there["answer"]:
            log.warning("a card that is there already came with another answer; the first stays", tenant=key[1], rollout_id=key[0])
    return set(new)


def add_grades(connection: sa.Connection, book: Book, given: Iterable[Values]) -> None:
    """Of cards that the store holds; those among them that say nothing new are left out."""
    rows = {grade_key(row): row for row in given}
    if not rows:
        return
    ids = {row["rollout_id"] for row in rows.values()}
    there = {grade_key(row) for row in connection.execute(sa.select(grades).where(grades.c.rollout_id.in_(ids))).mappings()}
    new = [row for key, row in rows.items() if key not in there]
    for row in new:
        book.grade(row)
    add_rows(connection, grades, new)


def _held(connection: sa.Connection, keys: Collection[tuple[str, str]]) -> dict[tuple[str, str], sa.RowMapping]:
    """Which of the cards are there, and what of them may differ. The book is open, so that no other writer adds one meanwhile."""
    erased = job_cards.c.salt.is_(None).label("erased")
    columns = (job_cards.c.rollout_id, job_cards.c.tenant, job_cards.c.advantage, job_cards.c.answer, erased)
    select = sa.select(*columns).where(one_of(connection.dialect.name, job_cards.c.rollout_id, [rollout_id for rollout_id, _ in keys]))
    found = {(row["rollout_id"], row["tenant"]): row for row in connection.execute(select).mappings()}
    return {key: row for key, row in found.items() if key in keys}


def _insert(connection: sa.Connection, new: Sequence[CardRows]) -> None:
    add_rows(connection, job_cards, [row.card for row in new])
    add_rows(connection, card_steps, [step for row in new for step in row.steps])
    add_rows(connection, grades, [grade for row in new for grade in row.grades])
    texts = {(row.card["tenant"], key): text for row in new for key, text in row.blobs.items()}
    known = _known_texts(connection, texts)
    bodies = [{"tenant": tenant, "hash": key, "body": packed(text)} for (tenant, key), text in texts.items() if (tenant, key) not in known]
    add_rows(connection, blobs, bodies)


def _known_texts(connection: sa.Connection, keys: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
    """Those that need not be packed once more: cards share what they were given. The book is open, so that nobody erases one meanwhile."""
    found = set[tuple[str, str]]()
    for tenant in {tenant for tenant, _ in keys}:
        its = one_of(connection.dialect.name, blobs.c.hash, [key for owner, key in keys if owner == tenant])
        found.update((tenant, key) for key in connection.scalars(sa.select(blobs.c.hash).where(blobs.c.tenant == tenant, its)))
    return found


def _credit(card: Values, entry: int) -> Values:
    return {"credited": card["rollout_id"], "of_tenant": card["tenant"], "worth": card["advantage"], "credit": entry}


# --- the rescue file --------------------------------------------------------------------------------------------------


def rescue(cards: Sequence[RecordedCard], path: Path) -> Path:
    """Appends the cards to `path` as JSON lines, durably; where that disk is full too, to a new file in the temporary folder. They
    stand there as they are given: one that could not be redacted unredacted, so nobody but its owner may read the file."""
    lines = "".join(json.dumps(msgspec.to_builtins(card, enc_hook=repr)) + "\n" for card in cards).encode()
    try:
        _append(lines, path)
    except OSError:
        handle, name = tempfile.mkstemp(path.suffix, f"{path.stem}-", tempfile.gettempdir())  # a name that nobody could guess
        os.close(handle)
        path = Path(name)
        _append(lines, path)
    return path


def _owners_alone(path: str, flags: int) -> int:
    """Follows no link that somebody laid there."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _append(lines: bytes, path: Path) -> None:
    """All of it or nothing: half a line would spoil the file for `replay`."""
    with open(path, "ab", buffering=0, opener=_owners_alone) as file:
        before = file.tell()
        try:
            written = file.write(lines)
            os.fsync(file.fileno())
        except OSError:
            file.truncate(before)
            raise
        if written != len(lines):
            file.truncate(before)
            raise OSError("the disk took only a part")


def replay(store: Store, path: Path) -> int:
    """Brings a rescue file into the store; answers how many cards were new. Doing it twice does no harm."""
    cards, new = _rescued(path), 0
    while batch := list(itertools.islice(cards, BATCH)):
        new += _replayed(store, batch, path)
    return new


def _replayed(store: Store, batch: Sequence[RecordedCard], path: Path) -> int:
    try:
        return insert_cards(store, batch)
    except Exception as error:
        if is_away(error):
            raise
        if len(batch) > 1:
            return sum(_replayed(store, [card], path) for card in batch)
        raise UserError(
            f"{path}: the store refuses card {batch[0].card.rollout_id}: {reason(error)}",
            "the lines before it are in the store; mend or remove this one",
        ) from None


def _rescued(path: Path) -> Iterator[RecordedCard]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                yield _rescued_card(line, f"{path}:{number}")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", "name the file that the error message named") from None


def _rescued_card(line: str, where: str) -> RecordedCard:
    """Redacted, where the file is from before cards were, or somebody turned that off."""
    try:
        rescued = msgspec.convert(json.loads(line), RecordedCard)
    except (ValueError, msgspec.ValidationError) as error:
        raise UserError(f"{where}: not a saved card: {error}", "the lines before it are in the store; mend or remove this one") from None
    return rescued if rescued.removed is not None else redacted(rescued, BUILT_IN_ONLY)


def is_away(error: Exception) -> bool:
    """Whether to try again. PostgreSQL's driver says of a name that no index holds what it says of a disk that is full."""
    state = str(getattr(getattr(error, "orig", None), "sqlstate", None) or "")
    return isinstance(error, STORE_AWAY) and state[:2] not in CARDS_OWN


def reason(error: Exception) -> str:
    """The database's own words, without the statement and the values."""
    return str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
