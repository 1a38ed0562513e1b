"""What Alembic runs. The connection comes from observability.store, already alone in its transaction: all of an upgrade
happens or none, and two processes that open the same new store take turns."""

from __future__ import annotations

from alembic import context

from observability.release_tables import metadata
from observability.store import compared

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    include_object=compared,
    render_as_batch=True,  # SQLite alters a table by copying it
)
with context.begin_transaction():
    context.run_migrations()
