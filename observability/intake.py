"""Takes in what comes over the network: many requests at once, one writer, and an answer only when everything is durable.

The writer puts what all waiting requests brought into one transaction, up to some size: a commit costs as much for one card as for
two hundred. What cannot be stored spoils nothing beside it; it is refused by name. Room is bounded: who comes when there is none is
told to come back, no tenant has more than half of it, and the writer takes from each in turn. A store that is away is tried for some
seconds; then its callers are told so and keep what they have.
"""

from __future__ import annotations

import datetime as dt
import itertools
import threading
import time
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import msgspec
import structlog

from observability.book import Book
from observability.ingest import STORE_AWAY, add_cards, is_away, keyed, reason, redacted
from observability.otlp.sampling import senders
from observability.otlp.spans import Received, Rejected
from observability.partitions import is_ahead, latest_id
from observability.records import CardRows, RecordedCard, rows_of, unfit
from observability.redaction.detectors import Detectors
from observability.sources import Said, note_all
from observability.store import Store
from observability.traces import Arrival, Bundle, bundles_of

MOST_AT_ONCE = 500
"""Cards and traces in a transaction."""
MOST_BYTES = 128_000_000
"""Of the bodies of requests that are being read or wait. In memory each takes some five times its size."""
PREPARING = 2
"""Requests that are read, redacted and mapped at the same time: more would only take turns."""
PATIENCE = 10.0
"""Seconds that a caller waits for the store."""
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
SHED_SECONDS, AWAY_SECONDS = 1, 5
"""After which a caller may come back."""
log = structlog.get_logger(__name__)


class Shed(Exception):
    """There is no room; nothing of the request was taken."""

    retry_after_seconds = SHED_SECONDS


class Away(Exception):
    """The store did not take it in time. It may have come in all the same, and does no harm when it comes again."""

    retry_after_seconds = AWAY_SECONDS


class Refused(msgspec.Struct, frozen=True):
    rollout_id: str
    why: str


class Outcome(msgspec.Struct, frozen=True):
    """What became of a request's cards."""

    stored: int
    """How many were new."""
    known: int
    """How many the store had already."""
    refused: tuple[Refused, ...]


class Card(NamedTuple):
    """A card that is ready for the store."""

    recorded: RecordedCard
    rows: CardRows


class Word(NamedTuple):
    """What a source says of itself, without a card."""

    said: Said


class _Work:
    """One thing to store, until it is known what became of it."""

    def __init__(self, what: Card | Bundle | Word) -> None:
        self.what = what
        self.new: bool | None = None
        self.refused = ""

    @property
    def settled(self) -> bool:
        return self.new is not None or bool(self.refused)


class _Request:
    """What came together, from one tenant. Once its caller has gone nobody need try any longer."""

    def __init__(self, tenant: str, works: Sequence[_Work]) -> None:
        self.tenant, self.works = tenant, works
        self.durable = threading.Event()
        self.abandoned = False


class Intake:
    """Use `close` at the end: it writes what waits, and takes nothing more."""

    def __init__(self, store: Store, detectors: Detectors, *, most_bytes: int = MOST_BYTES, patience: float = PATIENCE) -> None:
        self.detectors = detectors
        self._store = store
        self._most_bytes, self._patience = most_bytes, patience
        self._bytes = Counter[str]()  # by tenant
        self._requests: deque[_Request] = deque()
        self._changed = threading.Condition()
        self._preparing = threading.BoundedSemaphore(PREPARING)
        self._closed = False
        self._trouble = "it is slow"
        self._writer = threading.Thread(target=self._write, name="intake-writer", daemon=True)
        self._writer.start()

    @contextmanager
    def room(self, size: int, tenant: str) -> Generator[None]:
        """For a request of so many bytes, from before it is read until it is answered. Raises Shed where there is none, and where its
        tenant would have more than half of all; but one that comes when nothing else is there finds room whatever its size."""
        with self._changed:
            taken, own = self._bytes.total(), self._bytes[tenant]
            if self._closed or (taken and taken + size > self._most_bytes) or (own and own + size > self._most_bytes // 2):
                raise Shed
            self._bytes[tenant] += size
        try:
            yield
        finally:
            with self._changed:
                self._bytes[tenant] -= size
                self._bytes += Counter()  # which forgets tenants that have nothing here

    def busy(self) -> bool:
        """Whether anybody waits for something to be stored."""
        return bool(self._bytes or self._requests)

    def submit(self, tenant: str, cards: Sequence[RecordedCard], said: Said | None = None) -> Outcome:
        """Returns once they are durable. Raises Away."""
        with self._preparing:
            latest = latest_id(dt.datetime.now(dt.UTC))
            works = [self._card(recorded, tenant, latest) for recorded in cards]
        self._settle(tenant, [*works, *([_Work(Word(said))] if said else [])])
        refused = tuple(
            Refused(recorded.card.rollout_id, work.refused) for recorded, work in zip(cards, works, strict=True) if work.refused
        )
        new = sum(work.new is True for work in works)
        return Outcome(new, len(works) - new - len(refused), refused)

    def submit_spans(self, tenant: str, received: Received) -> tuple[Rejected, ...]:
        """The spans that were not taken. Returns once the others are durable. Raises Away."""
        with self._preparing:
            bundles, rejected = bundles_of(received, tenant, dt.datetime.now(dt.UTC), self.detectors)
        works = [_Work(bundle) for bundle in bundles]
        self._settle(tenant, [*works, *(_Work(Word(said)) for said in _senders(tenant, bundles))])
        for bundle, work in zip(bundles, works, strict=True):
            if work.refused:
                rejected += (Rejected(f"span {span.span_id} of trace {span.trace_id}", work.refused) for span in bundle.part.spans)
        return tuple(rejected)

    def close(self, timeout: float = 30.0) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._writer.join(timeout)

    # --- before it is written -----------------------------------------------------------------------------------------------

    def _card(self, recorded: RecordedCard, tenant: str, latest: str) -> _Work:
        """Redacted, and as rows. What cannot be is refused, and never comes into the store as it is."""
        work = _Work(Card(recorded, CardRows({}, [], [], {})))
        if recorded.card.tenant != tenant:
            work.refused = f"it says that it is of tenant '{recorded.card.tenant[:40]}'; the key it came with is of '{tenant}'"
            return work
        if why := unfit(recorded.card) or _too_early(recorded.card.rollout_id, latest):
            work.refused = why
            return work
        try:
            ready = redacted(recorded, self.detectors)
            work.what = Card(ready, rows_of(ready))
        except Exception as error:
            work.refused = "it cannot be redacted or read"
            log.warning("card refused", rollout_id=recorded.card.rollout_id, exc_info=error)
        return work

    def _settle(self, tenant: str, works: Sequence[_Work]) -> None:
        request = _Request(tenant, [work for work in works if not work.settled])
        if not request.works:
            return
        with self._changed:
            if self._closed:
                raise Away("the server is shutting down")
            self._requests.append(request)
            self._changed.notify_all()
        if not request.durable.wait(self._patience):
            request.abandoned = True
            raise Away(f"the store did not take it within {self._patience:g} s: {self._trouble}")

    # --- the writer's side ------------------------------------------------------------------------------------------------

    def _write(self) -> None:
        pause = FIRST_PAUSE
        while requests := self._waiting():
            try:
                _store(self._store, list(itertools.islice(_in_turn(requests), MOST_AT_ONCE)), self.detectors)
            except STORE_AWAY as error:
                self._trouble = reason(error)
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                pause = FIRST_PAUSE
            self._answer()

    def _waiting(self) -> list[_Request]:
        """Those somebody waits for, the oldest first. Empty when it is time to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._requests or self._closed)
            return list(self._requests)

    def _answer(self) -> None:
        """Every request that is settled, and forgets those whose callers have gone."""
        with self._changed:
            for request in self._requests:
                if all(work.settled for work in request.works):
                    request.durable.set()
            self._requests = deque(request for request in self._requests if not (request.durable.is_set() or request.abandoned))


def _in_turn(requests: Sequence[_Request]) -> Iterator[_Work]:
    """What is still to be stored, one of each tenant's at a time, the oldest first: who sends much delays himself."""
    by_tenant: dict[str, list[_Work]] = {}
    for request in requests:
        by_tenant.setdefault(request.tenant, []).extend(work for work in request.works if not work.settled)
    return (work for each in itertools.zip_longest(*by_tenant.values()) for work in each if work)


def _store(store: Store, works: Sequence[_Work], detectors: Detectors) -> None:
    """All of it, or each half by itself where something spoils it."""
    try:
        new = write(store, [work.what for work in works], detectors)
    except Exception as error:
        if is_away(error):
            raise
        if len(works) == 1:
            works[0].refused = reason(error) or type(error).__name__
            log.warning("refused", what=_name(works[0].what), trouble=works[0].refused)
            return
        half = len(works) // 2
        _store(store, works[:half], detectors)
        _store(store, works[half:], detectors)
    else:
        for work, is_new in zip(works, new, strict=True):
            work.new = is_new


def _too_early(rollout_id: str, latest: str) -> str:
    return "the time in its rollout_id is more than a day ahead of the server's clock" if is_ahead(rollout_id, latest) else ""


def _senders(tenant: str, bundles: Sequence[Bundle]) -> list[Said]:
    """OpenTelemetry numbers nothing, so that is all there is to know of what came and what did not."""
    rates = senders(span for bundle in bundles for span in bundle.part.spans)
    return [Said(tenant=tenant, source=f"OpenTelemetry service {name[:100]}", sample_rate=rate) for name, rate in rates.items()]


def _name(what: Card | Bundle | Word) -> str:
    if isinstance(what, Word):
        return f"what source {what.said.source} says"
    return f"trace {what.trace_id}" if isinstance(what, Bundle) else f"card {what.recorded.card.rollout_id}"


def write(store: Store, whats: Sequence[Card | Bundle | Word], detectors: Detectors) -> list[bool]:
    """One transaction; answers which were new."""
    now = dt.datetime.now(dt.UTC)
    bundles = [what for what in whats if isinstance(what, Bundle)]
    cards = [what for what in whats if isinstance(what, Card)]
    said = [what.said for what in whats if isinstance(what, Word)]
    tenants = {bundle.tenant for bundle in bundles} | {card.recorded.card.tenant for card in cards}
    with store.writing() as connection:
        book = Book(connection, tenants)
        fresh, made = Arrival(connection, book, now, detectors).take(bundles) if bundles else ([], [])
        new = add_cards(connection, book, keyed([(card.recorded.card, card.rows) for card in cards] + list(made)))
        book.close()
        note_all(connection, [card.recorded for card in cards], said, now)
    return _which(whats, iter(fresh), new)


def _which(whats: Sequence[Card | Bundle | Word], fresh: Iterator[bool], new: set[tuple[str, str]]) -> list[bool]:
    """Of a card that came twice the first is the new one."""
    told = list[bool]()
    for what in whats:
        if isinstance(what, Bundle):
            told.append(next(fresh))
        elif isinstance(what, Card):
            key = (what.recorded.card.rollout_id, what.recorded.card.tenant)
            told.append(key in new)
            new.discard(key)
        else:
            told.append(False)
    return told
