"""Reads all that is known of one card: itself, what people said of it, what made it, what waits and what came late."""

from __future__ import annotations

import sqlalchemy as sa

from observability.artifacts import lineage
from observability.cards import cards_by_id
from observability.dossier import JUDGEMENTS, Dossier, Label, NotThere, state_of
from observability.queue import reasons_of
from observability.reviews import changes_of, reviews_of
from observability.states import notes_of
from observability.store import Store
from observability.tables import human_labels, trace_parts, traces


def dossier_of(store: Store, tenant: str, rollout_id: str) -> Dossier:
    """By its whole id. A job that has no card yet is told too, by what was noted of it."""
    stored = next(cards_by_id(store, [rollout_id], tenant), None)
    notes, reviews = notes_of(store, tenant, rollout_id), reviews_of(store, tenant, rollout_id)
    if stored is None and not notes:
        raise NotThere(f"no card has the id {rollout_id[:200]}", "`rft card list` and GET /v1/cards show those that are there")
    ended = None if stored is None else stored.card.rollout.ending is not None
    reviewed = any(one.verdict in JUDGEMENTS for one in reviews)
    spans, late = _spans(store, tenant, rollout_id)
    return Dossier(
        rollout_id=rollout_id,
        state=state_of(notes=notes, ended=ended, graded=bool(stored and stored.grades), reviewed=reviewed),
        stored=stored,
        states=notes,
        reviews=reviews,
        labels=labels_of_card(store, tenant, rollout_id),
        changes=changes_of(store, tenant, rollout_id),
        queue=reasons_of(store, tenant, rollout_id),
        lineage=() if stored is None else lineage(store, tenant, stored.card.versions),
        spans=spans,
        late_spans=late,
        erased=f"{gone.at:%Y-%m-%d %H:%M} UTC: {gone.why}" if (gone := stored and stored.erased) else "",
    )


def labels_of_card(store: Store, tenant: str, rollout_id: str) -> tuple[Label, ...]:
    """Every one that was ever given or taken back, oldest first."""
    columns = [human_labels.c[name] for name in Label.__struct_fields__]
    mine = (human_labels.c.rollout_id == rollout_id, human_labels.c.tenant == tenant)
    with store.reading() as connection:
        return tuple(Label(**row) for row in connection.execute(sa.select(*columns).where(*mine).order_by(human_labels.c.entry)).mappings())


def _spans(store: Store, tenant: str, rollout_id: str) -> tuple[int, int]:
    """In all, and of these the late ones."""
    late = sa.func.sum(sa.case((trace_parts.c.late, trace_parts.c.spans), else_=0))
    of_trace = sa.select(traces.c.trace_id).where(traces.c.tenant == tenant, traces.c.rollout_id == rollout_id)
    mine = (trace_parts.c.tenant == tenant, trace_parts.c.trace_id.in_(of_trace))
    with store.reading() as connection:
        row = connection.execute(sa.select(sa.func.sum(trace_parts.c.spans), late).where(*mine)).one()
    return int(row[0] or 0), int(row[1] or 0)
