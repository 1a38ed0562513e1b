"""Keeps a connection to one tenant's rows, whatever is asked on it.

PostgreSQL does it by row-level security, for a role that the application takes on for the length of a transaction. SQLite has no
roles: there, views of the same names stand before the tables for a connection, and nothing but that tenant's rows is in them.

The index of words is out of the role's reach. Under a policy PostgreSQL cannot use it, and would read every card instead; a
function that runs as the tables' owner asks it, and adds the tenant itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
NEAR = 20_000
"""Cards that are looked at one after the other, for a word that should be in many of them."""
COMMON = 0.01
"""Of the cards: a word in as many is met soon. Of a rarer one the index tells all places."""
WORD_OF_TENANT = "to_tsquery('simple', 'tenant' || left(encode(sha256(convert_to(current_setting('app.tenant'), 'UTF8')), 'hex'), 16))"
"""As each card of the tenant has it in the index."""
NUMBERS = "number >= $2 AND number < $3"
FUNCTIONS = {
    "newest_words": f"""(asked tsquery, first bigint, below bigint, most bigint) RETURNS SETOF bigint
LANGUAGE plpgsql VOLATILE SET search_path FROM CURRENT SET enable_seqscan = off AS $$
DECLARE
  plan json;
  newest bigint[];
BEGIN
  EXECUTE 'EXPLAIN (FORMAT JSON) SELECT FROM search_words WHERE words @@ ' || quote_literal(asked) || '::tsquery' INTO plan;
  IF (plan -> 0 -> 'Plan' ->> 'Plan Rows')::float >= {COMMON} * (SELECT reltuples FROM pg_class WHERE oid = 'search_words'::regclass) THEN
    EXECUTE 'SELECT array_agg(number) FROM (
      SELECT number FROM (SELECT * FROM search_words WHERE {NUMBERS} ORDER BY number DESC LIMIT {NEAR}) near
      WHERE words @@ $1 ORDER BY number DESC LIMIT $4) found' INTO newest USING asked, first, below, most;
  END IF;
  IF cardinality(newest) = most THEN
    RETURN QUERY SELECT unnest(newest);
  ELSE
    RETURN QUERY EXECUTE 'WITH found AS MATERIALIZED (SELECT number FROM search_words WHERE words @@ $1 AND {NUMBERS})
      SELECT number FROM found ORDER BY number DESC LIMIT $4' USING asked, first, below, most;
  END IF;
END $$""",
    "newest_with_words": f"""(asked tsquery, first bigint, below bigint, most bigint) RETURNS SETOF bigint
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path FROM CURRENT AS $$
  SELECT newest_words(asked && {WORD_OF_TENANT}, first, below, most)
$$""",
    "has_words": f"""(asked tsquery, one bigint) RETURNS boolean
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
  RETURN EXISTS (SELECT FROM search_words WHERE number = one AND words @@ (asked && {WORD_OF_TENANT}));
END $$""",
}
"""Left to itself PostgreSQL goes through all cards for a word that is in none: it takes the next match to be near. Each question
is planned by itself. The two for the application's role add the tenant to what it asks; the first is for the owner."""


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
    for name, body in FUNCTIONS.items():
        _tell(connection, f"CREATE FUNCTION {name} {body}")
        _tell(connection, f"REVOKE ALL ON FUNCTION {name} FROM PUBLIC")
    for name in ("newest_with_words", "has_words"):
        _tell(connection, f"GRANT EXECUTE ON FUNCTION {name} TO {ROLE}")


def confine_tables(connection: sa.Connection, rights: Mapping[str, str]) -> None:
    """Tables that came later: the same policy, and so many rights on each."""
    schema = connection.scalar(sa.text("SELECT current_schema()"))
    for table, allowed in rights.items():
        _tell(connection, f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        _tell(connection, f"CREATE POLICY of_tenant ON {table} TO {ROLE} USING ({MINE}) WITH CHECK ({MINE})")
        _tell(connection, f"GRANT {allowed} ON {table} TO {ROLE}")
    _tell(connection, f'GRANT USAGE ON ALL SEQUENCES IN SCHEMA "{schema}" TO {ROLE}')


def release(connection: sa.Connection) -> None:
    """The role stays: other databases of the server may use it."""
    _tell(connection, f"DROP FUNCTION {', '.join(FUNCTIONS)}")
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


def confine_transaction(connection: sa.Connection, tenant: str, statement_seconds: float = 0) -> None:
    """From here to the end of the transaction only this tenant's rows are there; and on PostgreSQL no statement runs longer than so
    (0: as long as it takes)."""
    if connection.dialect.name == "postgresql":
        settings = {"role": ROLE, "app.tenant": tenant, "statement_timeout": str(round(statement_seconds * 1000))}
        set_them = sa.select(*(sa.func.set_config(name, value, True) for name, value in settings.items()))
        connection.execute(set_them)
    else:
        connection.execute(sa.text("UPDATE temp.confined_to SET tenant = :tenant"), {"tenant": tenant})


# --- SQLite ------------------------------------------------------------------------------------------------------------


def views_on_sqlite(tables: Sequence[sa.Table]) -> list[str]:
    """What a connection says once, before anybody asks it for a tenant's rows. A view of the session comes before a table."""
    scope = ["CREATE TEMP TABLE confined_to (tenant TEXT)", "INSERT INTO confined_to VALUES (NULL)"]
    only = "WHERE tenant = (SELECT tenant FROM temp.confined_to)"
    return scope + [f"CREATE TEMP VIEW {table.name} AS SELECT * FROM main.{table.name} {only}" for table in tables if "tenant" in table.c]
