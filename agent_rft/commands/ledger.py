"""`rft ledger ...`: the store held against what was recorded, signed roots, and a case's evidence for someone outside."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from agent_rft.commands.access import me
from agent_rft.commands.cards import whole_file
from agent_rft.commands.parts import console, progress_bar
from agent_rft.contracts.errors import UserError, did_you_mean
from observability import ledger, roots
from observability.bundles import evidence_of
from observability.chain import Finding, SignedRoot
from observability.halves import moment_text
from observability.roots import LedgerFiles
from observability.signing import open_keys, public_keys, rotate
from observability.sources import disclosed, told
from observability.store import Store, open_store

SHOWN = 50
"""Findings that are listed."""


def sign(url: str, folder: str | None) -> None:
    with closing(open_store(url)) as store:
        files = _files(store, folder)
        signed = roots.sign_all(store, open_keys(files.keys, _now()), files.roots, _now())
    for root in signed:
        console.print(f"tenant {root.tenant}: signed {root.size} entries, root {root.root[:16]}, key {root.key}")
    console.print(f"{len(signed)} roots added to {files.roots}" if signed else "nothing was entered since the newest roots")


def verify(url: str, folder: str | None, tenant: str | None) -> None:
    """Ends with 1 if anything is not as it was recorded."""
    with closing(open_store(url)) as store:
        files = _files(store, folder)
        lost = roots.lost_roots(store, files.roots, tenant)
        trusted, faults = roots.trusted(files)
        every = sorted({*ledger.tenants(store), *(root.tenant for root in trusted)})
        if tenant is not None:
            if tenant not in every and not lost:
                raise UserError(f"{store.name} has no tenant {tenant}", did_you_mean(tenant, every) if every else "it has none at all")
            every = [tenant]
        findings: list[Finding] = []
        for one in every:
            entries, own = ledger.size(store, one), [root for root in trusted if root.tenant == one]
            with progress_bar(f"tenant {one}", entries) as step:
                found = list(ledger.verify(store, one, own, step))
            console.print(_verdict(one, entries, own, len(found)))
            for source in disclosed(store, one):
                if source.lacks:
                    console.print(f"  not everything came: source {told(source)}", style="yellow")
            findings += found
    for finding in findings[:SHOWN]:
        console.print(f"  {finding}", style="red")
    if len(findings) > SHOWN:
        console.print(f"  and {len(findings) - SHOWN} more", style="red")
    for fault in (*faults, *lost):
        console.print(f"  {fault}", style="red")
    if roots.is_torn(files.roots):
        why = "" if lost else ": a kill or a full disk leaves such, and the next root takes its place"
        console.print(f"  {files.roots} ends in half a line, which counts as never written{why}", style="yellow")
    if wrong := len(findings) + len(faults) + len(lost):
        cure = "a backup from before shows what stood there; the entries say when it was recorded"
        more = f"; {roots.CURE_OF_LOST}" if lost else ""
        raise UserError(f"{wrong} things are not as they were recorded", cure + more, exit_code=1)


def evidence(url: str, folder: str | None, question: str, tenant: str, name: str, by: str, out: str) -> None:
    """Everything about the cards that a query asks for, in one signed file that a stand-alone script checks."""
    target = Path(out)
    if target.exists():
        raise UserError(f"{target} is there already", "name another file: evidence is never written over")
    with closing(open_store(url)) as store:
        made = evidence_of(store, _files(store, folder), me(tenant), by, name, question, dt.datetime.fromisoformat(_now()))
    with whole_file(target) as file:
        file.write(made.content)
    told = f"{made.cards} cards, {made.entries} entries, {len(made.content) / 1e6:.1f} MB"
    console.print(f"{target}: {told}\ncheck it: python3 observability/verify_evidence.py {target} --key KEYS.json (rft ledger keys)")


def keys(url: str, folder: str | None, renew: bool) -> None:
    """The public halves, for those who verify."""
    with closing(open_store(url)) as store:
        files = _files(store, folder)
    if renew:
        last = max((root.at for root in roots.trusted(files)[0]), default="")
        found = rotate(files.keys, _now(), last)
    else:
        found = open_keys(files.keys, _now())
    console.print(public_keys(found).decode(), end="")


def _files(store: Store, folder: str | None) -> LedgerFiles:
    """A folder that was mistyped would be one without roots, and all would seem well."""
    if folder is not None and not Path(folder).is_dir():
        raise UserError(f"--folder {folder}: there is no such folder", "look at its name, or make it first")
    return LedgerFiles.of(store, folder)


def _verdict(tenant: str, entries: int, own: Sequence[SignedRoot], findings: int) -> str:
    covered = max((root.size for root in own), default=0)
    signed = (
        f"the newest signed root covers {covered}" if covered else "no root was signed yet (`rft ledger sign`): a cut tail would not show"
    )
    return f"tenant {tenant}: {entries} entries, {'all as recorded' if not findings else f'{findings} findings'}; {signed}"


def _now() -> str:
    return moment_text(dt.datetime.now(dt.UTC))
