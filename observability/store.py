"""Opens the job-card store and keeps its schema up to date.

SQLite is the embedded default, PostgreSQL the store for production; the tables are the same. On SQLite a commit is
durable when it returns, power cuts included: write-ahead log with synchronous=FULL. NORMAL would be a sixth faster and
survive a killed process, but not a killed machine, and `acknowledged` would then mean less than it says.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
import structlog
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import event, exc
from sqlalchemy.dialects import postgresql

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.jobcards import DEFAULT_STORE
from observability.partitions import is_partition, make_partitions
from observability.release_tables import metadata
from observability.rows import CONFINED, copy_on
from observability.rowsecurity import confine_transaction, views_on_sqlite
from observability.texts import to_json

MIGRATIONS = Path(__file__).resolve().parent.parent / "migrations"  # beside this package, in the repository and installed
ADVISORY_LOCK = 0x6A6F6263  # "jobc": what migrations of one PostgreSQL database queue on
WORDS_INDEX = "search_words"
ASKED = ("job_cards", "card_steps", "grades", "human_labels", "reviews", "search_cards", "traces", "trace_parts")
"""Tables that lists of cards are made from, and those that what comes is held against."""
PATIENCE = 30.0  # seconds to wait for another process that is making or migrating the same store
POOL_PATIENCE = 10.0  # seconds to wait for a connection while others hold all of them
PROMPT: dict[str, int] = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
"""Of PostgreSQL connections, where the URL says nothing else: a server that is silently gone is known to be within half a minute. By the
system's own habits it takes minutes to hours, while each that waits holds one of the few connections."""
T = TypeVar("T")
log = structlog.get_logger(__name__)


class StoreAway(UserError):
    """It may come back."""


@dataclass(frozen=True)
class Store:
    engine: sa.Engine
    name: str
    """Its URL as it may be shown: without the password."""
    folder: Path
    """Where a file that belongs beside the store goes."""
    tenant: str | None = None
    """Whose rows alone it shows; None: everybody's, for those who run it."""
    confined: sa.Engine | None = None
    """On SQLite one whose connections see a tenant's rows only. PostgreSQL confines a transaction, and needs no other engine."""
    statement_seconds: float = 0
    """On PostgreSQL a tenant's question that takes longer is ended; 0: none is."""

    @property
    def address(self) -> str:
        """Its URL, password and all, good in any folder of this machine: for a process of ours, never to be shown."""
        url = self.engine.url
        if url.get_backend_name() == "sqlite":
            url = url.set(database=str(Path(url.database or "").absolute()))
        return url.render_as_string(hide_password=False)

    def of(self, tenant: str) -> Store:
        """The same store as one tenant sees it: no question asked of it, however it is put, reaches another's rows."""
        return replace(self, tenant=tenant)

    def ending_questions_after(self, seconds: float) -> Store:
        """The same store for those whom somebody waits for: who asks too much must not hold its connections from all others."""
        return replace(self, statement_seconds=seconds)

    @contextmanager
    def reading(self) -> Generator[sa.Connection]:
        with (self.engine if self.tenant is None else self.confined or self.engine).connect() as connection:
            if self.tenant is not None:
                confine_transaction(connection, self.tenant, self.statement_seconds)
            yield connection

    @contextmanager
    def writing(self) -> Generator[sa.Connection]:
        """A transaction that holds SQLite's one write lock from its start, so that what it reads stays true until it writes.
        There a tenant's is not confined, since nothing can be written through views: every row that is written names its own."""
        options: dict[str, Any] = {"sqlite_begin": "BEGIN IMMEDIATE", CONFINED: self.tenant is not None}
        with self.engine.execution_options(**options).begin() as connection:
            if self.tenant is not None and connection.dialect.name == "postgresql":
                confine_transaction(connection, self.tenant)
            yield connection

    def close(self) -> None:
        self.engine.dispose()
        if self.confined:
            self.confined.dispose()


def open_store(url: str = DEFAULT_STORE) -> Store:
    """The store at `url`. A SQLite store is made or migrated by itself; a PostgreSQL one must be up to date."""
    store = _store(url)
    if store.engine.dialect.name == "sqlite":
        _reaching(store, lambda: _upgrade(store))
    elif (found := _reaching(store, lambda: _revision(store))) != _newest():
        raise UserError(f"the store at {store.name} is at revision {found or 'none'}, this code needs {_newest()}", "run `make migrate`")
    return store


def answers(store: Store) -> bool:
    """Whether it can be asked just now."""
    try:
        with store.reading() as connection:
            return connection.scalar(sa.select(sa.literal(1))) == 1
    except exc.SQLAlchemyError:
        return False


def migrate(url: str) -> str:
    """Brings the store up to this code's schema; answers the revision it is now at. On PostgreSQL it also prepares the months
    to come, as a server does each hour."""
    store = _store(url)
    _reaching(store, lambda: _upgrade(store))
    prepare_months(store)
    store.close()
    return _newest()


def prepare_months(store: Store) -> None:
    """Makes the partitions of the year to come on PostgreSQL, as far as they are not there. A new one keeps all others off the table
    for a moment: who cannot have it within two seconds raises."""
    if store.engine.dialect.name == "postgresql":
        with _alone(store) as connection:
            connection.execute(sa.text("SET LOCAL lock_timeout = '2s'"))
            make_partitions(connection, None)


# --- engines --------------------------------------------------------------------------------------------------------


def _store(url: str) -> Store:
    try:
        parsed = sa.make_url(url)
    except exc.ArgumentError:
        raise UserError(f"'{url}' is no database URL", f"{DEFAULT_STORE}, or postgresql://user@host/database") from None
    name = parsed.render_as_string(hide_password=True)
    backend = parsed.drivername.partition("+")[0]
    if backend == "sqlite":
        return Store(_sqlite(parsed, name), name, Path(parsed.database or "").parent, confined=_confined_sqlite(parsed, name))
    if backend in ("postgresql", "postgres"):
        return Store(_postgresql(parsed), name, Path())
    if backend in ("http", "https"):
        what = f"{name} is a card server, which takes cards; this needs the store itself"
        raise UserError(what, "name its database, where it can be reached: store.url=postgresql://..., or sqlite:///FILE")
    raise UserError(f"no job-card store on {backend}", "SQLite or PostgreSQL")


def _sqlite(url: sa.URL, name: str) -> sa.Engine:
    if url.database in (None, "", ":memory:"):
        raise UserError(f"the store at {name} would be forgotten on exit", f"name a file: {DEFAULT_STORE}")
    try:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the store's folder {Path(url.database).parent} cannot be made: {error.strerror}", "name another") from None
    engine = sa.create_engine(
        url.set(drivername="sqlite"), pool_timeout=POOL_PATIENCE, json_serializer=to_json, json_deserializer=json.loads
    )
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _confined_sqlite(url: sa.URL, name: str) -> sa.Engine:
    engine = _sqlite(url, name)
    event.listen(engine, "connect", _put_views_before_tables)
    return engine


def _put_views_before_tables(connection: Any, _record: object) -> None:
    for statement in views_on_sqlite(list(metadata.tables.values())):
        connection.execute(statement)


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # transactions begin where we say, not where the driver guesses
    for pragma in ("busy_timeout=5000", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: sa.Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("sqlite_begin", "BEGIN"))


def _postgresql(url: sa.URL) -> sa.Engine:
    try:
        engine = sa.create_engine(
            url.set(drivername="postgresql+psycopg"),
            pool_pre_ping=True,
            connect_args={name: value for name, value in PROMPT.items() if name not in url.query},
            pool_timeout=POOL_PATIENCE,
            json_serializer=to_json,
            json_deserializer=json.loads,
        )
    except ModuleNotFoundError:
        raise UserError("a store on PostgreSQL needs its driver", "pip install 'agent-rft[postgres]'") from None
    event.listen(engine, "connect", _prepare_postgresql)
    copy_on(engine)
    return engine


def _prepare_postgresql(connection: Any, _record: object) -> None:
    """Each question gets a plan of its own: one plan for a rare value and a common one is wrong for either."""
    connection.execute("SET plan_cache_mode = force_custom_plan")
    connection.commit()


def _reaching(store: Store, work: Callable[[], T]) -> T:
    """Runs `work`; a store that is being made by another process is waited for, one that cannot be reached is the user's."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return work()
        except exc.DBAPIError as error:
            store.close()
            if "locked" not in str(error.orig) or time.monotonic() > deadline:
                raise StoreAway(f"the store at {store.name} cannot be opened: {error.orig}", _cure(str(error.orig))) from None
        time.sleep(0.05)


def refresh_statistics(store: Store) -> None:
    """What the database knows of how many rows have which values, by which it plans. For after many rows came or went at once:
    SQLite learns nothing by itself, and PostgreSQL nothing of a table as a whole that is kept in partitions."""
    with store.writing() as connection:
        if store.engine.dialect.name == "sqlite":
            for table in ASKED:
                connection.exec_driver_sql(f"ANALYZE {table}")
        else:
            connection.exec_driver_sql(f"ANALYZE {', '.join(ASKED)}, {WORDS_INDEX}")


def one_of(dialect: str, column: sa.Column[T], values: Sequence[T]) -> sa.ColumnElement[bool]:
    """True where the column has one of many values: a list as one of them, since thousands by name are slow to send and to read."""
    if dialect == "sqlite":
        return column.in_(sa.select(sa.func.json_each(to_json(list(values))).table_valued("value").c.value))
    return column == sa.any_(sa.literal(list(values), postgresql.ARRAY(column.type)))


def take_turns(connection: sa.Connection, name: str) -> None:
    """Whoever else would write under this name waits for this transaction. On SQLite a writing one is alone as it is."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext(name))))


def _cure(said: str) -> str:
    if "locked" in said:
        return "another process writes, or brings the store up to date, which takes a minute for 100,000 cards: wait and try again"
    return "make room on its disk" if "disk" in said or "full" in said else "is the URL right, and the server up?"


# --- schema ---------------------------------------------------------------------------------------------------------


def alembic_config(connection: sa.Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def compared(item: Any, name: str | None, kind: str, _reflected: bool, _other: object) -> bool:
    """What Alembic holds against the tables' definitions: all but the partitions, which come with the months, the keys that
    PostgreSQL makes for each of them, and the index of words, which each database has in its own way."""
    if kind == "foreign_key_constraint":
        return not is_partition(item.referred_table.name)
    return not (kind == "table" and (is_partition(name) or str(name).startswith(WORDS_INDEX)))


def drift(connection: sa.Connection) -> list[Any]:
    """What the database has otherwise than the tables' definitions."""
    return list(compare_metadata(MigrationContext.configure(connection, opts={"include_object": compared}), metadata))


@cache
def _migrations() -> ScriptDirectory:
    """Read once: a process opens stores more often than their migrations change."""
    return ScriptDirectory.from_config(alembic_config())


def _newest() -> str:
    head = _migrations().get_current_head()
    assert head is not None
    return head


def _revision(store: Store) -> str | None:
    """The schema the store has. One that this code does not know is newer than the code."""
    with store.reading() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    known = {script.revision for script in _migrations().walk_revisions()}
    if found is not None and found not in known:
        raise UserError(
            f"the store at {store.name} is at revision {found}, newer than this code ({_newest()})",
            "update agent-rft, or name another store",
        )
    return found


def _upgrade(store: Store) -> None:
    if (found := _revision(store)) == _newest():
        return
    if found:  # many cards take a while
        log.info("bringing the store up to date", store=store.name, revision=found, to=_newest())
    with _alone(store) as connection:
        command.upgrade(alembic_config(connection), "head")
    if found and store.engine.dialect.name == "sqlite":  # tables that were written anew leave their old pages behind
        with closing(store.engine.raw_connection()) as connection:
            connection.cursor().execute("VACUUM")


@contextmanager
def _alone(store: Store) -> Generator[sa.Connection]:
    """A transaction beside which no other migration of the same store runs."""
    with store.writing() as connection:
        if store.engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(ADVISORY_LOCK)))
        yield connection
