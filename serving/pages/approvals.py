"""The inbox of calls that wait for a person: what an agent wants to do, and how it came to that."""

from __future__ import annotations

from typing import Any

import msgspec

from observability import approvals, runs
from observability.accesses import note
from observability.approvals import Approval
from observability.store import Store
from serving.gateway.events import Story
from serving.pages.cardview import TurnView, prompt_of, turns_of
from serving.pages.render import Answer, Asked, Desk, Go, Page, address

DECIDED_SHOWN = 50
NOTES = {
    "approve": "You allowed the call. Its run goes on, and makes it once.",
    "refuse": "You refused the call. Its run goes on, and the agent is told why.",
}


class Waiting(msgspec.Struct, frozen=True):
    approval: Approval
    own: bool
    """Whoever looks at it has the agent run, and does not decide."""
    prompt: str
    turns: tuple[TurnView, ...]
    """Of the run so far; empty where it is not the gateway that runs it."""


def inbox(desk: Desk, asked: Asked) -> Answer:
    caller, store = asked.caller, desk.store
    waiting = approvals.waiting(store, caller.tenant, asked.now)
    before = asked.number("before")
    found = approvals.listed(store, caller.tenant, before, DECIDED_SHOWN + len(waiting) + 1)
    over = [one for one in found if one.state(asked.now) != "waiting"]
    note(store, caller, "read approvals", "inbox", {one.rollout_id for one in (*waiting, *over[:DECIDED_SHOWN])})
    values: dict[str, Any] = {"waiting": [] if before else [_waiting(store, asked, one) for one in waiting], "now": asked.now}
    values |= {"over": over[:DECIDED_SHOWN], "next": over[DECIDED_SHOWN - 1].id if len(over) > DECIDED_SHOWN else 0}
    return Page("approvals.html", values | {"note": NOTES.get(asked.get("note"), ""), "before": before})


def decide(desk: Desk, asked: Asked) -> Answer:
    decision = asked.get("decision")
    approvals.decide(desk.store, asked.caller, asked.number("approval_id") or 0, decision, asked.get("note"), asked.now)
    return Go(address("/approvals", note=decision))


def _waiting(store: Store, asked: Asked, one: Approval) -> Waiting:
    run = runs.waiting_for(store.of(asked.caller.tenant), asked.caller.tenant, one.id)
    try:
        story = msgspec.msgpack.decode(run.rollout, type=Story) if run else None
    except msgspec.MsgspecError:  # another version's gateway keeps it otherwise
        story = None
    own = one.is_of(asked.caller)
    if story is None:
        return Waiting(one, own, "", ())
    return Waiting(one, own, prompt_of(story.said), turns_of(story.rollout))
