"""What a tenant's users got, beside what they were promised."""

from __future__ import annotations

from observability.levels import SPANS
from serving.pages.render import Answer, Asked, Desk, Page
from serving.release.looking import levels_of
from serving.release.waivers import waived_of_services


def service_levels(desk: Desk, asked: Asked) -> Answer:
    tenant = asked.caller.tenant
    store = desk.store.of(tenant)
    found = levels_of(store, tenant, desk.promises, asked.now)
    spans = [(span, [one for one in found.levels if one.level.span == span]) for span in SPANS]
    return Page("levels.html", {"found": found, "spans": spans, "waived": waived_of_services(store, tenant, desk.files)})
