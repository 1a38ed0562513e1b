"""What reviewers do: verdicts, notes, seals, the review queue, change requests, saved views."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from agent_rft.contracts.errors import UserError
from observability import accesses, queue, reviews, states, views
from observability.dossier import Waiting
from serving.pages.cards import card_values, noted_dossier
from serving.pages.render import Answer, Asked, Desk, Go, Page, address

AT_ONCE = 200
CHANGES = 100


# --- verdicts -----------------------------------------------------------------------------------------------------------


def review(desk: Desk, asked: Asked) -> Answer:
    """A verdict or a note; with a target, the note becomes a change request as well."""
    store, tenant, by = desk.store.of(asked.caller.tenant), asked.caller.tenant, asked.caller.name
    rollout_id, verdict, note, target = (asked.get(name) for name in ("rollout_id", "verdict", "note", "target"))
    if target and not note:
        raise UserError("a change request without words asks for nothing", "go back, and write in the note what should be changed")
    accesses.note(desk.store, asked.caller, "review", rollout_id, [rollout_id])
    if target:
        reviews.add_with_change(store, by, tenant, rollout_id, verdict, note, asked.number("position"), target)
    else:
        reviews.add(store, by, tenant, rollout_id, verdict, note, asked.number("position"))
    told = "annotated" if verdict == "note" else "changed" if target else "reviewed"
    if asked.get("back") == "queue":
        return Go(address("/queue", reason=asked.get("reason"), skip=asked.get("skip"), note=told))
    return Go(address(f"/cards/{quote(rollout_id, safe='')}", note=told))


def seal(desk: Desk, asked: Asked) -> Answer:
    rollout_id = asked.get("rollout_id")
    accesses.note(desk.store, asked.caller, "seal", rollout_id, [rollout_id])
    states.seal(desk.store.of(asked.caller.tenant), asked.caller.name, asked.caller.tenant, rollout_id, asked.get("why"))
    return Go(address(f"/cards/{quote(rollout_id, safe='')}", note="sealed"))


# --- the queue ----------------------------------------------------------------------------------------------------------

NOTES = {
    "reviewed": "Your verdict is recorded. The next one:",
    "changed": "Your verdict and your change request are recorded. The next one:",
}


def review_queue(desk: Desk, asked: Asked) -> Answer:
    """One card at a time, the most urgent first. Those that are skipped come again at the next sitting."""
    store, tenant, reason = desk.store.of(asked.caller.tenant), asked.caller.tenant, asked.get("reason")
    skipped = asked.number("skip") or 0
    waiting = queue.waiting(store, tenant, AT_ONCE, reason or None)
    ids = list(dict.fromkeys(one.rollout_id for one in waiting))
    progress = queue.progress(store, tenant)
    values: dict[str, Any] = {"reason": reason, "progress": progress, "skip": skipped, "note": NOTES.get(asked.get("note"), "")}
    values |= {"waiting": sum(one.waiting for one in progress), "done": sum(one.done for one in progress), "left": len(ids) - skipped}
    if skipped >= len(ids):
        return Page("queue.html", values | {"dossier": None})
    found = noted_dossier(desk, asked, ids[skipped], "read in queue")
    why: list[Waiting] = [one for one in waiting if one.rollout_id == found.rollout_id]
    return Page("queue.html", values | card_values(desk, asked, found) | {"why": why, "back": "queue"})


def fill_queue(desk: Desk, asked: Asked) -> Answer:
    queue.fill_for(desk.store, asked.caller)
    return Go("/queue")


# --- change requests ----------------------------------------------------------------------------------------------------


def changes(desk: Desk, asked: Asked) -> Answer:
    store, tenant = desk.store.of(asked.caller.tenant), asked.caller.tenant
    open_only, after = asked.get("show") != "all", asked.number("after") or 0
    found = reviews.changes(store, tenant, open_only=open_only, after=after, limit=CHANGES + 1)
    shown = found[:CHANGES]
    return Page(
        "changes.html", {"changes": shown, "open_only": open_only, "next": shown[-1].id if len(found) > CHANGES else 0, "after": after}
    )


def settle(desk: Desk, asked: Asked) -> Answer:
    request = asked.number("request")
    if request is None:
        raise UserError("no change request is named", "go back, and choose one")
    reviews.settle(
        desk.store.of(asked.caller.tenant), asked.caller.name, asked.caller.tenant, request, asked.get("outcome"), asked.get("how")
    )
    return Go(address("/changes", show=asked.get("show")))


# --- saved views --------------------------------------------------------------------------------------------------------


def saved_views(desk: Desk, asked: Asked) -> Answer:
    return Page("views.html", {"views": views.listed(desk.store.of(asked.caller.tenant), asked.caller.tenant)})


def save_view(desk: Desk, asked: Asked) -> Answer:
    name = asked.get("name")
    views.save(desk.store.of(asked.caller.tenant), asked.caller.name, asked.caller.tenant, name, asked.get("query"))
    return Go(address("/cards", q=f"@{name}"))


def remove_view(desk: Desk, asked: Asked) -> Answer:
    views.remove(desk.store.of(asked.caller.tenant), asked.caller.tenant, asked.get("name"))
    return Go("/views")
