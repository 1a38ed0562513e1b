"""What reviewers ask of a store of many cards, and how long the answers take: through the functions that the pages and the API call."""

from __future__ import annotations

import datetime as dt
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

from _many import APART, COMMON, rare_word

from observability.cards import cards_by_id
from observability.find import COUNTED, count, newest, page
from observability.query import parse
from observability.store import Store
from observability.tables import job_cards

PAGE = 50
Ask = Callable[[], Any]


def questions(store: Store, cards: int, until: dt.datetime, tenant: str | None, luck: random.Random) -> Iterator[tuple[str, Ask]]:
    """One of each kind, with other words and moments each time."""
    ago = dt.timedelta(milliseconds=luck.randrange(cards * APART // 100, cards * APART))
    after = f"after:{(until - ago).isoformat().replace('+00:00', 'Z')}"
    day = f"{after} before:{(until - ago + dt.timedelta(days=1)).isoformat().replace('+00:00', 'Z')}"
    run = f"run:run-{luck.randrange(max(1, cards // 1000))}"
    asked = {
        "attribute and time": f"kind:production tool:search {after}",
        "attributes within a day": f"kind:production tool:calculate {day}",
        "grade and time": f"grade<0.5 {after}",
        "one run": run,
        "rare word": rare_word(luck.randrange(cards), cards),
        "common word, newest 50": COMMON,
        "common word and attributes": f"{COMMON} kind:production grade<0.5 {after}",
        "either of two words, not a third": f"({COMMON} OR goodwill) -revenue",
    }
    for name, text in asked.items():
        query = parse(text, until)
        yield name, lambda query=query: page(store, query, PAGE, tenant=tenant)
    for name in ("attribute and time", "common word, newest 50"):
        query = parse(asked[name], until)
        yield f"count to {COUNTED:,}: {name}", lambda query=query: count(store, query, tenant, COUNTED + 1)
    rollout_id = _some_card(store, until - ago, tenant)
    yield "one card", lambda: list(cards_by_id(store, [rollout_id], tenant))


def _some_card(store: Store, moment: dt.datetime, tenant: str | None) -> str:
    query = parse(f"before:{(moment + dt.timedelta(minutes=30)).isoformat().replace('+00:00', 'Z')}", moment)
    return newest(store, [job_cards.c.rollout_id], query, 1, tenant)[0].rollout_id


def times(store: Store, cards: int, until: dt.datetime, tenant: str | None, repeats: int, seed: int = 7) -> dict[str, list[float]]:
    """Milliseconds of each answer. What comes back empty would measure nothing, so each is looked at."""
    luck, taken = random.Random(seed), dict[str, list[float]]()
    for repeat in range(repeats + 1):  # the first round warms up and is not counted
        for name, ask in questions(store, cards, until, tenant, luck):
            began = time.perf_counter()
            answer = ask()
            spent = (time.perf_counter() - began) * 1e3
            if not answer and name not in MAY_BE_EMPTY:
                raise SystemExit(f"{name}: nothing found")
            if repeat:
                taken.setdefault(name, []).append(spent)
    return taken


MAY_BE_EMPTY = ("rare word",)
"""For one tenant: the few cards that have the word may be another's."""
