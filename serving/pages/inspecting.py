"""The rollouts of a run that tell the most, one at a time, and whose fault each was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from agent_rft.evaluation.inspect import LISTS, Looked, Story, Which
from agent_rft.evaluation.triage import BLAMED
from observability import accesses
from observability.cards import cards_by_id
from observability.graders import runs_to_label
from serving.inspection import Said, blamed_each, mending_of, triaged
from serving.pages.cardview import prompt_of
from serving.pages.comparing import pair, turns_side_by_side
from serving.pages.render import Answer, Asked, Desk, Go, Page, address

LISTS_BY_NAME: dict[str, Which] = {name: name for name in LISTS}
LISTED = 100
"""Stories of a list."""


def runs(desk: Desk, asked: Asked) -> Answer:
    return Page("inspect_runs.html", {"runs": runs_to_label(desk.store.of(asked.caller.tenant))})


def inspect(desk: Desk, asked: Asked) -> Answer:
    """A list's stories by name, and one of them whole."""
    tenant, run_id = asked.caller.tenant, asked.get("run_id")
    looked = desk.looks.at(desk.store, tenant, run_id)
    which = LISTS_BY_NAME.get(asked.get("list")) or _fullest(looked)
    stories, at = looked.lists[which][:LISTED], asked.number("at") or 0
    listed = [one.shown.id for one in stories]
    blamed = blamed_each(desk.store, tenant, listed)
    values: dict[str, Any] = {"run_id": run_id, "looked": looked, "lists": LISTS, "which": which, "stories": stories, "at_story": at}
    values |= {"place": f"/inspect/{quote(run_id, safe='')}", "blamed": blamed, "blames": BLAMED, "note": asked.get("note"), "story": None}
    if at < len(stories):
        values |= _story(desk, asked, stories[at], blamed.get(stories[at].shown.id, ()))
    read = [side.id for one in stories[at : at + 1] for side in (one.shown, one.beside) if side]
    accesses.note(desk.store, asked.caller, "inspect", run_id, {*listed, *read})
    return Page("inspect.html", values)


def _fullest(looked: Looked) -> Which:
    """Who names no list sees the first that has something in it."""
    full: list[Which] = [name for name, stories in looked.lists.items() if stories]
    return full[0] if full else "worst"


def _story(desk: Desk, asked: Asked, story: Story, blamed: Sequence[Said]) -> dict[str, Any]:
    tenant = asked.caller.tenant
    ids = [side.id for side in (story.beside, story.shown) if side]
    found = {one.card.rollout_id: one for one in cards_by_id(desk.store.of(tenant), ids, tenant)}
    shown, beside = found[story.shown.id], found.get(story.beside.id) if story.beside else None
    return {
        "story": story,
        "sides": (story.beside, story.shown),
        "prompt": prompt_of(shown.card.rollout.opening),
        "answer": pair(beside.card.rollout.answer if beside else None, shown.card.rollout.answer),
        "turns": turns_side_by_side(beside, shown),
        "mending": mending_of(desk.store, tenant, shown.card.rollout_id) if blamed and blamed[-1].blamed == "grader" else None,
    }


def triage(desk: Desk, asked: Asked) -> Answer:
    """On to the next one; where the grader is to blame, first to how it is mended."""
    fault, at = asked.get("fault"), asked.number("at") or 0
    triaged(desk.store, asked.caller, asked.get("card"), fault, asked.get("note"))
    next_one = at if fault == "grader" else at + 1
    return Go(address(f"/inspect/{quote(asked.get('run_id'), safe='')}", list=asked.get("list"), at=next_one or "", note=fault))
