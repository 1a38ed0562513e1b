"""`rft release rehearse`: see releases go forward, and back, before one is made in earnest."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.table import Table

from agent_rft.commands.parts import console
from agent_rft.commands.rehearsal import SCENARIOS, Outcome, Scenario, Weights, play, world
from agent_rft.contracts.errors import Fault, FaultsFound, UserError, did_you_mean
from agent_rft.contracts.releases import Event

BASE = "models/research-tiny"


class _Summary(msgspec.Struct):
    """Of a run: what stands in its summary.json."""

    checkpoint: str


def rehearse(
    names: Sequence[str], *, live: str, candidate: str | None, run_id: str | None, runs: str, store: str | None, users: int, seconds: float,
    keep: str | None, settings: Sequence[str],
) -> None:  # fmt: skip
    """Exit code 1 where a scenario went otherwise than it should."""
    if unknown := [name for name in names if name not in SCENARIOS]:
        raise FaultsFound("there are no such scenarios:", [Fault(name, did_you_mean(name, SCENARIOS)) for name in unknown], exit_code=2)
    scenarios = [SCENARIOS[name] for name in names or SCENARIOS]
    weights = weights_of(live, candidate, run_id, runs)
    folder = Path(keep) if keep else Path(tempfile.mkdtemp(prefix="rft-rehearsal-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        console.print("starting the model servers and the gateway (half a minute) ...")
        with world(folder.absolute(), weights, scenarios, store, settings) as running:
            console.print(f"gateway at {running.gateway.base_url}, store {running.store.name}, logs in {folder}")
            outcomes = [
                play(running, weights, scenario, heard, at_once=users, longest_seconds=seconds)
                for scenario in scenarios
                if announced(scenario)
            ]
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    console.print(table_of(outcomes))
    if wrong := [Fault(outcome.scenario.name, fault) for outcome in outcomes for fault in outcome.faults()]:
        raise FaultsFound("not every scenario went as it should:", wrong, "--keep FOLDER keeps the store and the logs to look into")


def weights_of(live: str, candidate: str | None, run_id: str | None, runs: str) -> Weights:
    """A run's base and tuned model; or the two that are named; or one for both arms."""
    if run_id is None:
        return Weights(live, candidate or live)
    file = Path(runs) / run_id / "summary.json"
    try:
        return Weights(live, msgspec.json.decode(file.read_bytes(), type=_Summary).checkpoint)
    except (OSError, msgspec.MsgspecError) as error:
        raise UserError(f"{file} cannot be read: {error}", "name a run that is finished; `ls runs` shows those that are there") from None


def announced(scenario: Scenario) -> bool:
    console.print(f"\n{scenario.name}: {scenario.says}", style="bold")
    return True


def heard(scenario: Scenario, event: Event, seconds: float) -> None:
    stage = event.stage.replace("_", " ") + (f" {event.share:.0%}" if event.stage == "canary" else "") + (", held" if event.held else "")
    console.print(f"  {seconds:6.1f} s  {stage:12}  {event.by}: {event.why}")


def table_of(outcomes: Sequence[Outcome]) -> Table:
    table = Table(title="\nrehearsed", title_justify="left")
    for column in ("scenario", "became", "right"):
        table.add_column(column, no_wrap=True)
    for column in ("after", "sessions", "sent", "answered", "lost"):
        table.add_column(column, justify="right")
    for one in outcomes:
        sent, answered = one.users.sent + one.bystanders.sent, one.users.answered + one.bystanders.answered
        figures = (f"{one.seconds:.1f} s", str(one.sessions), str(sent), str(answered), str(sent - answered))
        table.add_row(one.scenario.name, one.last.stage.replace("_", " "), "no" if one.faults() else "yes", *figures)
    return table
