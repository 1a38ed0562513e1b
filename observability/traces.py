"""OpenTelemetry's traces on their way into the store: durable span by span, and one card each.

Spans come in whatever portions their senders like. What one request brings of a trace is a part, kept as it came but redacted, with
its own entry in the ledger. The card is made as soon as the agent's span and all above it have come and ended, and else once
nothing has come for a while, as the trace then stands. It never changes afterwards: it is in the ledger. Spans that come later are
kept beside it, and an evaluation in them is one more grade.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Collection, Sequence
from typing import NamedTuple

import msgspec
import sqlalchemy as sa
import structlog

from agent_rft.contracts.jobcards import JobCard
from observability.book import Book
from observability.halves import spans_halves
from observability.ingest import Keyed, add_cards, add_grades, is_away, keyed, reason
from observability.otlp.cards import TraceCard, card_of, sent_id, traces_of
from observability.otlp.ids import rollout_id_of
from observability.otlp.spans import Received, Rejected, Span, merge
from observability.records import CardRows, RecordedCard, Values, grade_row, rows_of
from observability.redaction.cards import redact_card
from observability.redaction.detectors import Detectors
from observability.redaction.redact import Redacting, Removal
from observability.redaction.spans import RedactingSpans
from observability.rows import add_rows
from observability.store import Store
from observability.tables import job_cards, trace_parts, traces
from observability.texts import packed, storable, unpacked

AT_ONCE = 50
"""Traces that are made cards of in one transaction."""
FEW, MANY = 20, 200
"""Parts up to which each one that comes has all of them read again, while everybody's ledger waits; and up to which one with a
trace's root does. A trace of more parts gets its card once it has gone quiet."""
TENANT = "rft.tenant"
TraceKey = tuple[str, str]
"""Tenant and trace id."""
log = structlog.get_logger(__name__)


class Part(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one request brought of a trace."""

    spans: tuple[Span, ...]
    removed: tuple[Removal, ...] | None = None
    """What redaction took out of them; None where nobody looked."""


class Made(NamedTuple):
    """A card that was made of a trace."""

    card: JobCard
    rows: CardRows


class Bundle(NamedTuple):
    """A part that is ready for the store, with the card that it makes where it is a whole trace by itself."""

    tenant: str
    trace_id: str
    part: Part
    text: str
    hash: str
    """Of the redacted text: one of what was removed could be guessed from."""
    body: bytes
    rollout_id: str
    """What the trace's card is called if this is the first that comes of it."""
    named: bool
    """Whether its sender calls it so."""
    made: Made | None

    @property
    def key(self) -> TraceKey:
        return self.tenant, self.trace_id


# --- before the transaction ---------------------------------------------------------------------------------------------


def bundles_of(received: Received, tenant: str, now: dt.datetime, detectors: Detectors) -> tuple[list[Bundle], list[Rejected]]:
    """One a trace, redacted. A trace that cannot be read or redacted is rejected: its spans never come into the store."""
    ready, kept = list[Bundle](), list[Span]()
    found, rejected = list(received.rejected), list[Rejected]()
    for span in received.spans:
        if (other := _other_tenant(span, tenant)) is None:
            kept.append(span)
        else:
            why = f"it says that it is of tenant '{other[:40]}'; the key it came with is of '{tenant}'"
            found.append(Rejected(f"span {span.span_id} of trace {span.trace_id}", why))
    by_trace, rejected = traces_of(Received(tuple(kept), tuple(found)), now)
    refused = list(rejected)
    for trace_id, spans in by_trace.items():
        try:
            ready.append(_bundle(spans, tenant, now, detectors))
        except Exception as error:  # one odd trace must spoil no other
            log.warning("trace refused", trace_id=trace_id, exc_info=error)
            refused += (Rejected(f"span {span.span_id} of trace {trace_id}", "the trace cannot be read or redacted") for span in spans)
    return ready, refused


def _other_tenant(span: Span, tenant: str) -> str | None:
    named = span.resource.get(TENANT, span.attributes.get(TENANT, tenant))
    return None if named == tenant else str(named)


def _bundle(spans: Sequence[Span], tenant: str, now: dt.datetime, detectors: Detectors) -> Bundle:
    its = detectors.of(tenant)
    redacting = RedactingSpans(its) if its else None
    part = Part(redacting.spans(spans), tuple(redacting.removed)) if redacting else Part(tuple(spans))
    text = _written(part)
    named = sent_id(part.spans)
    trace_id = spans[0].trace_id
    rollout_id = named or rollout_id_of(tenant, trace_id, spans[0].start_ns)
    read = card_of(part.spans, tenant, rollout_id)
    made = _made(read, [part], now, detectors, redacting) if read.whole else None
    hashed = hashlib.sha256(text.encode()).hexdigest()
    return Bundle(tenant, trace_id, part, text, hashed, packed(text), rollout_id, bool(named), made)


def _written(part: Part) -> str:
    try:
        return storable(msgspec.json.encode(part).decode())
    except UnicodeEncodeError:  # half a surrogate pair
        return storable(json.dumps(msgspec.to_builtins(part), ensure_ascii=False))


def _read(body: bytes) -> Part:
    return msgspec.json.decode(unpacked(body), type=Part)


def _made(read: TraceCard, parts: Sequence[Part], now: dt.datetime, detectors: Detectors, after: Redacting | None = None) -> Made:
    """The card is redacted again: what stood apart in spans may stand together in it."""
    its = detectors.of(read.card.tenant)
    card, removed = redact_card(read.card, its, after) if its else (read.card, ())
    every = tuple(one for part in parts for one in part.removed or ()) + removed if its else None
    rows = rows_of(RecordedCard(card, now, every))
    if card.grade is not None:
        rows.grades[:] = [grade_row(card.rollout_id, card.tenant, dated.grade, dated.graded_at) for dated in read.grades]
    return Made(card, rows)


# --- in the transaction -------------------------------------------------------------------------------------------------


class _Trace:
    """One that parts have come of, as this transaction leaves it."""

    def __init__(self, key: TraceKey, rollout_id: str, carded: bool, new: bool) -> None:
        self.key, self.rollout_id, self.carded, self.new = key, rollout_id, carded, new
        self.touched = False
        self.stored: list[Part] | None = [] if new else None
        """Those that came before; None until they are asked for, and where there are too many to look at."""
        self.fresh = list[Part]()


class Arrival:
    """Takes bundles into the store, within one transaction."""

    def __init__(self, connection: sa.Connection, book: Book, now: dt.datetime, detectors: Detectors) -> None:
        self._connection, self._book, self._now, self._detectors = connection, book, now, detectors

    def take(self, bundles: Sequence[Bundle]) -> tuple[list[bool], list[Made]]:
        """Whether each was new, and the cards that are to be added now. The book is open, so nobody else adds any of them."""
        known, seen = self._known({bundle.key for bundle in bundles}), self._seen(bundles)
        held = self._held({(bundle.tenant, bundle.rollout_id) for bundle in bundles if bundle.named})
        fresh, parts, made, late = list[bool](), list[Values](), list[Made](), list[Bundle]()
        for bundle in bundles:
            place = (*bundle.key, bundle.hash)
            fresh.append(place not in seen)
            if place in seen:
                continue
            seen.add(place)
            trace = known.setdefault(bundle.key, _Trace(bundle.key, bundle.rollout_id, False, True))
            if not trace.carded and (bundle.tenant, bundle.rollout_id) in held:
                trace.carded, trace.rollout_id = True, bundle.rollout_id  # whoever ran it has recorded it already
            trace.touched = True
            parts.append(self._row(bundle, trace))
            if trace.carded:
                late.append(bundle)
            else:
                made += self._card_of(trace, bundle)
        self._insert(list(known.values()), parts)
        self._add_grades(late, known)
        return fresh, made

    def _known(self, keys: Collection[TraceKey]) -> dict[TraceKey, _Trace]:
        found = self._connection.execute(sa.select(traces).where(_among(traces, keys))).mappings()
        by_key = {(row["tenant"], row["trace_id"]): row for row in found}
        return {key: _Trace(key, row["rollout_id"], row["carded"], False) for key, row in by_key.items()}

    def _seen(self, bundles: Sequence[Bundle]) -> set[tuple[str, str, str]]:
        columns = (trace_parts.c.tenant, trace_parts.c.trace_id, trace_parts.c.hash)
        hashes = [bundle.hash for bundle in bundles]
        select = sa.select(*columns).where(_among(trace_parts, {bundle.key for bundle in bundles}), trace_parts.c.hash.in_(hashes))
        return {(row[0], row[1], row[2]) for row in self._connection.execute(select)}

    def _held(self, cards: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
        """Which of them are there, by tenant and rollout. A card that a trace's id makes is only if the trace is known."""
        if not cards:
            return set()
        select = sa.select(job_cards.c.tenant, job_cards.c.rollout_id).where(job_cards.c.rollout_id.in_([card for _, card in cards]))
        return {(row[0], row[1]) for row in self._connection.execute(select)}

    def _row(self, bundle: Bundle, trace: _Trace) -> Values:
        row: Values = {
            "tenant": bundle.tenant,
            "trace_id": bundle.trace_id,
            "hash": bundle.hash,
            "rollout_id": trace.rollout_id,
            "spans": len(bundle.part.spans),
            "body": bundle.body,
            "late": trace.carded,
            "at": self._now,
        }
        self._book.enter("spans", trace.rollout_id, row, spans_halves(row, bundle.text))
        return row

    def _card_of(self, trace: _Trace, bundle: Bundle) -> list[Made]:
        """The card, if the trace is whole now, as far as that is looked for."""
        trace.fresh.append(bundle.part)
        if trace.stored is None and self._few(trace.key, FEW if _within(bundle.part) else MANY):
            trace.stored = _parts_of(self._connection, trace.key)
        if trace.stored is None:
            return []
        if len(parts := [*trace.stored, *trace.fresh]) == 1:
            made = bundle.made
        else:
            spans = merge(span for part in parts for span in part.spans)
            read = card_of(spans, bundle.tenant, trace.rollout_id)
            made = _made(read, parts, self._now, self._detectors) if read.whole else None
        trace.carded = made is not None
        return [made] if made else []

    def _few(self, key: TraceKey, most: int) -> bool:
        select = sa.select(trace_parts.c.hash).where(_among(trace_parts, [key])).limit(most + 1)
        return len(self._connection.execute(select).all()) <= most

    def _insert(self, seen: Sequence[_Trace], parts: Sequence[Values]) -> None:
        rows = [_trace_row(trace, self._now) for trace in seen if trace.new]
        moved = [_moved(trace, self._now) for trace in seen if trace.touched and not trace.new]
        add_rows(self._connection, traces, rows)
        if moved:
            self._connection.execute(MOVED, moved)
        add_rows(self._connection, trace_parts, parts)

    def _add_grades(self, late: Sequence[Bundle], known: dict[TraceKey, _Trace]) -> None:
        """Evaluations are often made after the fact. One that says what another of the same grader's version has said adds nothing."""
        rows = [
            grade_row(known[bundle.key].rollout_id, bundle.tenant, dated.grade, dated.graded_at)
            for bundle in late
            for dated in card_of(bundle.part.spans, bundle.tenant, bundle.rollout_id).grades
        ]
        if rows:
            cards = self._held({(row["tenant"], row["rollout_id"]) for row in rows})
            add_grades(self._connection, self._book, [row for row in rows if (row["tenant"], row["rollout_id"]) in cards])


def _within(part: Part) -> bool:
    """Whether all of it stands below other spans: what ends a trace is its root, as a rule."""
    return all(span.parent_id for span in part.spans)


MOVED = (
    sa.update(traces)
    .where(traces.c.tenant == sa.bindparam("of_tenant"), traces.c.trace_id == sa.bindparam("of_trace"))
    .values(carded=sa.bindparam("now_carded"), rollout_id=sa.bindparam("now_called"), last_at=sa.bindparam("now_at"))
)


def _trace_row(trace: _Trace, now: dt.datetime) -> Values:
    tenant, trace_id = trace.key
    return {"tenant": tenant, "trace_id": trace_id, "rollout_id": trace.rollout_id, "carded": trace.carded, "last_at": now}


def _moved(trace: _Trace, now: dt.datetime) -> Values:
    tenant, trace_id = trace.key
    return {"of_tenant": tenant, "of_trace": trace_id, "now_carded": trace.carded, "now_called": trace.rollout_id, "now_at": now}


def _among(table: sa.Table, keys: Collection[TraceKey]) -> sa.ColumnElement[bool]:
    """A key begins with its tenant: asked by the trace's id alone, a database goes through all traces of everybody."""
    ids = {tenant: [trace_id for its, trace_id in keys if its == tenant] for tenant in {tenant for tenant, _ in keys}}
    return sa.or_(*(sa.and_(table.c.tenant == tenant, table.c.trace_id.in_(its)) for tenant, its in ids.items()))


def _parts_of(connection: sa.Connection, key: TraceKey) -> list[Part]:
    mine = (trace_parts.c.tenant == key[0], trace_parts.c.trace_id == key[1])
    select = sa.select(trace_parts.c.body).where(*mine, ~trace_parts.c.late, trace_parts.c.body.is_not(None)).order_by(trace_parts.c.entry)
    return [_read(body) for body in connection.scalars(select)]


# --- traces that have gone quiet ------------------------------------------------------------------------------------------


def settle_quiet(store: Store, before: dt.datetime, now: dt.datetime, detectors: Detectors) -> int:
    """Cards of the traces of which nothing has come since `before`, as they stand; answers how many traces are settled."""
    quiet = sa.select(traces.c.tenant, traces.c.trace_id).where(~traces.c.carded, traces.c.last_at < before)
    with store.reading() as connection:
        found = connection.execute(quiet.order_by(traces.c.last_at).limit(AT_ONCE)).all()
    if not found:
        return 0
    return _settle(store, [(row[0], row[1]) for row in found], before, now, detectors)


def _settle(store: Store, found: Sequence[TraceKey], before: dt.datetime, now: dt.datetime, detectors: Detectors) -> int:
    """All of them, or each by itself where one spoils it. One that makes no card by itself is settled without."""
    try:
        return _settled(store, found, before, now, detectors)
    except Exception as error:
        if is_away(error):
            raise
        if len(found) > 1:
            return sum(_settle(store, [key], before, now, detectors) for key in found)
        log.warning("trace makes no card", tenant=found[0][0], trace_id=found[0][1], trouble=reason(error))
        return _settled(store, found, before, now, detectors, making=False)


def _settled(
    store: Store, found: Sequence[TraceKey], before: dt.datetime, now: dt.datetime, detectors: Detectors, making: bool = True
) -> int:
    """One transaction. Those that came on meanwhile wait on."""
    still = sa.select(traces).where(_among(traces, found), ~traces.c.carded, traces.c.last_at < before)
    with store.writing() as connection:
        book = Book(connection, (tenant for tenant, _ in found))
        names = {(row.tenant, row.trace_id): row.rollout_id for row in connection.execute(still)}
        waiting = [key for key in found if key in names]
        if making:
            cards: Keyed = keyed(made for key in waiting for made in _as_it_stands(connection, key, names[key], now, detectors))
            add_cards(connection, book, cards)
        if waiting:
            connection.execute(MOVED, [_moved(_Trace(key, names[key], True, False), now) for key in waiting])
        book.close()
    return len(waiting)


def _as_it_stands(connection: sa.Connection, key: TraceKey, rollout_id: str, now: dt.datetime, detectors: Detectors) -> list[Made]:
    """None of a trace that cannot be read as a card: its spans are kept as they came."""
    try:
        parts = _parts_of(connection, key)
        spans = merge(span for part in parts for span in part.spans)
        return [_made(card_of(spans, key[0], rollout_id), parts, now, detectors)] if spans else []
    except (ValueError, TypeError, KeyError) as error:
        log.warning("trace makes no card", trace_id=key[1], exc_info=error)
        return []
