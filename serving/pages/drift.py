"""What services live through, beside their training and their last week."""

from __future__ import annotations

from typing import Any

import msgspec

from serving.pages import pictures
from serving.pages.pictures import Curve, Pair
from serving.pages.render import Answer, Asked, Desk, Page
from serving.release.looking import Compared, ServiceDrift, drift_of
from serving.release.waivers import waived_of_services


class Multiple(msgspec.Struct, frozen=True):
    """One of many small pictures."""

    one: Compared
    pairs: list[Pair]
    curve: Curve | None


class Shown(msgspec.Struct, frozen=True):
    service: ServiceDrift
    rows: list[tuple[str, list[Multiple]]]
    """By monitor, its references beside each other."""


def drift(desk: Desk, asked: Asked) -> Answer:
    tenant = asked.caller.tenant
    wanted = asked.get("service")
    store = desk.store.of(tenant)
    every = drift_of(store, tenant)
    shown = [_shown(one) for one in every if wanted in ("", one.service)]
    values: dict[str, Any] = {"services": shown, "every": [one.service for one in every], "service": wanted}
    return Page("drift.html", values | {"waived": waived_of_services(store, tenant, desk.files)})


def _shown(service: ServiceDrift) -> Shown:
    rows: dict[str, list[Multiple]] = {}
    for one in sorted(service.compared, key=lambda one: not one.figures["alarmed"]):
        rows.setdefault(one.name, []).append(_multiple(one))
    return Shown(service, list(rows.items()))


def _multiple(one: Compared) -> Multiple:
    figures = one.figures
    pairs = pictures.pairs(figures["bins"], figures["reference"], figures["live"])
    return Multiple(one, pairs, pictures.curve(figures["curve"], figures["bound"]))
