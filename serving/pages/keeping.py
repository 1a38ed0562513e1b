"""What is kept whatever happens, and what may go: legal holds and retention."""

from __future__ import annotations

from collections.abc import Sequence

from observability import holds, retention
from observability.views import read_query
from serving.pages.render import Answer, Asked, Desk, Go, Page


def held(desk: Desk, asked: Asked) -> Answer:
    return _keeping(desk, asked, None)


def planned(desk: Desk, asked: Asked) -> Answer:
    """The same page, with what retention would take now."""
    return _keeping(desk, asked, retention.plan(desk.store, asked.caller.tenant, asked.now))


def _keeping(desk: Desk, asked: Asked, plan: Sequence[retention.Due] | None) -> Answer:
    store, tenant = desk.store.of(asked.caller.tenant), asked.caller.tenant
    values = {"standing": holds.live(store, tenant), "history": holds.history(store, tenant)[::-1], "q": asked.get("q")}
    return Page("holds.html", values | {"policies": retention.policies(store, tenant), "plan": plan})


def place_hold(desk: Desk, asked: Asked) -> Answer:
    store, caller = desk.store.of(asked.caller.tenant), asked.caller
    query = read_query(store, caller.tenant, asked.get("q"), asked.now)
    holds.place(store, caller.tenant, asked.get("name"), query, asked.get("reason"), caller.name)
    return Go("/holds")


def release_hold(desk: Desk, asked: Asked) -> Answer:
    store, caller = desk.store.of(asked.caller.tenant), asked.caller
    holds.release(store, caller.tenant, asked.get("name"), asked.get("reason"), caller.name)
    return Go("/holds")
