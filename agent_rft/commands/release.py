"""`rft release` and `rft agent`: what is on trial, what a person decides of it, and what can be put on trial."""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import yaml
from rich.table import Table
from sqlalchemy.exc import DBAPIError

from agent_rft.commands.access import me
from agent_rft.commands.console import console
from agent_rft.commands.safety_suite import policy_of, suite_of
from agent_rft.contracts.agents import Agent
from agent_rft.contracts.errors import Fault, FaultsFound, UserError, did_you_mean
from agent_rft.contracts.releases import OPEN_STAGES, Event, Policy, Release
from agent_rft.contracts.rollouts import Limits
from agent_rft.release.rules import Known, waits_for
from agent_rft.settings import ReleaseSettings
from observability import registry, releases
from observability.roots import LedgerFiles
from observability.store import Store, StoreAway, open_store
from serving.release import acts
from serving.release.acts import policy_wished, read_policy
from serving.release.knowing import known_of
from serving.release.routing import Intent, write_intent
from serving.release.waivers import safety_waived, signed_in

SHORT = 14
"""Characters of an agent's id that are shown, and that name it."""
LONGEST_FIGURES = 160


# --- looking ------------------------------------------------------------------------------------------------------------


def status(store: str, tenant: str | None, ledger: str | None) -> None:
    """Every service, where its releases stand, and what each waits for."""
    now = _now()
    with closing(open_store(store)) as opened:
        files = LedgerFiles.of(opened, ledger)
        found = [(release, event, known_of(opened, release, now, files=files)) for release, event in releases.current(opened, tenant)]
        told = {release.id: releases.events(opened, release.tenant, release.id) for release, _, _ in found}
        waived = {release.id: safety_waived(release, told[release.id], files) for release, _, _ in found}
    if not found:
        console.print("nothing was released yet; `rft release first SERVICE --agent AGENT` begins (`rft agent list` shows the agents)")
        return
    table = Table("service", "id", "stage", "live", "candidate", "since")
    for release, event, _ in found:
        share = f" {event.share:.0%}" if event.stage == "canary" else ""
        stage = event.stage.replace("_", " ") + share + (", held" if event.held else "")
        named = (release.live[:SHORT] or "none", release.candidate[:SHORT])
        table.add_row(release.service, str(release.id), stage, *named, _ago(now, event.at))
    console.print(table)
    for release, event, known in found:
        waiting = waits_for(release.policy, known) if event.stage in OPEN_STAGES and not event.held else ""
        said = [f"waits for {waiting}" if waiting else event.why, *(_counted(known) if event.stage in ("shadow", "canary", "full") else ())]
        console.print(f"{release.id} {release.service}: {'; '.join(said)}")
        if one := waived[release.id]:
            console.print(f"   {one.head}. {one.words}", style="yellow")


def history(store: str, tenant: str, id: str | None, ledger: str | None) -> None:
    """Who or what decided what, on which figures."""
    with closing(open_store(store)) as opened:
        release, files = _meant(opened, tenant, id, every=True), LedgerFiles.of(opened, ledger)
        told = releases.events(opened, tenant, release.id)
    console.print(f"release {release.id} of {release.service}: {release.candidate} against {release.live or 'none'}, made by {release.by}")
    for event in told:
        share = f" {event.share:.0%}" if event.stage == "canary" else ""
        stage = event.stage.replace("_", " ") + share + (", held" if event.held else "") + (", cut" if event.cut else "")
        console.print(f"{event.id}  {event.at:%Y-%m-%d %H:%M:%S}  {event.by}  {event.act}: {stage}: {event.why}")
        if figures := _short(event.figures):
            console.print(f"   on {figures}")
        for one in signed_in(release, [event], files):
            console.print(f"   signed with the ledger's key {one.waiver.key}{f', and void: {one.void}' if one.void else ''}")


def _counted(known: Known) -> Iterator[str]:
    """How many sessions, and the test that speaks loudest against the candidate."""
    errors = next((test for test in known.tests.canary if test.kpi == "errors"), None)
    if errors:
        yield f"sessions {errors.candidate.n} of its own, {errors.live.n} live" + f", {known.sessions_in_shadow} in the shadow"
    tests = [test for test in (*known.tests.canary, *known.tests.shadow) if test.bet.n and test.alpha]
    if tests:
        worst = max(tests, key=lambda test: test.bet.highest_log_e + math.log(test.alpha))
        e_value = math.exp(min(worst.bet.highest_log_e, 700.0))
        yield f"loudest against it: {worst.kpi}, e-value {e_value:.3g} of {1 / worst.alpha:.3g}, p {worst.bet.p_value:.2g}"


def _short(figures: Mapping[str, Any]) -> str:
    """What is not in a table of its own; GET /v1/releases/ID has all of it."""
    plain = {name: value for name, value in figures.items() if not isinstance(value, dict)}
    text = json.dumps(plain, ensure_ascii=False, default=str) if plain else ""
    return text if len(text) <= LONGEST_FIGURES else f"{text[:LONGEST_FIGURES]}..."


# --- deciding -------------------------------------------------------------------------------------------------------------


def create(store: str, tenant: str, service: str, agent: str, policy: Sequence[str], served: ReleaseSettings) -> None:
    with closing(open_store(store)) as opened:
        made = acts.begin(opened, me(tenant).name, tenant, service, agent, wished(served, policy))
    console.print(f"release {made.id}: {made.candidate} is on trial for {service}, against {made.live or 'none'}; `rft release status`")
    if not made.live:
        raise UserError(f"{service} has no live agent to hold it against", f"`rft release first {service} --agent {agent}`")


def first(
    store: str, tenant: str, service: str, agent: str, policy: Sequence[str], ledger: str | None, served: ReleaseSettings
) -> None:  # fmt: skip
    rules = wished(served, policy)
    with closing(open_store(store)) as opened:
        made = acts.begin_first(opened, me(tenant).name, tenant, service, agent, rules, LedgerFiles.of(opened, ledger))
    console.print(f"release {made.id}: {service} is answered by {made.candidate} from now on")


def shadow(store: str, tenant: str, id: str | None, ledger: str | None) -> None:
    _act(store, tenant, id, lambda opened, by, release: acts.to_shadow(opened, by, tenant, release, LedgerFiles.of(opened, ledger)))


def canary(store: str, tenant: str, id: str | None, share: float | None, ledger: str | None) -> None:
    _act(store, tenant, id, lambda opened, by, release: acts.to_canary(opened, by, tenant, release, share, LedgerFiles.of(opened, ledger)))


def promote(store: str, tenant: str, id: str | None, why: str) -> None:
    _act(store, tenant, id, lambda opened, by, release: acts.propose(opened, by, tenant, release, why))


def approve(store: str, tenant: str, id: str | None, why: str, ledger: str | None) -> None:
    _act(store, tenant, id, lambda opened, by, release: acts.approve(opened, by, tenant, release, why, LedgerFiles.of(opened, ledger)))


def waive(store: str, tenant: str, id: str, report: str, why: str, ledger: str | None) -> None:
    """Where the folder of the ledger's keys is not there, new keys would be made in it, and nobody could tell whose signature theirs is."""
    if ledger is not None and not Path(ledger).is_dir():
        cure = "work in the folder that the server is started in, or name that of its keys with --ledger FOLDER"
        raise UserError(f"store.ledger is {ledger}, and there is no such folder here", cure)
    _act(store, tenant, id, lambda opened, _, release: acts.waive(opened, me(tenant), release, report, why, LedgerFiles.of(opened, ledger)))


def hold(store: str, tenant: str, id: str | None, why: str) -> None:
    _act(store, tenant, id, lambda opened, by, release: acts.hold(opened, by, tenant, release, why))


def resume(store: str, tenant: str, id: str | None, why: str) -> None:
    _act(store, tenant, id, lambda opened, by, release: acts.resume(opened, by, tenant, release, why))


def rollback(store: str, tenant: str, id: str | None, why: str, cut: bool, folder: str) -> None:
    """Where the store is away, or goes meanwhile, the servers on this machine hear of it all the same, and tell it when it is back."""
    try:
        _act(store, tenant, id, lambda opened, by, release: acts.roll_back(opened, by, tenant, release, why, cut=cut))
    except (StoreAway, DBAPIError) as error:
        away = error.what if isinstance(error, StoreAway) else f"the store does not answer: {error.orig}"
        if id is None or not id.isdecimal():
            raise UserError(f"{away}, so nobody knows which release is meant", "name its number: `rft release rollback 7`") from None
        write_intent(Path(folder), Intent(tenant=tenant, release=int(id), why=why or "by hand", cut=cut, by=me(tenant).name))
        console.print(f"{away}\n{Path(folder)} holds the rollback of release {id}: servers that read this folder withdraw it now")


def wished(served: ReleaseSettings, words: Sequence[str]) -> Policy:
    """The server's rules, and those of KEY=VALUE, dotted where it is below another: spent_on.reward=0.5."""
    rules = policy_of(served, suite_of(served).hash)  # a release by a suite that is not there could never go forward
    tree, told = msgspec.to_builtins(read_policy(rules)), dict[str, Any]()
    for word in words:
        key, equals, value = word.partition("=")
        name, _, below = key.partition(".")
        if not equals or name not in tree or (below and not isinstance(tree[name], dict)):
            raise FaultsFound("this is no policy:", [Fault(word, "names no rule", did_you_mean(name, tree))], exit_code=2)
        said = yaml.safe_load(value)
        told[name] = tree[name] = {**tree[name], below: said} if below else said
    return policy_wished(rules, told)


def _act(store: str, tenant: str, id: str | None, act: Callable[[Store, str, int], Event]) -> None:
    with closing(open_store(store)) as opened:
        number = int(id) if id and id.isdecimal() else _meant(opened, tenant, id).id
        event = act(opened, me(tenant).name, number)
    share = f" at {event.share:.0%}" if event.stage == "canary" else ""
    held = ", held" if event.held else ""
    console.print(f"release {number}: {event.stage.replace('_', ' ')}{share}{held}: {event.why} (event {event.id}, by {event.by})")


def _meant(store: Store, tenant: str, id: str | None, *, every: bool = False) -> Release:
    """By its number or its service's name. By nothing where there is but one on trial, or one live."""
    if id and id.isdecimal():
        return releases.release_of(store, tenant, int(id))
    found = [(release, event) for release, event in releases.current(store, tenant) if id in (None, release.service)]
    on_trial = [release for release, event in found if event.stage in OPEN_STAGES]
    rest = [release for release, event in found if event.stage == "full" or every]
    if len(meant := on_trial or rest[-1:] if id else on_trial or rest) == 1:
        return meant[0]
    if meant:
        raise UserError(
            f"several may be meant: {', '.join(f'{one.id} ({one.service})' for one in meant)}", "name one: its number or service"
        )
    raise UserError(f"nothing is released{f' for {id}' if id else ''} in tenant {tenant}", "`rft release status` shows what is")


# --- agents ---------------------------------------------------------------------------------------------------------------


def list_agents(store: str, tenant: str) -> None:
    with closing(open_store(store)) as opened:
        found = [(one, *registry.reports_to_look_at(opened, tenant, one.id)) for one in registry.agents(opened, tenant)]
    table = Table(title=f"agents of tenant {tenant}", title_justify="left")
    for column in ("agent", "name", "checkpoint", "run", "reports", "registered"):
        table.add_column(column, no_wrap=column == "agent")  # to be copied
    for one, reports, changed in found:
        said = {kind: f"{kind}{'' if made.passed else ' FAILED'}" for kind, made in registry.newest(reports).items()}
        told = ", ".join((said | {spoilt.kind: f"{spoilt.kind} CHANGED" for spoilt in changed}).values())
        table.add_row(one.id, one.name, one.agent.checkpoint, one.run_id, told, f"{one.at:%Y-%m-%d %H:%M}")
    console.print(table)


def show_agent(store: str, tenant: str, agent: str) -> None:
    """All that it is made of, back to the run and the data."""
    with closing(open_store(store)) as opened:
        one = registry.found(opened, tenant, agent)
        reports, changed = registry.reports_to_look_at(opened, tenant, one.id)
        made_from = registry.came_from(opened, tenant, one.agent)
        by_cards = [registry.told_by_cards(opened, tenant, made) if made.kind == "safety" and made.passed else "" for made in reports]
    console.print(f"{one.id} {one.name}, registered {one.at:%Y-%m-%d %H:%M}")
    for name, value in msgspec.to_builtins(one.agent).items():
        console.print(f"  {name}: {value if value != '' else 'none'}")
    for report, behind in zip(reports, by_cards, strict=True):
        console.print(
            f"  {report.kind} {'passed' if report.passed else 'FAILED'}, {report.at:%Y-%m-%d %H:%M}, {report.by}: {_short(report.figures)}"
        )
        if behind:
            console.print(f"    {behind}")
    for spoilt in changed:
        console.print(f"  {spoilt.what}; `rft ledger verify` says all that was changed", style="yellow")
    for made in made_from:
        console.print(f"  from {made.kind} {made.id}{'' if made.known else ' (nobody registered it)'}: {made.name}")


def register_agent(
    store: str, tenant: str, name: str, checkpoint: str, tool_set: str, system_prompt: str, limits: Sequence[str], temperature: float
) -> None:  # fmt: skip
    agent = Agent(
        checkpoint=checkpoint, tool_set=tool_set, system_prompt=_prompt(system_prompt), limits=_limits(limits), temperature=temperature
    )
    with closing(open_store(store)) as opened:
        made = registry.register_agent(opened, tenant, agent, name)
    console.print(f"{made} is registered; `rft release create SERVICE --agent {made[:SHORT]}` puts it on trial")


def report_agent(store: str, tenant: str, agent: str, kind: str, failed: bool, figure: Sequence[str]) -> None:
    figures = {name: yaml.safe_load(value) for name, _, value in (word.partition("=") for word in figure)}
    with closing(open_store(store)) as opened:
        one = registry.found(opened, tenant, agent)
        made = registry.report_by_hand(opened, tenant, one.id, kind, passed=not failed, figures=figures, by=me(tenant).name)
    console.print(f"{made.kind} of {one.id}: {'passed' if made.passed else 'FAILED'}, {_short(made.figures) or 'no figures'}, by {made.by}")


def _prompt(text: str) -> str:
    """@FILE is read."""
    if not text.startswith("@"):
        return text
    try:
        return Path(text[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {text[1:]}: {error}", "name a text file, or give the prompt itself") from None


def _limits(words: Sequence[str]) -> Limits:
    known = Limits.__struct_fields__
    told = {name: yaml.safe_load(value) for name, _, value in (word.partition("=") for word in words)}
    if wrong := [name for name in told if name not in known]:
        raise FaultsFound("these are no limits:", [Fault(name, "is no limit", did_you_mean(name, known)) for name in wrong], exit_code=2)
    try:
        return msgspec.convert(told, Limits)
    except msgspec.ValidationError as error:
        raise UserError(f"these are no limits: {error}", "such as --limit max_turns=8") from None


def _ago(now: dt.datetime, at: dt.datetime) -> str:
    seconds = (now - at).total_seconds()
    units = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))
    return next((f"{seconds / size:.0f} {unit}" for unit, size in units if seconds >= size), "now")


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
