"""`rft hold`, `rft retention` and `rft erase`: what of the cards is kept, and what may go."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from contextlib import closing

from rich.table import Table

from agent_rft.commands.access import me
from agent_rft.commands.parts import console, progress_bar
from agent_rft.contracts.errors import UserError
from observability import erasure, holds, retention
from observability.accesses import note
from observability.find import count
from observability.proofs import to_be_erased
from observability.query import EVERY_CARD
from observability.search import catch_up
from observability.store import Store, open_store
from observability.views import read_query

SHOWN = 20
"""Cards that are listed before they are erased."""


# --- holds ----------------------------------------------------------------------------------------------------------------


def place_hold(store: str, tenant: str, name: str, query: list[str], reason: str, by: str) -> None:
    with closing(open_store(store)) as opened:
        hold = holds.place(opened, tenant, name, read_query(opened, tenant, " ".join(query), _now()), reason, by)
        catch_up(opened, tenant)
        covered = count(opened, holds.query_of(hold), tenant)
    console.print(f"hold {name} is placed: {_cards(covered)} now, and those to come, that are: {hold.query or 'any card'}")
    console.print("neither retention nor an erasure takes their words until `rft hold release`")


def release_hold(store: str, tenant: str, name: str, reason: str, by: str) -> None:
    with closing(open_store(store)) as opened:
        holds.release(opened, tenant, name, reason, by)
    console.print(f"hold {name} is released: retention and erasures may take the words of its cards again")


def list_holds(store: str, tenant: str, all_of_them: bool) -> None:
    with closing(open_store(store)) as opened:
        found = holds.history(opened, tenant) if all_of_them else holds.live(opened, tenant)
    title = f"holds of tenant {tenant}, {'ever' if all_of_them else 'that stand'}"
    table = Table("hold", "act", "cards that are", "reason", "by", "when", title=title, title_justify="left")
    for hold in found:
        table.add_row(hold.name, hold.act, hold.query or "any card", hold.reason, hold.by, f"{hold.at:%Y-%m-%d %H:%M}")
    console.print(table)


# --- erasure --------------------------------------------------------------------------------------------------------------


def erase(store: str, tenant: str, query: list[str], why: str, by: str, dry_run: bool, yes: bool) -> None:
    """Shows what would go first; goes on only where --yes was said."""
    erasure.check_reason(by, why)
    with closing(open_store(store)) as opened:
        wanted = read_query(opened, tenant, " ".join(query), _now())
        if wanted == EVERY_CARD:
            raise UserError("an erasure names what goes", "give a query, such as row:val-0042 or id:0198c2...")
        catch_up(opened, tenant)
        ids = to_be_erased(opened, tenant, wanted)
        note(opened, me(tenant), "erasure asked for" if yes and not dry_run else "erasure dry run", why, ids)
        _show_what_goes(opened, tenant, ids)
        if dry_run:
            console.print("nothing was erased")
            return
        if not yes:
            raise UserError("nothing was erased yet", "say --yes: what is erased cannot be brought back")
        with progress_bar("erasing", len(ids)) as step:
            done = erasure.erase(opened, tenant, ids, by, why, step)
    already = f", {len(done.already)} had none left" if done.already else ""
    console.print(f"the words of {_cards(len(done.erased))} are erased{already}; facts, grades and proofs stand")
    if done.lingering:
        console.print(f"copies may remain in {done.lingering}", style="yellow")
    console.print("what people searched for, the search for these cards too, stays in the access log")
    if done.held:
        stay = "is held and stays" if len(done.held) == 1 else "are held and stay"
        raise UserError(f"{_cards(len(done.held))} {stay} whole", "`rft hold release NAME` lets them go", exit_code=1)


def _show_what_goes(store: Store, tenant: str, ids: Sequence[str]) -> None:
    held = holds.held(store, tenant, ids)
    table = Table("card", "", title=f"{_cards(len(ids))} of tenant {tenant}, {len(held)} of them held", title_justify="left")
    first = sorted(ids, key=lambda one: one not in held)
    for one in first[:SHOWN]:
        table.add_row(one, f"stays: held by {', '.join(held[one])}" if one in held else "its words go")
    console.print(table)
    if len(ids) > SHOWN:
        console.print(f"and {len(ids) - SHOWN} more")


# --- retention ------------------------------------------------------------------------------------------------------------


def set_policy(store: str, tenant: str, kind: str, days: int, by: str) -> None:
    with closing(open_store(store)) as opened:
        policy = retention.set_policy(opened, tenant, kind, days, by)
        note(opened, me(tenant), "retention set", f"{kind}: {days} days")
    console.print(f"words of {_kinds(kind)} cards are kept for {days} days; `rft retention apply` erases what is older")
    if told := retention.warning(policy):
        console.print(f"warning: {told}", style="yellow")


def list_policies(store: str, tenant: str) -> None:
    with closing(open_store(store)) as opened:
        found = retention.policies(opened, tenant)
    table = Table("cards", "days", "by", "since", title=f"retention of tenant {tenant}", title_justify="left")
    for policy in found:
        table.add_row(_kinds(policy.kind), str(policy.days), policy.by, f"{policy.at:%Y-%m-%d %H:%M}")
    console.print(table if found else f"tenant {tenant} has no policy: words are kept for ever")


def remove_policy(store: str, tenant: str, kind: str) -> None:
    with closing(open_store(store)) as opened:
        retention.remove_policy(opened, tenant, kind)
        note(opened, me(tenant), "retention removed", kind)
    console.print(f"{_kinds(kind)} cards have no policy of their own any more")


def plan_retention(store: str, tenant: str) -> None:
    with closing(open_store(store)) as opened:
        _show_plan(retention.plan(opened, tenant, _now()), tenant)


def apply_retention(store: str, tenant: str, by: str, yes: bool) -> None:
    with closing(open_store(store)) as opened:
        now = _now()
        due = retention.plan(opened, tenant, now)
        _show_plan(due, tenant)
        if not yes:
            raise UserError("nothing was erased yet", "say --yes: what is erased cannot be brought back")
        with progress_bar("erasing", sum(line.cards for line in due)) as step:
            done = retention.apply(opened, tenant, by, now, step)
    held = "1 held one stays" if done.held == 1 else f"{done.held} held ones stay"
    console.print(f"the words of {_cards(done.erased)} are erased, {held} whole")
    if done.lingering:
        console.print(f"copies may remain in {done.lingering}", style="yellow")


def _show_plan(due: Sequence[retention.Due], tenant: str) -> None:
    cards, held = sum(line.cards for line in due), sum(line.held for line in due)
    older = "is older than its policy lets it" if cards == 1 else "are older than their policy lets them"
    title = f"{_cards(cards)} of tenant {tenant} {older} be; {held} of them held"
    table = Table("kind", "month", title=title, title_justify="left")
    for name in ("cards", "held", "oldest"):
        table.add_column(name, justify="right")
    for line in due:
        table.add_row(line.kind, line.month, str(line.cards), str(line.held), f"{line.oldest:%Y-%m-%d}")
    console.print(table)


def _cards(count: int) -> str:
    return f"{count} card{'' if count == 1 else 's'}"


def _kinds(kind: str) -> str:
    return "all other" if kind == retention.EVERY_OTHER else kind


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
