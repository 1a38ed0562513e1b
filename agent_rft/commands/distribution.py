"""The distribution check where people meet it: before a training, before a release, and by itself."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from contextlib import closing
from itertools import combinations
from pathlib import Path
from typing import Any

import msgspec

from agent_rft.commands.grading import embedder_of
from agent_rft.commands.parts import Data, card_server_of, console, guards_of
from agent_rft.commands.run_folder import RunFolder
from agent_rft.contracts.errors import Halted, UserError
from agent_rft.datasets.rows_io import read_rows
from agent_rft.evaluation.distribution import (
    MOST,
    DistributionCheck,
    Sample,
    compare_samples,
    describe,
    drawn,
    sample_of_cards,
    sample_of_rows,
)
from agent_rft.guards.limits import limit_of, watched
from agent_rft.settings import Settings, ToolSettings
from observability import drift
from observability.releases import current
from observability.store import Store, open_store

KEPT = "distribution.json"
GUARD = "distribution"
RECENT = dt.timedelta(days=30)
"""Of production that rows are held against."""
CURE = "draw the split anew (`rft data split`), or bring in rows like those that are missing (`rft data from-cards`, `rft data refresh`)"


def check_files(train: str, val: str, service: str, store: str, tenant: str) -> None:
    """`rft data check`: ends with 1 where any two differ."""
    samples = [sample_of_rows(name, read_rows(Path(file))) for name, file in (("train", train), ("val", val))]
    if service:
        with closing(open_store(store)) as opened:
            samples.append(_of_production(opened, tenant, service))
    checks = _compared(samples)
    _show(checks)
    if differing := [check for check in checks if check.verdict == "differ"]:
        raise UserError(_told(differing), CURE, exit_code=1)


def look_before_training(settings: Settings, folder: RunFolder, data: Data) -> None:
    """Once a run, said and kept. It stops nothing, unless the recipe says so."""
    if folder.kept(KEPT, lambda content: msgspec.json.decode(content, type=list[DistributionCheck])) is not None:
        return
    samples = [sample_of_rows("train", data.train), sample_of_rows("val", data.val)]
    if settings.task.service and card_server_of(settings.store):
        console.print(f"{settings.task.service} is not compared: store.url is a card server, which only takes cards", style="yellow")
    elif settings.task.service:
        with closing(open_store(settings.store.url)) as store:
            samples.append(_of_production(store, settings.store.tenant, settings.task.service))
    checks = _compared(_embedded(samples, settings.tools))
    _show(checks)
    _heed(settings, [check for check in checks if check.verdict == "differ"])
    folder.keep(KEPT, msgspec.json.format(msgspec.json.encode(checks)))


def _heed(settings: Settings, differing: Sequence[DistributionCheck]) -> None:
    limit = limit_of(GUARD, watched(guards_of(settings)))
    if limit.action == "off" or sum(len(check.differing) for check in differing) < max(limit.at, 1):
        return
    if limit.action == "warn":
        console.print(f"warning: {_told(differing)}: what validation shows may not be what training, or users, bring", style="yellow")
        return
    raise Halted(f"the distribution check says: {_told(differing)}", f"{CURE}; or guards.watch.{GUARD}={{action: warn}}")


def report_figures(store: Store, tenant: str, agent_id: str, settings: Settings, data: Data) -> tuple[bool, dict[str, Any]]:
    """Whether the rows that an agent is judged by are like those that it was trained on, and like what its services are asked now."""
    services = [settings.task.service] if settings.task.service else _services_of(store, tenant, agent_id)
    samples = [sample_of_rows("train", data.train), sample_of_rows("val", data.val)]
    samples += [_of_production(store, tenant, service) for service in services]
    checks = _compared(_embedded(samples, settings.tools))
    _show(checks)
    figures = {
        "checks": msgspec.to_builtins(checks),
        "services": services,
        "says": [describe(check).partition("\n")[0] for check in checks],
    }
    return all(check.verdict != "differ" for check in checks), figures


def _services_of(store: Store, tenant: str, agent_id: str) -> list[str]:
    return sorted({release.service for release, _ in current(store, tenant) if agent_id in (release.candidate, release.live)})


def _of_production(store: Store, tenant: str, service: str) -> Sample:
    now = dt.datetime.now(dt.UTC)
    cards = drift.first_of_sessions(store, tenant, service, now - RECENT, now, MOST)
    return sample_of_cards(f"production of {service}", [one.card for one in cards])


def _compared(samples: Sequence[Sample]) -> list[DistributionCheck]:
    """Each with each: training against validation first."""
    return [compare_samples(one, other) for one, other in combinations(samples, 2)]


def _embedded(samples: Sequence[Sample], tools: ToolSettings) -> list[Sample]:
    """With the model that the tools search with, where they do."""
    if tools.retriever != "embeddings":
        return list(samples)
    embedder = embedder_of(tools.embeddings)
    return [
        msgspec.structs.replace(one, embeddings=tuple(map(tuple, embedder.embed(one.prompts).tolist()))) if one.prompts else one
        for one in map(drawn, samples)
    ]


def _show(checks: Sequence[DistributionCheck]) -> None:
    for check in checks:
        console.out(describe(check), style="yellow" if check.verdict == "differ" else None, highlight=False)


def _told(checks: Sequence[DistributionCheck]) -> str:
    return "; ".join(f"{one.name_a} and {one.name_b} differ in {' and '.join(part.what for part in one.differing)}" for one in checks)
