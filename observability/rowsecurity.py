"""Keeps a connection to one tenant's rows, whatever is asked on it.

PostgreSQL does it by row-level security, for a role that the application takes on for the length of a transaction. SQLite has no
roles: there, views of the same names stand before the tables for a connection, and nothing but that tenant's rows is in them.

The index of words is out of the role's reach. Under a policy PostgreSQL cannot use it, and would read every card instead; a
function that runs as the tables' owner asks it, and adds the tenant itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy import exc

from agent_rft.contracts.errors import UserError

ROLE = "agent_rft_app"
INDEX_OF_WORDS = "search_words"
CHANGED = (
    "job_cards", "card_steps", "grades", "human_labels", "reviews", "change_requests", "trace_parts", "traces", "sources",
    "users", "api_keys", "retention_policies", "saved_views", "search_marks",
)  # fmt: skip
"""What the application may update: for credits and erasures, or because it is no record. All else is only added to."""
REMOVED = ("blobs", "saved_views", "retention_policies", "review_queue", "search_cards")
MINE = "tenant = current_setting('app.tenant', true)"
SEARCH = """
CREATE FUNCTION newest_with_words(asked tsquery, below bigint, most bigint) RETURNS SETOF bigint
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
  RETURN QUERY EXECUTE 'SELECT w.number FROM search_words w JOIN search_cards c ON c.number = w.number
    WHERE w.words @@ $1 AND w.number < $2 AND c.tenant = $3 ORDER BY w.number DESC LIMIT $4'
    USING asked, below, current_setting('app.tenant', true), most;
END $$
"""
"""Planned for each question, since a common word and a rare one want different ways."""


# --- PostgreSQL ---------------------------------------------------------------------------------------------------------


def confine(connection: sa.Connection) -> None:
    """The role, its rights, and a policy on each table that has a tenant. For whoever owns the tables."""
    _make_role(connection)
    schema = connection.scalar(sa.text("SELECT current_schema()"))
    _tell(connection, f'GRANT {ROLE} TO CURRENT_USER; GRANT USAGE ON SCHEMA "{schema}" TO {ROLE}')
    for table in _with_tenant(connection):
        _tell(connection, f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        _tell(connection, f"CREATE POLICY of_tenant ON {table} TO {ROLE} USING ({MINE}) WITH CHECK ({MINE})")
        rights = ["SELECT", "INSERT", *(["UPDATE"] if table in CHANGED else []), *(["DELETE"] if table in REMOVED else [])]
        _tell(connection, f"GRANT {', '.join(rights)} ON {table} TO {ROLE}")
    for table in ("grader_versions", "grader_states", "grader_reports", "grader_approvals"):  # policy, not anybody's data
        _tell(connection, f"GRANT SELECT ON {table} TO {ROLE}")
    _tell(connection, f'GRANT USAGE ON ALL SEQUENCES IN SCHEMA "{schema}" TO {ROLE}')
    _tell(connection, SEARCH)
    _tell(connection, "REVOKE ALL ON FUNCTION newest_with_words FROM PUBLIC")
    _tell(connection, f"GRANT EXECUTE ON FUNCTION newest_with_words TO {ROLE}")


def release(connection: sa.Connection) -> None:
    """The role stays: other databases of the server may use it."""
    _tell(connection, "DROP FUNCTION newest_with_words")
    for table in _with_tenant(connection):
        _tell(connection, f"DROP POLICY of_tenant ON {table}; ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
    schema = connection.scalar(sa.text("SELECT current_schema()"))
    _tell(connection, f'REVOKE ALL ON ALL TABLES IN SCHEMA "{schema}" FROM {ROLE}')
    _tell(connection, f'REVOKE ALL ON ALL SEQUENCES IN SCHEMA "{schema}" FROM {ROLE}; REVOKE ALL ON SCHEMA "{schema}" FROM {ROLE}')


def _make_role(connection: sa.Connection) -> None:
    """Roles are the server's, and another database's migration may be making it now."""
    make = f"""DO $$ BEGIN
      IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{ROLE}') THEN CREATE ROLE {ROLE} NOLOGIN; END IF;
    EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"""
    try:
        _tell(connection, make)
    except exc.ProgrammingError as error:
        cure = f"as a superuser, once: CREATE ROLE {ROLE} NOLOGIN; GRANT {ROLE} TO the owner of the tables WITH ADMIN OPTION"
        raise UserError(f"the role {ROLE}, which keeps tenants apart, cannot be made: {error.orig}", cure) from None


def _with_tenant(connection: sa.Connection) -> Sequence[str]:
    """Partitions are left out: who may not touch them by name reaches them through their table only, under its policy."""
    found = """SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
      WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
      AND a.attname = 'tenant' AND NOT a.attisdropped ORDER BY 1"""
    return list(connection.scalars(sa.text(found)))


def _tell(connection: sa.Connection, statement: str) -> None:
    connection.exec_driver_sql(statement.replace("%", "%%"))


def confine_transaction(connection: sa.Connection, tenant: str) -> None:
    """From here to the end of the transaction only this tenant's rows are there."""
    if connection.dialect.name == "postgresql":
        both = sa.text("SELECT set_config('role', :role, true), set_config('app.tenant', :tenant, true)")
        connection.execute(both, {"role": ROLE, "tenant": tenant})
    else:
        connection.execute(sa.text("UPDATE temp.confined_to SET tenant = :tenant"), {"tenant": tenant})


# --- SQLite ------------------------------------------------------------------------------------------------------------


def views_on_sqlite(tables: Sequence[sa.Table]) -> list[str]:
    """What a connection says once, before anybody asks it for a tenant's rows. A view of the session comes before a table."""
    scope = ["CREATE TEMP TABLE confined_to (tenant TEXT)", "INSERT INTO confined_to VALUES (NULL)"]
    only = "WHERE tenant = (SELECT tenant FROM temp.confined_to)"
    return scope + [f"CREATE TEMP VIEW {table.name} AS SELECT * FROM main.{table.name} {only}" for table in tables if "tenant" in table.c]
