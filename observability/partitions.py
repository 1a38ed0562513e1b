"""PostgreSQL keeps the cards and steps of each month in a partition of their own, by the time that their ids begin with."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator

import sqlalchemy as sa

from observability.otlp.ids import is_uuid7

PARTED = ("job_cards", "card_steps")
PARTITION = re.compile(r"(job_cards|card_steps)_(default|\d{4}_\d{2})")
BEHIND = 60
"""Months at most, however old an id claims to be."""
AHEAD = 12
"""Months that are prepared. What comes later, or has an id without a time, goes to the default partition."""

CLOCKS_DIFFER = dt.timedelta(days=1)


def make_partitions(connection: sa.Connection, first_id: str | None) -> None:
    """From the month of the first id to a year from now; those that are there stay."""
    now = dt.datetime.now(dt.UTC)
    first = max(min(_month_of(first_id) or now, now), now - dt.timedelta(days=31 * BEHIND))
    for table in PARTED:
        connection.execute(sa.text(f"CREATE TABLE IF NOT EXISTS {table}_default PARTITION OF {table} DEFAULT"))
        for start, end in _months(first, now + dt.timedelta(days=31 * AHEAD)):
            begin, stop = earliest_id(start), earliest_id(end)
            stray = sa.text(f"SELECT 1 FROM {table}_default WHERE rollout_id >= '{begin}' AND rollout_id < '{stop}' LIMIT 1")
            if not connection.scalar(stray):  # a month that began in the default partition stays there
                bounds = f"FROM ('{begin}') TO ('{stop}')"
                connection.execute(sa.text(f"CREATE TABLE IF NOT EXISTS {table}_{start:%Y_%m} PARTITION OF {table} FOR VALUES {bounds}"))


def latest_id(now: dt.datetime) -> str:
    """How the latest ids begin whose time may have come, as far as two clocks differ."""
    return earliest_id(now + CLOCKS_DIFFER)


def is_ahead(rollout_id: str, latest: str) -> bool:
    """Whether its time has not come yet, `latest` being how those begin whose time may have. A card of a month that is not prepared would
    keep that month from ever being. What is no UUIDv7 tells no time, and may do so by chance."""
    return rollout_id[: len(latest)] > latest and is_uuid7(rollout_id)


def is_partition(name: str | None) -> bool:
    return bool(name and PARTITION.fullmatch(name))


def _months(first: dt.datetime, last: dt.datetime) -> Iterator[tuple[dt.datetime, dt.datetime]]:
    start = dt.datetime(first.year, first.month, 1, tzinfo=dt.UTC)
    while start <= last:
        end = (start + dt.timedelta(days=32)).replace(day=1)
        yield start, end
        start = end


def earliest_id(moment: dt.datetime) -> str:
    """How the ids of that moment begin: the 48 bits of a UUID of version 7 that count milliseconds."""
    digits = f"{int(moment.timestamp() * 1000):012x}"
    return f"{digits[:8]}-{digits[8:]}"


def _month_of(rollout_id: str | None) -> dt.datetime | None:
    digits = (rollout_id or "").replace("-", "")[:12]
    try:
        return dt.datetime.fromtimestamp(int(digits, 16) / 1000, dt.UTC) if len(digits) == 12 else None
    except (ValueError, OverflowError, OSError):
        return None
