"""`/labels`: where the users of a store score rollouts of their tenant in a browser, blind, at the same desk as `rft label`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast
from urllib.parse import parse_qsl

import msgspec
import structlog
from litestar import MediaType, Request, Response, get, post
from litestar.handlers import HTTPRouteHandler

from agent_rft.contracts.errors import UserError, did_you_mean
from agent_rft.contracts.jobcards import Kind
from agent_rft.graders.labelling import Desk, Round, after, read_score
from observability.access import Caller
from observability.store import Store
from observability.texts import storable
from serving.gate import Gate, caller_of
from serving.label_pages import (
    COUNT,
    HEADERS,
    KINDS,
    MOST,
    Sitting,
    agreement_page,
    choice_page,
    rollout_page,
    trouble_page,
)
from serving.threads import in_daemon_thread

log = structlog.get_logger("serving.labels")
PATIENCE = 30.0
"""Seconds that a page waits for the store."""
NOTES = {
    "already": "You had labelled that one already. The first label stays.",
    "undone": "The last label is taken back. Here it is again.",
    "not-there": "There was no label to take back.",
    "end": "That was the last one.",
}
Asking = Request[Any, Any, Any]
DeskOf = Callable[[Store, Caller], Desk]


class Reply(msgspec.Struct, frozen=True):
    body: str
    status: int = 200


class Go(msgspec.Struct, frozen=True):
    """On to another page, so that reloading sends nothing twice."""

    address: str


def label_routes(gate: Gate, desk_of: DeskOf) -> list[HTTPRouteHandler]:
    pages = LabelPages(gate.store, desk_of)
    hidden: dict[str, Any] = {"include_in_schema": False, "guards": [gate.needs("review", page=True)]}

    @get("/labels", **hidden)
    async def choose(request: Asking) -> Response[str]:
        return await pages.answer(request, pages.choose)

    @get("/labels/next", **hidden)
    async def following(request: Asking) -> Response[str]:
        return await pages.answer(request, pages.next)

    @post("/labels/give", **hidden)
    async def give(request: Asking) -> Response[str]:
        return await pages.answer(request, pages.give)

    @post("/labels/undo", **hidden)
    async def undo(request: Asking) -> Response[str]:
        return await pages.answer(request, pages.undo)

    @get("/labels/agreement", **hidden)
    async def agreement(request: Asking) -> Response[str]:
        return await pages.answer(request, pages.agreement)

    return [choose, following, give, undo, agreement]


Fields = Mapping[str, str]
Work = Callable[[Desk, str, Fields], Reply | Go]
"""Whose desk it is, by name."""


class LabelPages:
    def __init__(self, store: Store, desk_of: DeskOf) -> None:
        self._store, self._desk_of = store, desk_of

    # --- pages ----------------------------------------------------------------------------------------------------------

    def choose(self, desk: Desk, _who: str, _fields: Fields) -> Reply:
        return Reply(choice_page(desk.runs()))

    def next(self, desk: Desk, who: str, fields: Fields) -> Reply | Go:
        sitting = sitting_of(who, fields)
        shown = desk.next(sitting.round, sitting.start) if sitting.left else None
        if shown is None:
            return Go(sitting.address("agreement", note="end"))
        return Reply(rollout_page(sitting, shown, _note(fields)))

    def give(self, desk: Desk, who: str, fields: Fields) -> Go:
        sitting, place = sitting_of(who, fields), fields.get("place", "")
        new = desk.give(sitting.round, place, read_score(fields.get("score", "")))
        undo, undo_left = (place, sitting.left) if new else ("", 0)
        ahead = Sitting(sitting.round, max(sitting.left - 1, 0), after(place), undo, undo_left)
        return Go(ahead.address("next") if new else ahead.address("next", note="already"))

    def undo(self, desk: Desk, who: str, fields: Fields) -> Go:
        sitting = sitting_of(who, fields)
        taken = desk.take_back(sitting.round, sitting.undo)
        again = Sitting(sitting.round, max(sitting.undo_left, 1), sitting.undo)
        return Go(again.address("next", note="undone" if taken else "not-there"))

    def agreement(self, desk: Desk, who: str, fields: Fields) -> Reply:
        sitting = sitting_of(who, fields)
        return Reply(agreement_page(sitting, desk.agreement(sitting.round), desk.left(sitting.round), _note(fields)))

    # --- what can go wrong ------------------------------------------------------------------------------------------------

    async def answer(self, request: Asking, work: Work) -> Response[str]:
        caller, fields = caller_of(request), await _fields(request)
        desk = self._desk_of(self._store, caller)
        try:
            reply = await asyncio.wait_for(in_daemon_thread(work, desk, caller.name, fields), PATIENCE)
        except UserError as error:
            return _html(Reply(trouble_page(error.what, error.cure), 400))
        except TimeoutError:
            return _html(Reply(trouble_page(f"the store gave no answer within {PATIENCE:g} s", "try again"), 503))
        except Exception as error:
            log.error("label_page_failed", path=request.url.path, exc_info=error)
            return _html(
                Reply(trouble_page("the store failed", "the server's log says why; no label was lost that was shown as given"), 503)
            )
        return _redirect(reply.address) if isinstance(reply, Go) else _html(reply)


def _html(reply: Reply) -> Response[str]:
    return Response(reply.body, status_code=reply.status, media_type=MediaType.HTML, headers=HEADERS)


def _redirect(address: str) -> Response[str]:
    return Response("", status_code=303, media_type=MediaType.HTML, headers={**HEADERS, "location": address})


# --- what came in -------------------------------------------------------------------------------------------------------


async def _fields(request: Asking) -> dict[str, str]:
    sent = await request.body() if request.method == "POST" else request.scope["query_string"]
    return {name: storable(value) for name, value in parse_qsl(sent.decode("utf-8", "replace"), keep_blank_values=True)}


def _note(fields: Fields) -> str:
    """Only words of ours: an address could carry anything."""
    return NOTES.get(fields.get("note", ""), "")


def sitting_of(who: str, fields: Fields) -> Sitting:
    run_id, kind = fields.get("run", ""), fields.get("kind", "")
    if not run_id:
        raise UserError("no run is named", "choose one")
    if kind not in ("", *KINDS):
        raise UserError(f"there is no kind of rollout {kind[:40]!r}", did_you_mean(kind[:40], KINDS))
    round_ = Round(run_id, who, cast(Kind, kind) if kind else None)
    left, undo_left = _number(fields, "left", COUNT), _number(fields, "undo_left", 0)
    return Sitting(round_, left, fields.get("start", ""), fields.get("undo", ""), undo_left)


def _number(fields: Fields, name: Literal["left", "undo_left"], default: int) -> int:
    text = fields.get(name, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(MOST)) and int(text) <= MOST):
        raise UserError(f"{text[:40]!r} is no number of rollouts", f"1 to {MOST}")
    return int(text)
