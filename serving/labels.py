"""`/labels`: where people score rollouts in a browser, blind, at the same desk as `rft label`.

A browser signs in with the server's bearer and keeps a cookie, which no script reads and no other site's request carries. A
form that is sent from elsewhere is refused all the same, by its origin.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast
from urllib.parse import parse_qsl, urlsplit

import msgspec
import structlog
from litestar import MediaType, Request, Response, get, post
from litestar.datastructures import Cookie
from litestar.handlers import HTTPRouteHandler

from agent_rft.contracts.errors import UserError, did_you_mean
from agent_rft.contracts.jobcards import Kind
from agent_rft.graders.labelling import Desk, Round, after, asked_by, read_score
from serving.auth import CHALLENGE, Bearer
from serving.label_pages import (
    COUNT,
    HEADERS,
    KINDS,
    MOST,
    Sitting,
    agreement_page,
    choice_page,
    rollout_page,
    sign_in_page,
    trouble_page,
)
from serving.threads import in_daemon_thread

log = structlog.get_logger("serving.labels")
COOKIE = "labels_session"
PATIENCE = 30.0
"""Seconds that a page waits for the store."""
NOTES = {
    "already": "You had labelled that one already. The first label stays.",
    "undone": "The last label is taken back. Here it is again.",
    "not-there": "There was no label to take back.",
    "end": "That was the last one.",
}
Asking = Request[Any, Any, Any]


class Reply(msgspec.Struct, frozen=True):
    body: str
    status: int = 200


class Go(msgspec.Struct, frozen=True):
    """On to another page, so that reloading sends nothing twice."""

    address: str


def label_routes(desk: Desk, bearer: Bearer) -> list[HTTPRouteHandler]:
    pages = LabelPages(desk, bearer)
    hidden: dict[str, Any] = {"include_in_schema": False}

    @get("/labels", **hidden)
    async def choose(request: Asking) -> Response[str]:
        return await pages.answer(request, lambda _: pages.choose(), refused=503)

    @post("/labels/sign-in", **hidden)
    async def sign_in(request: Asking) -> Response[str]:
        return await pages.sign_in(request)

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

    return [choose, sign_in, following, give, undo, agreement]


Fields = Mapping[str, str]


class LabelPages:
    def __init__(self, desk: Desk, bearer: Bearer) -> None:
        self._desk = desk
        self._bearer = bearer

    # --- pages ----------------------------------------------------------------------------------------------------------

    def choose(self) -> Reply:
        return Reply(choice_page(self._desk.runs()))

    def next(self, fields: Fields) -> Reply | Go:
        sitting = sitting_of(fields)
        shown = self._desk.next(sitting.round, sitting.start) if sitting.left else None
        if shown is None:
            return Go(sitting.address("agreement", note="end"))
        return Reply(rollout_page(sitting, shown, _note(fields)))

    def give(self, fields: Fields) -> Go:
        sitting, place = sitting_of(fields), fields.get("place", "")
        new = self._desk.give(sitting.round, place, read_score(fields.get("score", "")))
        undo, undo_left = (place, sitting.left) if new else ("", 0)
        ahead = Sitting(sitting.round, max(sitting.left - 1, 0), after(place), undo, undo_left)
        return Go(ahead.address("next") if new else ahead.address("next", note="already"))

    def undo(self, fields: Fields) -> Go:
        sitting = sitting_of(fields)
        taken = self._desk.take_back(sitting.round, sitting.undo)
        again = Sitting(sitting.round, max(sitting.undo_left, 1), sitting.undo)
        return Go(again.address("next", note="undone" if taken else "not-there"))

    def agreement(self, fields: Fields) -> Reply:
        sitting = sitting_of(fields)
        unlabelled = self._desk.next(sitting.round)
        found = self._desk.agreement(sitting.round)
        return Reply(agreement_page(sitting, found, unlabelled.ahead if unlabelled else 0, _note(fields)))

    # --- who may, and what can go wrong -----------------------------------------------------------------------------------

    async def answer(self, request: Asking, work: Callable[[Fields], Reply | Go], refused: int = 400) -> Response[str]:
        if not self._may(request):
            return _html(Reply(sign_in_page(), 401), CHALLENGE)
        if request.method == "POST" and not self._sent_from_here(request):
            return _foreign()
        fields = await _fields(request)
        try:
            reply = await asyncio.wait_for(in_daemon_thread(work, fields), PATIENCE)
        except UserError as error:
            return _html(Reply(trouble_page(error.what, error.cure), refused))
        except TimeoutError:
            return _html(Reply(trouble_page(f"the store gave no answer within {PATIENCE:g} s", "try again"), 503))
        except Exception as error:
            log.error("label_page_failed", path=request.url.path, exc_info=error)
            return _html(
                Reply(trouble_page("the store failed", "the server's log says why; no label was lost that was shown as given"), 503)
            )
        return _redirect(reply.address) if isinstance(reply, Go) else _html(reply)

    async def sign_in(self, request: Asking) -> Response[str]:
        if not self._sent_from_here(request):
            return _foreign()
        if not self._bearer.is_token((await _fields(request)).get("token", "")):
            return _html(Reply(sign_in_page("That is not this server's token."), 401), CHALLENGE)
        secure = request.url.scheme == "https"
        cookie = Cookie(COOKIE, value=self._bearer.session, path="/labels", httponly=True, samesite="strict", secure=secure)
        return _redirect("/labels", [cookie])

    def _may(self, request: Asking) -> bool:
        return self._bearer.admits(request.scope["headers"]) or self._bearer.admits_session(request.cookies.get(COOKIE, ""))

    def _sent_from_here(self, request: Asking) -> bool:
        """A browser says where a form comes from. A program that sends the bearer itself is nobody's dupe and need not."""
        origin = request.headers.get("origin")
        if origin is None:
            return "authorization" in request.headers and self._bearer.admits(request.scope["headers"])
        return urlsplit(origin).netloc.lower() == request.headers.get("host", "").lower() != ""


def _foreign() -> Response[str]:
    return _html(Reply(trouble_page("this form was not sent from this server's own page", "open /labels here and go on there"), 403))


def _html(reply: Reply, more: Mapping[str, str] | None = None) -> Response[str]:
    return Response(reply.body, status_code=reply.status, media_type=MediaType.HTML, headers={**HEADERS, **(more or {})})


def _redirect(address: str, cookies: list[Cookie] | None = None) -> Response[str]:
    return Response("", status_code=303, media_type=MediaType.HTML, headers={**HEADERS, "location": address}, cookies=cookies)


# --- what came in -------------------------------------------------------------------------------------------------------


async def _fields(request: Asking) -> dict[str, str]:
    sent = await request.body() if request.method == "POST" else request.scope["query_string"]
    return dict(parse_qsl(sent.decode("utf-8", "replace"), keep_blank_values=True))


def _note(fields: Fields) -> str:
    """Only words of ours: an address could carry anything."""
    return NOTES.get(fields.get("note", ""), "")


def sitting_of(fields: Fields) -> Sitting:
    run_id, kind = fields.get("run", ""), fields.get("kind", "")
    if not run_id:
        raise UserError("no run is named", "choose one")
    if kind not in ("", *KINDS):
        raise UserError(f"there is no kind of rollout {kind[:40]!r}", did_you_mean(kind[:40], KINDS))
    round_ = Round(run_id, asked_by(fields.get("by", "")), cast(Kind, kind) if kind else None)
    left, undo_left = _number(fields, "left", COUNT), _number(fields, "undo_left", 0)
    return Sitting(round_, left, fields.get("start", ""), fields.get("undo", ""), undo_left)


def _number(fields: Fields, name: Literal["left", "undo_left"], default: int) -> int:
    text = fields.get(name, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(MOST)) and int(text) <= MOST):
        raise UserError(f"{text[:40]!r} is no number of rollouts", f"1 to {MOST}")
    return int(text)
