"""`rft card` and `rft migrate`: the job-card store from the command line."""

from __future__ import annotations

import datetime as dt
import os
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from rich.table import Table

from agent_rft.commands.parts import console, progress_bar
from agent_rft.compose import settings_for
from agent_rft.contracts.errors import UserError
from observability.cards import find_card
from observability.cursor import Cursor, cursor_text, read_cursor
from observability.exports import EXPORTS
from observability.find import asks_for_words, count, page, whole_cards
from observability.ingest import replay
from observability.query import Query, parse
from observability.records import StoredCard
from observability.search import behind, catch_up
from observability.store import Store, migrate, open_store
from observability.story import story


def show(url: str, card_id: str) -> None:
    store = open_store(url)
    print(story(find_card(store, card_id), width=min(shutil.get_terminal_size((100, 40)).columns, 120)))


def list_cards(url: str, question: str, limit: int, after: str | None) -> None:
    query, store = _asked(url, question)
    title = f"{count(store, query)} cards, newest first"
    table = Table("card", "run", "kind", "row", "ending", title=title, title_justify="left")
    table.add_column("reward", justify="right")
    table.add_column("calls", justify="right")
    shown = page(store, query, limit, read_cursor(after) if after else None)
    for card in shown:
        reward = "-" if card.reward is None else f"{card.reward:.2f}"
        table.add_row(card.rollout_id, card.run_id, card.kind, card.row_id, card.ending, reward, str(card.tool_calls))
    console.print(table)
    if len(shown) == limit:
        console.print(f"next page: --after {cursor_text(Cursor(shown[-1].started_at, shown[-1].rollout_id))}")


def export(url: str, question: str, out: str) -> None:
    """Every card that the query asks for, in one file, whole or not at all."""
    target = Path(out)
    if target.suffix[1:] not in EXPORTS:
        raise UserError(f"{target} names no format", f"end it with .{', .'.join(EXPORTS)}")
    if target.exists():
        raise UserError(f"{target} is there already", "name another file: an export is never written over")
    query, store = _asked(url, question)
    with progress_bar(f"writing {target}", total := count(store, query)) as step, whole_file(target) as file:
        file.writelines(EXPORTS[target.suffix[1:]].write(_counted(whole_cards(store, query), step)))
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


def _asked(url: str, question: str) -> tuple[Query, Store]:
    """Cards that came since somebody searched last go into the index first, where words are asked for."""
    query, store = parse(question, dt.datetime.now(dt.UTC)), open_store(url)
    if asks_for_words(query):
        for tenant, entries in behind(store).items():
            with progress_bar(f"indexing the newest cards of {tenant}", entries) as step:
                catch_up(store, tenant, step)
    return query, store


def _counted(cards: Iterable[StoredCard], step: Callable[[int], None]) -> Iterator[StoredCard]:
    for card in cards:
        yield card
        step(1)


def restore(url: str, path: str) -> None:
    """Cards that a run could not store went to a file; this puts them where they belong. Twice does no harm."""
    stored = replay(open_store(url), Path(path))
    console.print(f"{stored} cards of {path} are in the store now")


def migrate_store(recipe: str, overrides: list[str]) -> None:
    url = settings_for(recipe, overrides).store.url
    console.print(f"the store is at revision {migrate(url)}")
