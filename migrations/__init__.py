"""The store's history, one for SQLite and PostgreSQL. Applied by observability.store, never by hand."""
