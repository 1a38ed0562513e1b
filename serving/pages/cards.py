"""Searching, reading and comparing cards."""

from __future__ import annotations

from typing import Any

from agent_rft.contracts.errors import FaultsFound, UserError
from observability import accesses, find, holds
from observability.artifacts import lineage
from observability.cards import cards_by_id
from observability.cursor import Cursor, cursor_text, read_cursor
from observability.dossier import Dossier, NotThere, Review
from observability.dossiers import dossier_of
from observability.facets import MOST, Facets, facets
from observability.glances import glances, not_indexed
from observability.places import place_of
from observability.query import KEYS, Query, Term
from observability.records import StoredCard
from observability.views import as_noted, listed, read_query
from serving.pages import pictures
from serving.pages.asking import between, has_term, marked, narrowed, without_term
from serving.pages.cardview import prompt_of, turns_of
from serving.pages.comparing import facts_side_by_side, pair, turns_side_by_side
from serving.pages.render import Answer, Asked, Desk, Go, Page, address

LISTED = 50
TRIES = 60
READERS = 20


def home(_desk: Desk, _asked: Asked) -> Answer:
    return Go("/cards")


# --- search -------------------------------------------------------------------------------------------------------------


def search(desk: Desk, asked: Asked) -> Answer:
    store, tenant = desk.store.of(asked.caller.tenant), asked.caller.tenant
    typed = asked.get("q")
    shown: dict[str, Any] = {"q": typed, "keys": KEYS, "views": listed(store, tenant), "faults": [], "cure": ""}
    shown |= {"lines": [], "next": "", "waiting": 0, "first_page": not asked.get("after")}
    try:
        query = read_query(store, tenant, typed, asked.now)
        shown |= {"waiting": not_indexed(store, tenant) if find.asks_for_words(query) else 0}
        shown |= _lines(desk, asked, query, typed)
    except FaultsFound as error:
        return Page("cards.html", shown | {"faults": marked(typed, error)}, 400)
    return Page("cards.html", shown)


def _lines(desk: Desk, asked: Asked, query: Query, typed: str) -> dict[str, Any]:
    store, tenant = desk.store.of(asked.caller.tenant), asked.caller.tenant
    after = read_cursor(asked.get("after")) if asked.get("after") else None
    found = find.page(store, query, LISTED + 1, after, tenant)
    lines = found[:LISTED]
    ids = [line.rollout_id for line in lines]
    accesses.note(desk.store, asked.caller, "search", as_noted(typed, query), ids)  # a list shows the first words of each
    told = glances(store, tenant, ids)
    more = cursor_text(Cursor(lines[-1].started_at, lines[-1].rollout_id)) if len(found) > LISTED else ""
    return {"lines": [(line, told[line.rollout_id]) for line in lines if line.rollout_id in told], "next": more}


def counts(desk: Desk, asked: Asked) -> Answer:
    """How many, of what sort, and when: fetched after the list, which nobody has to wait for."""
    typed = asked.get("q")
    store, tenant = desk.store.of(asked.caller.tenant), asked.caller.tenant
    query = read_query(store, tenant, typed, asked.now)
    accesses.note(desk.store, asked.caller, "count", as_noted(typed, query))
    found = facets(store, query, tenant)
    written = "" if typed.startswith("@") else typed
    written = written or (str(query) if typed else "")
    return Page("counts.html", {"q": typed, "found": found, "most": MOST, **_clicks(found, written, asked)})


def _clicks(found: Facets, typed: str, asked: Asked) -> dict[str, Any]:
    groups = [
        (facet, [(one, _toggled(typed, one.term, asked), has_term(typed, one.term)) for one in facet.counts]) for facet in found.facets
    ]
    bars = [(bar, address("/cards", q=between(typed, bar.start, bar.end, asked.now))) for bar in pictures.bars(found.bins)]
    endings = [ending for ending in pictures.ENDINGS if any(ending in one.endings for one in found.bins)]
    return {"groups": groups, "bars": bars, "endings": endings}


def _toggled(typed: str, term: str, asked: Asked) -> str:
    text = without_term(typed, term) if has_term(typed, term) else narrowed(typed, term, asked.now)
    return address("/cards", q=text)


# --- one card -----------------------------------------------------------------------------------------------------------


def card(desk: Desk, asked: Asked) -> Answer:
    rollout_id = asked.get("rollout_id")
    found = noted_dossier(desk, asked, rollout_id, "read")
    return Page("card.html", {"note": NOTES.get(asked.get("note"), ""), **card_values(desk, asked, found)})


NOTES = {
    "reviewed": "Your verdict is recorded.",
    "annotated": "Your note is recorded.",
    "sealed": "The card is sealed: nothing more can be said of it.",
    "changed": "Your verdict and your change request are recorded.",
}


def noted_dossier(desk: Desk, asked: Asked, rollout_id: str, action: str) -> Dossier:
    """In the access log before it is shown."""
    store, tenant = desk.store.of(asked.caller.tenant), asked.caller.tenant
    found = dossier_of(store, tenant, rollout_id)
    accesses.note(desk.store, asked.caller, action, rollout_id, [rollout_id])
    return found


def card_values(desk: Desk, asked: Asked, found: Dossier) -> dict[str, Any]:
    store, tenant, stored = desk.store.of(asked.caller.tenant), asked.caller.tenant, found.stored
    about: dict[int | None, list[Review]] = {}
    for review in found.reviews:
        about.setdefault(review.position, []).append(review)
    readers = accesses.reading(store, tenant, rollout_id=found.rollout_id, limit=READERS)
    shown = {"dossier": found, "stored": stored, "about": about, "readers": readers, "erased": found.erased}
    if stored is None:
        return shown
    card = stored.card
    turns = turns_of(card.rollout)
    return shown | {
        "card": card,
        "prompt": prompt_of(card.rollout.opening),
        "turns": turns,
        "strip": pictures.strip(turns, card.rollout.seconds or card.cost.seconds),
        "tokens": pictures.token_bars(turns),
        "tries": _tries(desk, asked, card.row_id),
        "holds": holds.held(store, tenant, [found.rollout_id]).get(found.rollout_id, ()),
        "place": place_of(store, tenant, found.rollout_id),
        "row_term": str(Term("row", ":", (card.row_id,))),
    }


def _tries(desk: Desk, asked: Asked, row_id: str) -> list[Any]:
    """What else was tried at the same row: other samples, steps and checkpoints."""
    store, tenant = desk.store.of(asked.caller.tenant), asked.caller.tenant
    lines = find.page(store, Term("row", ":", (row_id,)), TRIES, tenant=tenant)
    told = glances(store, tenant, [line.rollout_id for line in lines])
    return [(line, told[line.rollout_id]) for line in lines if line.rollout_id in told]


# --- two cards ----------------------------------------------------------------------------------------------------------


def compare(desk: Desk, asked: Asked) -> Answer:
    """Two cards by their ids; or one with the newest of the same row under another checkpoint."""
    left = asked.get("a")
    right = asked.get("b") or _other_checkpoint(desk, asked, left)
    if not left or left == right:
        raise UserError("two cards are compared, and two ids are needed", "open a card and choose another try at its row")
    store, tenant = desk.store.of(asked.caller.tenant), asked.caller.tenant
    found = {stored.card.rollout_id: stored for stored in cards_by_id(store, [left, right], tenant)}
    if missing := [one for one in (left, right) if one not in found]:
        raise NotThere(f"no card has the id {missing[0][:200]}", "look for it on the page of cards")
    accesses.note(desk.store, asked.caller, "compare", f"{left} {right}", [left, right])
    one, other = found[left], found[right]
    return Page("compare.html", _compared(one, other) | {"lineages": [lineage(store, tenant, each.card.versions) for each in (one, other)]})


def _compared(one: StoredCard, other: StoredCard) -> dict[str, Any]:
    return {
        "cards": (one.card, other.card),
        "facts": facts_side_by_side(one, other),
        "turns": turns_side_by_side(one, other),
        "prompt": pair(prompt_of(one.card.rollout.opening), prompt_of(other.card.rollout.opening)),
        "answer": pair(one.card.rollout.answer, other.card.rollout.answer),
        "reference": one.card.reference_answer,
        "same_row": one.card.row_id == other.card.row_id,
        "erased": [(each.card.rollout_id, each.erased) for each in (one, other) if each.erased],
    }


def _other_checkpoint(desk: Desk, asked: Asked, rollout_id: str) -> str:
    store, tenant = desk.store.of(asked.caller.tenant), asked.caller.tenant
    stored = next(cards_by_id(store, [rollout_id], tenant), None)
    if stored is None:
        raise NotThere(f"no card has the id {rollout_id[:200]}", "look for it on the page of cards")
    others = [
        line.rollout_id for line, told in _tries(desk, asked, stored.card.row_id) if told.checkpoint != stored.card.versions.checkpoint
    ]
    if not others:
        raise UserError(f"row {stored.card.row_id} was tried under one checkpoint only", "open another card")
    return others[0]
