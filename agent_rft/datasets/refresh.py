"""A new curriculum from what a model can do: rows it solves sometimes stay, solved rows retire, rows it never solves are looked at."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from agent_rft.contracts.errors import Fault, FaultsFound, UserError, did_you_mean
from agent_rft.contracts.rows import Row
from agent_rft.evaluation.prior import Bucket, RowPrior


class Refreshed(msgspec.Struct, frozen=True):
    kept: tuple[Row, ...]
    """Solved sometimes, and what was not measured: nothing is known against it."""
    retired: tuple[Row, ...]
    """Solved always: no signal left in them."""
    review: tuple[Row, ...]
    """Never solved: too hard as yet, or wrong. Only a person can tell."""
    unmeasured: int
    """Of the kept ones."""


def refresh(rows: Sequence[Row], measured: Sequence[RowPrior]) -> Refreshed:
    known = {row.id for row in rows}
    if strangers := [
        Fault(prior.row_id, "was measured but is no training row", did_you_mean(prior.row_id, known))
        for prior in measured
        if prior.row_id not in known
    ]:
        raise FaultsFound("the result is of other rows:", strangers, "refresh the data set that was measured")
    buckets: dict[str, Bucket] = {prior.row_id: prior.bucket for prior in measured}

    def those(*wanted: Bucket) -> tuple[Row, ...]:
        return tuple(row for row in rows if buckets.get(row.id, "unmeasured") in wanted)

    kept = those("sometimes", "unmeasured")
    if not kept:
        raise UserError("no row would be left: each is solved always or never", "add rows of middling difficulty")
    return Refreshed(kept, those("always"), those("never"), len(those("unmeasured")))
