"""Holds the store against its ledger: every card, grade and label against its entry, the entries against each other and against
the roots that were signed."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa
from sqlalchemy import exc

from observability.accesses import otherwise_named
from observability.book import entries_after
from observability.cards import texts_of
from observability.chain import (
    Entry,
    Finding,
    Record,
    SignedRoot,
    check_chain,
    check_record,
    facts_digest,
    not_indexed,
    otherwise_numbered,
    otherwise_written,
    unreadable,
    unrecorded,
)
from observability.halves import (
    Halves,
    access_halves,
    approval_halves,
    card_halves,
    change_halves,
    credit_facts,
    decision_halves,
    erasure_halves,
    grade_halves,
    hold_halves,
    is_erased,
    label_halves,
    outcome_halves,
    release_event_halves,
    release_halves,
    report_halves,
    review_halves,
    spans_halves,
    state_halves,
    use_halves,
)
from observability.queue import undrawn
from observability.records import Values
from observability.release_tables import agent_reports, approval_decisions, approval_uses, approvals, release_events, releases
from observability.search import words_on_postgresql, words_on_sqlite
from observability.store import Store
from observability.tables import (
    Instant,
    access_log,
    card_states,
    card_steps,
    change_outcomes,
    change_requests,
    erasures,
    grades,
    human_labels,
    job_cards,
    ledger,
    legal_holds,
    reviews,
    search_cards,
    search_marks,
    trace_parts,
)

BATCH = 500
MOMENT = "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9] [0-9][0-9]:[0-9][0-9]:[0-9][0-9]." + "[0-9]" * 6
"""As SQLite's tables have it."""


class Given(NamedTuple):
    """A kind of record that is one row of a table, beside cards."""

    kind: str
    table: sa.Table
    subject: sa.ColumnElement[Any]
    halves: Callable[[Mapping[str, Any]], Halves]


GIVEN = (
    Given("grade", grades, grades.c.rollout_id, grade_halves),
    Given("label", human_labels, sa.func.coalesce(human_labels.c.rollout_id, human_labels.c.row_id), label_halves),
    Given("review", reviews, reviews.c.rollout_id, review_halves),
    Given("change", change_requests, change_requests.c.rollout_id, change_halves),
    Given("outcome", change_outcomes, change_outcomes.c.rollout_id, outcome_halves),
    Given("state", card_states, card_states.c.rollout_id, state_halves),
    Given("hold", legal_holds, legal_holds.c.name, hold_halves),
    Given("erasure", erasures, erasures.c.rollout_id, erasure_halves),
    Given("access", access_log, access_log.c.action, access_halves),
    Given("spans", trace_parts, trace_parts.c.rollout_id, spans_halves),
    Given("release", releases, releases.c.service, release_halves),
    Given("release event", release_events, sa.cast(release_events.c.release, sa.String), release_event_halves),
    Given("approval", approvals, approvals.c.rollout_id, approval_halves),
    Given("approval decision", approval_decisions, sa.cast(approval_decisions.c.approval, sa.String), decision_halves),
    Given("approval use", approval_uses, sa.cast(approval_uses.c.approval, sa.String), use_halves),
    Given("report", agent_reports, agent_reports.c.agent, report_halves),
)

NAMED_BY_ID: tuple[tuple[sa.Table, sa.Column[Any]], ...] = (
    (change_requests, change_outcomes.c.request),
    (releases, release_events.c.release),
    (approvals, approval_decisions.c.approval),
    (approvals, approval_uses.c.approval),
)
"""What other records name by its id, and in which column."""


def tenants(store: Store) -> list[str]:
    """Who has a ledger, or anything that belongs in one."""
    tables = (ledger, job_cards, card_steps, search_marks, *(given.table for given in GIVEN))
    every = sa.union(*(sa.select(table.c.tenant) for table in tables))
    with store.reading() as connection:
        return sorted(tenant for tenant in connection.scalars(every) if isinstance(tenant, str))


def size(store: Store, tenant: str) -> int:
    with store.reading() as connection:
        return _newest(connection, tenant)


def verify(store: Store, tenant: str, roots: Iterable[SignedRoot] = (), step: Callable[[int], None] = lambda _: None) -> Iterator[Finding]:
    """Everything that is not as it was recorded, in one consistent view of the store. `step` hears how many entries were read."""
    with _one_view(store) as connection:
        found: list[Finding] = []

        def entries() -> Iterator[Entry]:
            for batch in every_entry(connection, tenant):
                found.extend(checked(connection, batch)[1])
                step(len(batch))
                yield from batch

        for finding in check_chain(tenant, entries(), roots):
            yield from found
            found.clear()
            yield finding
        yield from found
        yield from beyond_the_ledger(connection, tenant)
        yield from otherwise_named(connection, tenant)
        yield from _not_indexed(connection, tenant)
        yield from undrawn(connection, tenant)


@contextmanager
def _one_view(store: Store) -> Generator[sa.Connection]:
    """On SQLite a reading transaction is one as it is; text that is no UTF-8 is read there too, as something that was never entered."""
    postgres = store.engine.dialect.name == "postgresql"
    with store.engine.connect().execution_options(**{"isolation_level": "REPEATABLE READ"} if postgres else {}) as connection:
        driver: Any = connection.connection.driver_connection
        if not postgres:
            driver.text_factory = lambda raw: raw.decode(errors="backslashreplace")
        try:
            yield connection
        finally:
            if not postgres:
                driver.text_factory = str


def every_entry(connection: sa.Connection, tenant: str) -> Iterator[Sequence[Entry]]:
    """In the order of seq. What somebody put in a column that cannot be there is shown as text, whose hash is then another."""
    seq = 0
    while isinstance(seq, int) and (batch := entries_after(connection, tenant, seq, BATCH)):  # pyright: ignore[reportUnnecessaryIsInstance]
        seq = batch[-1].seq
        yield [_readable(entry) for entry in batch]


def _readable(entry: Entry) -> Entry:
    told = {name: value if isinstance(value, str) else repr(value) for name, value in msgspec.structs.asdict(entry).items()}
    return msgspec.convert(told | {"seq": _number(entry.seq)}, Entry)


def _newest(connection: sa.Connection, tenant: str) -> int:
    return _number(connection.scalar(sa.select(sa.func.max(ledger.c.seq)).where(ledger.c.tenant == tenant)))


def _number(value: object) -> int:
    """No entry has the number 0."""
    return value if isinstance(value, int) else 0


def checked(connection: sa.Connection, entries: Sequence[Entry]) -> tuple[list[Record], list[Finding]]:
    """The records of these entries, and what is wrong with them. One that cannot be read does not keep the others from it."""
    try:
        records = records_of(connection, entries)
        return records, [finding for record in records if (finding := check_record(record))]
    except exc.DBAPIError:
        raise  # the store is out of reach, or has a fault of its own
    except Exception as error:  # whatever a made-up value can bring zlib, json or datetime to
        if len(entries) == 1:
            return [], [unreadable(entries[0], type(error).__name__)]
    half = len(entries) // 2
    (first, wrong), (second, also_wrong) = checked(connection, entries[:half]), checked(connection, entries[half:])
    return first + second, wrong + also_wrong


def records_of(connection: sa.Connection, entries: Sequence[Entry]) -> list[Record]:
    """The entries of one tenant, each with what the store holds of its subject."""
    records = [*_card_records(connection, entries), *(record for given in GIVEN for record in _given_records(connection, entries, given))]
    gone = _erased(connection, entries)
    asked = _cards_decided_on(connection, entries)
    return sorted((_told_erased(record, gone, asked) for record in records), key=lambda one: one.entry.seq)


def _erased(connection: sa.Connection, entries: Sequence[Entry]) -> dict[str, int]:
    """Cards among the subjects whose words were erased, and the newest entry that says so: an erasure that was made up, or changed,
    excuses nothing."""
    if not entries:
        return {}
    tenant = entries[0].tenant
    about = {entry.subject for entry in entries} | set(_cards_decided_on(connection, entries).values())
    same = sa.and_(ledger.c.tenant == erasures.c.tenant, ledger.c.seq == erasures.c.entry, ledger.c.kind == "erasure")
    vouched = sa.select(erasures, ledger.c.facts).join(ledger, sa.and_(same, ledger.c.subject == erasures.c.rollout_id))
    mine = vouched.where(erasures.c.tenant == tenant, erasures.c.rollout_id.in_(about)).order_by(erasures.c.entry)
    rows = [dict(row) for row in connection.execute(mine).mappings()]
    return {row["rollout_id"]: row["entry"] for row in rows if facts_digest(erasure_halves(row).facts) == row["facts"]}


def _cards_decided_on(connection: sa.Connection, entries: Sequence[Entry]) -> dict[str, str]:
    """By an approval's id, which decisions are entered under, the card whose call it is of."""
    subjects = {entry.subject for entry in entries if entry.kind == "approval decision"}
    if not subjects:
        return {}
    numbers = [int(one) for one in subjects if one.isascii() and one.isdecimal() and len(one) < 19]
    select = sa.select(approvals.c.id, approvals.c.rollout_id).where(approvals.c.id.in_(numbers), approvals.c.tenant == entries[0].tenant)
    return {str(row.id): row.rollout_id for row in connection.execute(select)}


def _told_erased(record: Record, gone: Mapping[str, int], asked: Mapping[str, str]) -> Record:
    """An erasure takes the words of everything that was recorded of a card before it."""
    entry = record.entry
    card = asked.get(entry.subject, "") if entry.kind == "approval decision" else entry.subject
    return msgspec.structs.replace(record, erased=entry.seq < gone.get(card, 0))


def _card_records(connection: sa.Connection, entries: Sequence[Entry]) -> Iterator[Record]:
    wanted = [entry for entry in entries if entry.kind in ("card", "credit")]
    if not wanted:
        return
    subjects, tenant = {entry.subject for entry in wanted}, wanted[0].tenant
    cards = {row["rollout_id"]: row for row in _of(connection, job_cards, subjects, tenant)}
    steps: dict[str, list[Values]] = {}
    for row in sorted(_of(connection, card_steps, subjects, tenant), key=lambda one: one["position"]):
        steps.setdefault(row["rollout_id"], []).append(row)
    texts = texts_of(connection, tenant, [*cards.values(), *(step for told in steps.values() for step in told)])
    for entry in wanted:
        card = cards.get(entry.subject)
        place = "entry" if entry.kind == "card" else "credit_entry"
        if card is None or card[place] != entry.seq:
            yield Record(entry=entry, facts=None)
        elif entry.kind == "credit":
            yield Record(entry=entry, facts=credit_facts(card))
        else:
            told = steps.get(entry.subject, [])
            bare = all(step["position"] == at and is_erased("step", step) for at, step in enumerate(told))
            gone = is_erased("card", card) and bare
            yield _record(entry, card_halves(card, told, texts), card["salt"], gone)


def _record(entry: Entry, halves: Halves, salt: bytes | None, gone: bool) -> Record:
    """Where words stand without their salt, or a part of them, they are shown as something that was never recorded."""
    left = halves.payload or ({} if salt is None else None)
    return Record(entry=entry, facts=halves.facts, payload=None if gone else left, salt=salt)


def _given_records(connection: sa.Connection, entries: Sequence[Entry], given: Given) -> Iterator[Record]:
    wanted = [entry for entry in entries if entry.kind == given.kind]
    if not wanted:
        return
    numbers, about = [entry.seq for entry in wanted], {entry.subject for entry in wanted}
    mine = (given.table.c.tenant == wanted[0].tenant, given.subject.in_(about), given.table.c.entry.in_(numbers))
    rows = {row["entry"]: dict(row) for row in connection.execute(sa.select(given.table).where(*mine)).mappings()}
    for entry in wanted:
        if row := rows.get(entry.seq):
            yield _record(entry, given.halves(row), row.get("salt"), is_erased(given.kind, row))
        else:
            yield Record(entry=entry, facts=None)


def _of(connection: sa.Connection, table: sa.Table, rollout_ids: Iterable[str], tenant: str) -> list[Values]:
    select = sa.select(table).where(table.c.rollout_id.in_(list(rollout_ids)), table.c.tenant == tenant)
    return [dict(row) for row in connection.execute(select).mappings()]


def beyond_the_ledger(connection: sa.Connection, tenant: str, only: Sequence[str] | None = None) -> Iterator[Finding]:
    """Rows that no entry speaks of, second rows behind one entry, and values in which SQL reads something else than was entered.
    `only` narrows it to some cards."""
    tables = (("card", job_cards, job_cards.c.rollout_id), *((given.kind, given.table, given.subject) for given in GIVEN))
    for kind, table, subject in tables:
        if only is not None and "rollout_id" not in table.c:
            continue
        mine = [table.c.tenant == tenant, *([] if only is None else [table.c.rollout_id.in_(only)])]
        yield from _without_entry(connection, tenant, kind, table.c.entry, subject, mine)
        twice = sa.select(sa.func.min(subject)).where(*mine).group_by(table.c.entry).having(sa.func.count() > 1)
        yield from (unrecorded(tenant, kind, str(about)) for about in connection.scalars(twice))
        if connection.dialect.name == "sqlite":
            other = connection.execute(sa.select(table.c.entry, subject).where(*mine, sa.or_(*_otherwise_written(table))))
            twice = _has_a_key_twice(connection, mine) if table is job_cards else ()
            yield from (otherwise_written(tenant, _number(seq), kind, str(about)) for seq, about in (*other, *twice))
    credited = job_cards.c.advantage.is_not(None) | job_cards.c.credit_entry.is_not(None)
    mine = [job_cards.c.tenant == tenant, credited, *([] if only is None else [job_cards.c.rollout_id.in_(only)])]
    yield from _without_entry(connection, tenant, "credit", job_cards.c.credit_entry, job_cards.c.rollout_id, mine)
    of_no_card = ~sa.exists().where(job_cards.c.rollout_id == card_steps.c.rollout_id, job_cards.c.tenant == card_steps.c.tenant)
    mine = [card_steps.c.tenant == tenant, of_no_card, *([] if only is None else [card_steps.c.rollout_id.in_(only)])]
    steps = sa.select(card_steps.c.rollout_id).distinct().where(*mine)
    yield from (unrecorded(tenant, "step", str(about)) for about in connection.scalars(steps))
    if only is None:
        yield from _named_otherwise(connection, tenant)


def _named_otherwise(connection: sa.Connection, tenant: str) -> Iterator[Finding]:
    """Ids that do not grow with their entries, and rows that name an id which nothing has. An id is given after its row was entered and
    is in no digest: whoever exchanged those of two requests would have the answer to one stand beside the other."""
    given = {one.table: one for one in GIVEN}
    for table in dict.fromkeys(whole for whole, _ in NAMED_BY_ID):
        before = sa.func.lag(table.c.id).over(order_by=table.c.entry).label("before")
        told = sa.select(table.c.entry, given[table].subject.label("about"), table.c.id, before).where(table.c.tenant == tenant).subquery()
        for row in connection.execute(sa.select(told.c.entry, told.c.about).where(told.c.id <= told.c.before)):
            yield otherwise_numbered(tenant, _number(row.entry), given[table].kind, str(row.about))
    for whole, naming in NAMED_BY_ID:
        part = given[naming.table]
        of_none = ~sa.exists().where(whole.c.id == naming, whole.c.tenant == tenant).correlate(part.table)
        for seq, about in connection.execute(sa.select(part.table.c.entry, part.subject).where(part.table.c.tenant == tenant, of_none)):
            yield otherwise_numbered(tenant, _number(seq), part.kind, str(about))


def _without_entry(
    connection: sa.Connection, tenant: str, kind: str, entry: sa.Column[Any], subject: sa.ColumnElement[Any], mine: Sequence[Any]
) -> Iterator[Finding]:  # fmt: skip
    same = sa.and_(ledger.c.tenant == tenant, ledger.c.seq == entry, ledger.c.kind == kind, ledger.c.subject == subject)
    select = sa.select(subject).where(*mine, ~sa.exists().where(same).correlate(entry.table))
    yield from (unrecorded(tenant, kind, str(about)) for about in connection.scalars(select))


def _otherwise_written(table: sa.Table) -> Iterator[sa.ColumnElement[bool]]:
    """SQLite keeps whatever it is given: a moment in another form, a verdict of 2, a number in bytes. Python reads it as
    what was entered, and no filter finds it."""
    for column in table.c:
        if isinstance(column.type, Instant):
            yield (sa.func.typeof(column) != "text") | sa.not_(sa.type_coerce(column, sa.String).op("GLOB", is_comparison=True)(MOMENT))
        elif isinstance(column.type, sa.Boolean):
            yield sa.type_coerce(column, sa.Integer).not_in((0, 1))
        elif isinstance(column.type, sa.Double):
            yield sa.func.typeof(column).not_in(("real", "null"))


def _has_a_key_twice(connection: sa.Connection, mine: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Entry and id of cards in whose metadata SQLite reads the first of two values and Python the last. SQLite, to which keys end at a
    NUL, only narrows it down."""
    text = sa.type_coerce(job_cards.c.metadata, sa.Text)
    told = sa.func.json_tree(text).table_valued("parent", "key")
    twice = sa.exists(sa.select(sa.literal(1)).select_from(told).group_by(told.c.parent, told.c.key).having(sa.func.count() > 1))
    suspect = sa.case((sa.func.json_valid(text) == 1, twice), else_=sa.false())
    for seq, about, raw in connection.execute(sa.select(job_cards.c.entry, job_cards.c.rollout_id, text).where(*mine, suspect)):
        doubled: list[str] = []
        json.loads(raw, object_pairs_hook=lambda pairs, doubled=doubled: doubled.extend(_doubled(pairs)))
        if doubled:
            yield seq, about


def _doubled(pairs: list[tuple[str, Any]]) -> list[str]:
    keys = [key for key, _ in pairs]
    return [key for key in dict.fromkeys(keys) if keys.count(key) > 1]


def _not_indexed(connection: sa.Connection, tenant: str) -> Iterator[Finding]:
    """Cards that a search for their words does not find, and will not."""
    mark = connection.scalar(sa.select(search_marks.c.seq).where(search_marks.c.tenant == tenant)) or 0
    newest = _newest(connection, tenant)
    if mark > newest:
        yield not_indexed(tenant, 0, "", f"the index of words is marked as done up to entry {mark}; the ledger has {newest}")
    words, number = (
        (words_on_sqlite, words_on_sqlite.c.rowid)
        if connection.dialect.name == "sqlite"
        else (words_on_postgresql, words_on_postgresql.c.number)
    )
    of_card = sa.and_(search_cards.c.rollout_id == job_cards.c.rollout_id, search_cards.c.tenant == job_cards.c.tenant)
    has_words = sa.exists(sa.select(sa.literal(1)).select_from(words).where(number == search_cards.c.number))
    select = sa.select(job_cards.c.entry, job_cards.c.rollout_id).where(
        job_cards.c.tenant == tenant, job_cards.c.entry <= mark, ~sa.exists().where(of_card, has_words)
    )
    for seq, about in connection.execute(select):
        yield not_indexed(tenant, _number(seq), str(about), f"the index of words is done up to entry {mark} and does not have it")
