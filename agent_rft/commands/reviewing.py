"""`rft review`, `rft queue`, `rft change` and `rft view`: what people say of cards, from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import msgspec
from rich.table import Table

from agent_rft.commands.access import me
from agent_rft.commands.cards import whole_file
from agent_rft.commands.parts import console
from agent_rft.contracts.errors import Fault, FaultsFound, UserError
from observability import accesses, queue, reviews, states, views
from observability.cards import cards_by_id, whole_id
from observability.dossier import Change, Target
from observability.queue import Filled, Policy, Progress
from observability.store import Store, open_store
from observability.texts import to_json

# --- reviews and seals --------------------------------------------------------------------------------------------------


def add_review(store: str, tenant: str, card: str, verdict: str, note: str, step: int | None, change: Target | None) -> None:
    """With `change`, the note is what is wanted of the dataset or the prompt as well."""
    with closing(open_store(store)) as opened:
        mine, rollout_id = _card(opened, tenant, card, "review")
        by = me(tenant).name
        if change and not note:
            raise UserError("a change request without words asks for nothing", "--note WHAT SHOULD BE CHANGED")
        if change:
            _, asked = reviews.add_with_change(mine, by, tenant, rollout_id, verdict, note, step, change)
        else:
            reviews.add(mine, by, tenant, rollout_id, verdict, note, step)
            asked = None
    console.print(f"{rollout_id}: {verdict}, by {by}")
    if asked:
        console.print(f"change request {asked.id}: {asked.target}, row {asked.row_id}")


def seal(store: str, tenant: str, card: str, why: str) -> None:
    with closing(open_store(store)) as opened:
        mine, rollout_id = _card(opened, tenant, card, "seal")
        states.seal(mine, me(tenant).name, tenant, rollout_id, why)
    console.print(f"{rollout_id} is sealed: nothing more is said of it")


# --- the queue ----------------------------------------------------------------------------------------------------------


def fill_queue(store: str, tenant: str, share: Sequence[str], at_least: int, below: float) -> None:
    policy = Policy(shares=_shares(share), at_least=at_least, below=below)
    with closing(open_store(store)) as opened:
        filled = queue.fill_for(opened, me(tenant), policy)
        console.print(f"{told_of(filled)}; {_told(queue.progress(opened.of(tenant), tenant))}")


def flag_cards(store: str, tenant: str, cards: Sequence[str], name: str, why: str) -> None:
    with closing(open_store(store)) as opened:
        ids = [whole_id(opened.of(tenant), card) for card in cards]
        added = queue.flag_for(opened, me(tenant), ids, name, why)
    console.print(f"{added} of {len(ids)} cards are new in the review queue as {queue.FLAG}{name}")


def list_queue(store: str, tenant: str, reason: str | None, limit: int) -> None:
    with closing(open_store(store)) as opened:
        mine = opened.of(tenant)
        waiting, progress = queue.waiting(mine, tenant, limit, reason), queue.progress(mine, tenant)
    table = Table("card", "reason", "why", title=_told(progress), title_justify="left")
    for one in waiting:
        table.add_row(one.rollout_id, one.reason, one.why)
    console.print(table)


def told_of(filled: Filled) -> str:
    put = ", ".join(f"{count} {reason}" for reason, count in filled.put.items())
    return f"review queue: {put or 'nothing new'} of entries {filled.since + 1} to {filled.until}"


def _told(progress: Sequence[Progress]) -> str:
    each = ", ".join(f"{one.reason} {one.waiting}" for one in progress if one.waiting)
    return f"{sum(one.waiting for one in progress)} wait" + (f" ({each})" if each else "") + f", {sum(one.done for one in progress)} done"


def _shares(typed: Sequence[str]) -> dict[str, float]:
    shares, faults = dict[str, float](), list[Fault]()
    for one in typed:
        kind, _, share = one.partition("=")
        try:
            shares[kind] = float(share)
        except ValueError:
            faults.append(Fault(f"--share {one}", "it is no kind with a share", "--share production=0.01"))
    if faults:
        raise FaultsFound("the queue cannot be filled by this rule:", faults, exit_code=2)
    return shares


# --- change requests ----------------------------------------------------------------------------------------------------


def list_changes(store: str, tenant: str, target: Target | None, every: bool, limit: int) -> None:
    with closing(open_store(store)) as opened:
        found = reviews.changes(opened.of(tenant), tenant, target=target, open_only=not every, limit=limit)
    title = f"{len(found)} change requests" + ("" if every else " that are open")
    table = Table("", "of", "row", "wanted", "by", "card", "came of it", title=title, title_justify="left")
    for one in found:
        came = f"{one.outcome.outcome} by {one.outcome.by}: {one.outcome.how}" if one.outcome else "open"
        table.add_row(str(one.id), one.target, one.row_id, one.wanted, one.by, one.rollout_id, came)
    console.print(table)


def settle_change(store: str, tenant: str, number: int, outcome: str, how: str) -> None:
    with closing(open_store(store)) as opened:
        settled = reviews.settle(opened.of(tenant), me(tenant).name, tenant, number, outcome, how)
    console.print(f"change request {settled.id} is {outcome}")


def export_changes(store: str, tenant: str, target: Target, out: str) -> None:
    """The open ones as JSON lines, each with the row as the card has it: what whoever mends the data or the prompt starts from."""
    file = Path(out)
    if file.exists():
        raise UserError(f"{file} is there already", "name another file: an export is never written over")
    with closing(open_store(store)) as opened:
        mine = opened.of(tenant)
        found = reviews.changes(mine, tenant, target=target, open_only=True)
        cards = sorted({one.rollout_id for one in found})
        accesses.note(opened, me(tenant), "export", f"change requests of the {target}", cards)
        with whole_file(file) as written:
            written.writelines(_lines(mine, tenant, found, cards))
    console.print(f"{file}: {len(found)} open change requests of the {target}")


def _lines(store: Store, tenant: str, found: Sequence[Change], cards: Sequence[str]) -> list[bytes]:
    rows = {}
    for stored in cards_by_id(store, cards, tenant):
        card = stored.card
        rows[card.rollout_id] = {
            "id": card.row_id,
            "messages": msgspec.to_builtins(card.rollout.opening),
            "reference_answer": card.reference_answer,
            "metadata": card.metadata,
            **(card.item or {}),
        }
    return [
        to_json(
            {"request": one.id, "wanted": one.wanted, "by": one.by, "card": one.rollout_id, "row": rows.get(one.rollout_id)}
        ).encode() + b"\n"
        for one in found
    ]  # fmt: skip


# --- views --------------------------------------------------------------------------------------------------------------


def save_view(store: str, tenant: str, name: str, query: Sequence[str]) -> None:
    with closing(open_store(store)) as opened:
        saved = views.save(opened.of(tenant), me(tenant).name, tenant, name, " ".join(query))
    console.print(f"rft card list @{saved.name}  asks  {saved.query}")


def list_views(store: str, tenant: str) -> None:
    with closing(open_store(store)) as opened:
        found = views.listed(opened.of(tenant), tenant)
    table = Table("name", "query", "by", title=f"{len(found)} saved views of tenant {tenant}", title_justify="left")
    for one in found:
        table.add_row(f"@{one.name}", one.query, one.by)
    console.print(table)


def remove_view(store: str, tenant: str, name: str) -> None:
    with closing(open_store(store)) as opened:
        views.remove(opened.of(tenant), tenant, name.removeprefix(views.MARK))
    console.print(f"the view {name} is gone")


def _card(store: Store, tenant: str, card: str, action: str) -> tuple[Store, str]:
    """Whoever judges a card has read it."""
    mine = store.of(tenant)
    rollout_id = whole_id(mine, card)
    accesses.note(store, me(tenant), action, rollout_id, [rollout_id])
    return mine, rollout_id
