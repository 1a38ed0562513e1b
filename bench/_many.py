"""A store of many cards, quickly: a thousand are recorded and indexed by the store's own code, and SQL multiplies their rows.

Real: the tables, the indexes, the words (each card has one that four others have, in its answer and in the index), partitions by
month. Not real: a copy's entries in the ledger have digests of the card it was copied from, so the ledger does not verify.
"""

from __future__ import annotations

import datetime as dt
import random
from typing import Any

import sqlalchemy as sa

from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.jobcards import Cost, JobCard, Versions
from agent_rft.contracts.messages import Message, ToolCall, ToolSpec
from agent_rft.contracts.rollouts import Ending, Limits, Rollout, ToolResult, Turn
from observability.ingest import insert_cards
from observability.partitions import make_partitions
from observability.records import RecordedCard
from observability.search import SPREAD, catch_up
from observability.store import Store
from observability.tables import card_steps, grades, job_cards, ledger, search_cards
from observability.words import as_vector, words_of

ORIGINALS = 1000
APART = 15_000
"""Milliseconds from one card to the next: a million are half a year."""
AT_ONCE = 50
"""Copies of all originals in a transaction."""
TENANTS = ("acme",) * 7 + ("beta",) * 2 + ("gamma",)
KINDS = ("train",) * 6 + ("production",) * 3 + ("eval",)
TOOLS = ("search",) * 6 + ("read",) * 3 + ("calculate",)
COMMON = "margin"
"""In every second card."""
SHARED_BY = 5
"""Cards that have one rare word."""
WORDS = (
    "revenue filing quarter income cash assets debt report segment outlook guidance interest tax equity lease goodwill inventory"
    " backlog dividend currency pension covenant audit revision estimate reserve impairment supplier customer region".split()
)


def rare_word(number: int, cards: int) -> str:
    """Of the card with this number: every so many cards it comes again."""
    return f"zebra{number % max(1, cards // SHARED_BY)}x"


def original(number: int, began: dt.datetime, cards: int) -> JobCard:
    luck = random.Random(number)
    started = began + dt.timedelta(milliseconds=number * APART)
    said = " ".join(luck.choices(WORDS, k=12))
    tool, call_id = luck.choice(TOOLS), "call-1"
    found = " ".join(luck.choices(WORDS, k=25)) + (f" {COMMON}" if luck.random() < 0.5 else "")
    rollout = Rollout(
        _id(int(started.timestamp() * 1000), number),
        (Message("system", "You answer questions about filings."), Message("user", f"Question {number % 50} about the {said}?")),
        (ToolSpec("search"), ToolSpec("read"), ToolSpec("calculate")),
        Limits(),
        seed=number,
        turns=[
            Turn("I look it up.", context_tokens=200, sampled_tokens=12, calls=(ToolCall(call_id, tool, {"query": said}),),
                 results={call_id: ToolResult(call_id, found, None, 0.01)}),
            Turn("Here it is.", context_tokens=260, sampled_tokens=9),
        ],
        ending=Ending.ANSWERED,
        reason="the model answered",
        answer=f"It is {luck.random():.3f}. {rare_word(number, cards)}",
        started_at=started.isoformat(),
        seconds=1.5,
    )  # fmt: skip
    reward = round(luck.random(), 3)
    return JobCard(
        rollout_id=rollout.rollout_id, kind=luck.choice(KINDS), tenant=luck.choice(TENANTS), run_id="run-0", step=number % 100,
        row_id=f"row-{number}", sample_index=0, started_at=rollout.started_at, rollout=rollout, reference_answer="13.4%",
        metadata={"task_type": "numerical_qa", "difficulty": "medium"},
        grade=Grade(GraderRef("numeric", "1", "a1b2c3d4e5f60718"), reward, reward >= 0.5, {"found": "x"}),
        cost=Cost(context_tokens=460, sampled_tokens=21, tool_calls=1, seconds=1.5, tool_seconds=0.01),
        versions=Versions(code="0.1.0", checkpoint="tiny/0", dataset="d1", tool_set="t1", grader="numeric/1", seed=42),
    )  # fmt: skip


def fill(store: Store, cards: int, until: dt.datetime) -> None:
    """So many, the newest just before `until`."""
    began = until.replace(microsecond=0) - dt.timedelta(milliseconds=cards * APART)
    postgres = store.engine.dialect.name == "postgresql"
    first = original(0, began, cards)
    if postgres:
        with store.writing() as connection:
            make_partitions(connection, first.rollout_id)
    originals = [original(number, began, cards) for number in range(min(cards, ORIGINALS))]
    for start in range(0, len(originals), 100):
        insert_cards(store, [RecordedCard(card, until) for card in originals[start : start + 100]])
    for tenant in set(TENANTS):
        catch_up(store, tenant)
    if cards > ORIGINALS:
        _multiply(store, originals, cards, postgres)


def _multiply(store: Store, originals: list[JobCard], cards: int, postgres: bool) -> None:
    engine = store.engine.execution_options(isolation_level="AUTOCOMMIT") if postgres else store.engine
    with engine.connect() as connection:
        for statement in _before(postgres):
            connection.exec_driver_sql(statement)
        _note_originals(connection, originals, postgres)
        last = connection.exec_driver_sql("SELECT max(seq) FROM ledger").scalar_one()
        grade = connection.exec_driver_sql("SELECT max(id) FROM grades").scalar_one()
        connection.commit()
        for copy in range(1, cards // ORIGINALS, AT_ONCE):
            upto = min(copy + AT_ONCE, cards // ORIGINALS) - 1
            connection.exec_driver_sql("DELETE FROM copies")
            connection.execute(sa.text("INSERT INTO copies VALUES (:c)"), [{"c": number} for number in range(copy, upto + 1)])
            for statement in _copies(postgres, cards, last, grade):
                connection.exec_driver_sql(statement.replace("%", "%%") if postgres else statement)
            connection.commit()
        for statement in _after(postgres):
            connection.exec_driver_sql(statement)
        connection.commit()


def _before(postgres: bool) -> list[str]:
    if postgres:
        return [
            "SET session_replication_role = replica", "SET synchronous_commit = off", "SET maintenance_work_mem = '1GB'",
            "DROP INDEX ix_search_words_words",
            "CREATE TEMP TABLE copies (c bigint)", "CREATE TEMP TABLE originals (i bigint, id text COLLATE \"C\", ms bigint, words text)",
        ]  # fmt: skip
    return [
        "ROLLBACK", "PRAGMA foreign_keys=OFF", "PRAGMA synchronous=OFF", "PRAGMA cache_size=-400000", "BEGIN",
        "CREATE TEMP TABLE copies (c INTEGER)", "CREATE TEMP TABLE originals (i INTEGER, id TEXT, ms INTEGER, words TEXT)",
    ]  # fmt: skip


def _after(postgres: bool) -> list[str]:
    marks = "UPDATE search_marks SET seq = (SELECT max(seq) FROM ledger l WHERE l.tenant = search_marks.tenant)"
    if postgres:
        return [
            marks, "SELECT setval(pg_get_serial_sequence('grades', 'id'), (SELECT max(id) FROM grades))",
            "CREATE INDEX ix_search_words_words ON search_words USING gin (words)",
            "SET session_replication_role = origin", "SET synchronous_commit = on",
        ]  # fmt: skip
    return [marks]


def _note_originals(connection: sa.Connection, originals: list[JobCard], postgres: bool) -> None:
    rows: list[dict[str, Any]] = []
    for number, card in enumerate(originals):
        words = [word for word in words_of(card) if not word.startswith("zebra")]
        ms = int(dt.datetime.fromisoformat(card.started_at).timestamp() * 1000)
        rows.append({"i": number, "id": card.rollout_id, "ms": ms, "words": as_vector(words) if postgres else " ".join(words)})
    connection.execute(sa.text("INSERT INTO originals VALUES (:i, :id, :ms, :words)"), rows)


def _copies(postgres: bool, cards: int, last: int, grade: int) -> list[str]:
    """Inserts of everything that belongs to the copies of all originals."""
    ms, number = f"(o.ms + k.c * {ORIGINALS * APART})", f"(o.i + k.c * {ORIGINALS})"
    rare = f"('zebra' || ({number} % {max(1, cards // SHARED_BY)}) || 'x')"
    if postgres:
        begins = f"lpad(to_hex({ms} >> 16), 8, '0') || '-' || lpad(to_hex({ms} & 65535), 4, '0')"
        rollout = f"({begins} || '-7000-8000-' || lpad(to_hex({number}), 12, '0'))"
        moment = f"(to_timestamp({ms} / 1000.0))"
    else:
        rollout = f"printf('%08x-%04x-7000-8000-%012x', {ms} >> 16, {ms} & 65535, {number})"
        moment = f"(strftime('%Y-%m-%d %H:%M:%S', {ms} / 1000, 'unixepoch') || printf('.%06d', {ms} % 1000 * 1000))"
    entry = f"b.entry + k.c * {last}"
    changed = {
        job_cards: {"rollout_id": rollout, "started_at": moment, "recorded_at": moment, "run_id": "('run-' || k.c)", "entry": entry,
                    "checkpoint": "('tiny/' || (k.c / 10))", "answer": f"substr(b.answer, 1, 13) || {rare}"},
        card_steps: {"rollout_id": rollout},
        grades: {"id": f"b.id + k.c * {grade}", "rollout_id": rollout, "graded_at": moment, "entry": entry},
        ledger: {"seq": f"b.seq + k.c * {last}", "subject": rollout},
        search_cards: {"rollout_id": rollout, "number": f"({ms} << {SPREAD}) + (b.number & {(1 << SPREAD) - 1})"},
    }  # fmt: skip
    statements: list[str] = []
    for table, values in changed.items():
        names = ", ".join(f'"{column.name}"' for column in table.c)
        chosen = ", ".join(values.get(column.name, f'b."{column.name}"') for column in table.c)
        key = "subject" if table is ledger else "rollout_id"
        source = f"originals o CROSS JOIN copies k JOIN {table.name} b ON b.{key} = o.id"
        statements.append(f"INSERT INTO {table.name} ({names}) SELECT {chosen} FROM {source} ORDER BY k.c, o.i")
    indexed = f"originals o CROSS JOIN copies k JOIN search_cards b ON b.rollout_id = {rollout}"
    words = f"(o.words || ' ''' || {rare} || ''':9000')::tsvector" if postgres else f"o.words || ' ' || {rare}"
    into = "search_words (number, words)" if postgres else "search_words (rowid, words)"
    statements.append(f"INSERT INTO {into} SELECT b.number, {words} FROM {indexed} ORDER BY b.number")
    return statements


def _id(ms: int, number: int) -> str:
    return f"{ms >> 16:08x}-{ms & 65535:04x}-7000-8000-{number:012x}"
