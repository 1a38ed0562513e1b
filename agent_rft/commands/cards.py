"""`rft card` and `rft migrate`: the job-card store from the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

from rich.table import Table

from agent_rft.commands.parts import console
from agent_rft.compose import settings_for
from observability.cards import count_cards, find_card, recent_cards
from observability.ingest import replay
from observability.store import migrate, open_store
from observability.story import story


def show(url: str, card_id: str) -> None:
    store = open_store(url)
    print(story(find_card(store, card_id), width=min(shutil.get_terminal_size((100, 40)).columns, 120)))


def list_cards(url: str, limit: int, run_id: str | None, kind: str | None) -> None:
    store = open_store(url)
    title = f"{count_cards(store, run_id, kind)} cards, newest first"
    table = Table("card", "run", "kind", "row", "ending", title=title, title_justify="left")
    table.add_column("reward", justify="right")
    table.add_column("calls", justify="right")
    for card in recent_cards(store, limit, run_id, kind):
        reward = "-" if card.reward is None else f"{card.reward:.2f}"
        table.add_row(card.rollout_id, card.run_id, card.kind, card.row_id, card.ending, reward, str(card.tool_calls))
    console.print(table)


def restore(url: str, path: str) -> None:
    """Cards that a run could not store went to a file; this puts them where they belong. Twice does no harm."""
    stored = replay(open_store(url), Path(path))
    console.print(f"{stored} cards of {path} are in the store now")


def migrate_store(recipe: str, overrides: list[str]) -> None:
    url = settings_for(recipe, overrides).store.url
    console.print(f"the store is at revision {migrate(url)}")
