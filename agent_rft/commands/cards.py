"""`rft card` and `rft migrate`: the job-card store from the command line."""

from __future__ import annotations

import datetime as dt
import os
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from rich.table import Table

from agent_rft.commands.access import me
from agent_rft.commands.parts import card_server, console, progress_bar
from agent_rft.compose import settings_for
from agent_rft.contracts.errors import UserError
from observability.accesses import note
from observability.cards import CardLine, find_card
from observability.cursor import Cursor, cursor_text, read_cursor
from observability.dossiers import dossier_of
from observability.exports import EXPORTS
from observability.find import COUNTED, asks_for_words, count, page, whole_cards
from observability.ingest import replay
from observability.query import Query
from observability.records import StoredCard
from observability.remote import send_spool
from observability.search import behind, catch_up
from observability.sources import disclosed, told
from observability.store import Store, migrate, open_store
from observability.story import story
from observability.views import as_noted, read_query

DEFAULT_TENANT = "default"


def show(url: str, card_id: str) -> None:
    store = open_store(url)
    found = find_card(store, card_id)
    note(store, me(found.card.tenant), "read", found.card.rollout_id, [found.card.rollout_id])
    around = dossier_of(store.of(found.card.tenant), found.card.tenant, found.card.rollout_id)
    print(story(found, min(shutil.get_terminal_size((100, 40)).columns, 120), around))


def list_cards(url: str, question: str, limit: int, after: str | None, tenant: str | None) -> None:
    query, store = _asked(url, question, tenant)
    title = f"{_counted_to(count(store, query, tenant, COUNTED + 1))} cards, newest first"
    table = Table("card", "run", "kind", "row", "ending", title=title, title_justify="left")
    table.add_column("reward", justify="right")
    table.add_column("calls", justify="right")
    shown = page(store, query, limit, read_cursor(after) if after else None, tenant)
    _note_search(store, as_noted(question, query), shown, tenant or DEFAULT_TENANT)
    for card in shown:
        reward = "-" if card.reward is None else f"{card.reward:.2f}"
        table.add_row(card.rollout_id, card.run_id, card.kind, card.row_id, card.ending, reward, str(card.tool_calls))
    console.print(table)
    if len(shown) == limit:
        console.print(f"next page: --after {cursor_text(Cursor(shown[-1].started_at, shown[-1].rollout_id))}")


def _note_search(store: Store, asked: str, shown: Sequence[CardLine], tenant: str) -> None:
    """With each tenant whose cards are listed: that a card is found by a word tells that it holds it. Where none is, with the one
    that was asked."""
    listed = {} if shown else {tenant: list[str]()}
    for card in shown:
        listed.setdefault(card.tenant, []).append(card.rollout_id)
    for whose, ids in listed.items():
        note(store, me(whose), "search", asked, ids)


def _counted_to(found: int) -> str:
    return f"{COUNTED:,}+" if found > COUNTED else str(found)


def export(url: str, question: str, out: str, tenant: str | None) -> None:
    """Every card that the query asks for, in one file, whole or not at all."""
    target = Path(out)
    if target.suffix[1:] not in EXPORTS:
        raise UserError(f"{target} names no format", f"end it with .{', .'.join(EXPORTS)}")
    if target.exists():
        raise UserError(f"{target} is there already", "name another file: an export is never written over")
    query, store = _asked(url, question, tenant)
    written: dict[str, list[str]] = {}
    with progress_bar(f"writing {target}", total := count(store, query, tenant)) as step, whole_file(target) as file:
        file.writelines(EXPORTS[target.suffix[1:]].write(_counted(whole_cards(store, query, tenant), step, written)))
        for whose, ids in written.items():  # the file has no name yet
            note(store, me(whose), "export", as_noted(question, query), ids)
    console.print(f"{target}: {total} cards")


@contextmanager
def whole_file(target: Path) -> Generator[BinaryIO]:
    """Takes its name once it is whole. What stops half-way leaves nothing."""
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("xb") as file:
            yield file
        draft.replace(target)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror}", "name another place") from None
    finally:
        with suppress(OSError):
            draft.unlink()


def _asked(url: str, question: str, tenant: str | None) -> tuple[Query, Store]:
    """The query, or the one that `@NAME` stands for. Cards that came since somebody searched last go into the index first, where words
    are asked for."""
    store = open_store(url)
    query = read_query(store, tenant or DEFAULT_TENANT, question, dt.datetime.now(dt.UTC))
    if asks_for_words(query):
        for behind_one, entries in behind(store).items():
            with progress_bar(f"indexing the newest cards of {behind_one}", entries) as step:
                catch_up(store, behind_one, step)
    return query, store if tenant is None else store.of(tenant)


def _counted(cards: Iterable[StoredCard], step: Callable[[int], None], written: dict[str, list[str]]) -> Iterator[StoredCard]:
    for card in cards:
        yield card
        written.setdefault(card.card.tenant, []).append(card.card.rollout_id)
        step(1)


def restore(url: str, path: str) -> None:
    """Cards that a run could not store went to a file; this puts them where they belong. Twice does no harm."""
    stored = replay(open_store(url), Path(path))
    console.print(f"{stored} cards of {path} are in the store now")


def list_sources(url: str, tenant: str, every: bool) -> None:
    """Who recorded a tenant's cards, and what of it never came. The complete ones are only counted, unless all are asked for."""
    with closing(open_store(url)) as store:
        found = disclosed(store, tenant)
    whole = sum(source.complete for source in found)
    console.print(f"tenant {tenant}: {len(found)} sources, {whole} of them known to be complete")
    for source in found:
        if every or not source.complete:
            seen = f"{source.first_at:%Y-%m-%d %H:%M} to {source.last_at:%Y-%m-%d %H:%M}"
            console.print(f"  {told(source)} ({seen})", style="yellow" if source.lacks else None)


def send(address: str, folder: str) -> None:
    """What a run that has ended left in its spool."""
    place = Path(folder)
    if not (place / "sent").is_file():
        raise UserError(f"{folder} is no spool", "name the folder that the run's message named: runs/spool/HOST/TENANT")
    server = card_server(address)
    server.check()
    sender = send_spool(server, place)
    console.print(f"{sender.sent} records of {folder} are at {server.address} now; {sender.refused} were refused and set aside")


def migrate_store(recipe: str, overrides: list[str]) -> None:
    url = settings_for(recipe, overrides).store.url
    console.print(f"the store is at revision {migrate(url)}")
