"""What a tenant's users got, beside what they were promised."""

from __future__ import annotations

from observability.levels import SPANS
from serving.pages.render import Answer, Asked, Desk, Page
from serving.release.looking import levels_of


def service_levels(desk: Desk, asked: Asked) -> Answer:
    tenant = asked.caller.tenant
    found = levels_of(desk.store.of(tenant), tenant, desk.promises, asked.now)
    spans = [(span, [one for one in found.levels if one.level.span == span]) for span in SPANS]
    return Page("levels.html", {"found": found, "spans": spans})
