"""Cards and what people say of them, for programs: searching, reading and exporting, reviews, change requests, the review queue, saved
views. Every card that is read here stands in the access log before the answer is sent.
"""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

import msgspec
from litestar import MediaType, Request, Response, delete, get, post, put
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from litestar.response import Stream

from agent_rft.contracts.grades import Grade
from observability import find, queue, reviews, states, views
from observability.access import Caller
from observability.accesses import note
from observability.cards import CardLine
from observability.cursor import Cursor, cursor_text, read_cursor
from observability.dossier import Change, Dossier, Review, Target, Waiting
from observability.dossiers import dossier_of
from observability.exports import EXPORTS
from observability.glances import not_indexed
from observability.graders import append_grades, find_version
from observability.query import Query
from observability.queue import Policy, Progress
from observability.records import StoredCard
from observability.redaction.detectors import BUILT_IN_ONLY, Detectors
from observability.store import Store
from observability.texts import storable, to_json
from observability.views import View
from serving.gate import Gate, caller_of
from serving.openapi import BEARER, response

MOST_LISTED = 1000
NOTED_AT_ONCE = 500
"""Cards of an export that one line of the access log names."""
PIECE_BYTES = 1 << 16
Asking = Request[Any, Any, Any]
Limit = Annotated[int, QueryParameter(ge=1, le=MOST_LISTED)]
Format = Literal["jsonl", "csv", "parquet", "otlp"]
Question = Annotated[str, QueryParameter(description="a query of the filter language, or @NAME of a saved view")]


class CardsPage(msgspec.Struct, frozen=True):
    cards: list[CardLine]
    """Newest first."""
    next: str | None
    """What to send as `after` for the next page; null on the last one."""
    count: int | None
    """How many the query asks for in all; null where nobody wanted to know."""
    more: bool
    """There are more than were counted."""
    not_indexed: int | None
    """Cards that no word finds yet; null where the query asks for no words."""


class NewReview(msgspec.Struct, forbid_unknown_fields=True):
    verdict: str
    """accept, reject, coach; or note, which settles nothing."""
    note: str = ""
    position: int | None = None
    """Of the step it is about; null: the whole card."""


class NewChange(msgspec.Struct, forbid_unknown_fields=True):
    target: str
    """dataset or prompt."""
    wanted: str


class Why(msgspec.Struct, forbid_unknown_fields=True):
    why: str = ""


class NewState(msgspec.Struct, forbid_unknown_fields=True):
    state: str
    """opened, planned, in_progress, blocked or needs_human."""
    why: str = ""


class NewGrade(msgspec.Struct, forbid_unknown_fields=True):
    grader: str
    """NAME@VERSION, as it is registered."""
    reward: Annotated[float, msgspec.Meta(ge=0, le=1)] | None
    passed: bool | None = None
    parts: dict[str, Any] = {}
    errors: dict[str, str] = {}


class Added(msgspec.Struct, frozen=True):
    added: bool
    """False where it was there already."""


class NewView(msgspec.Struct, forbid_unknown_fields=True):
    query: str


class NewOutcome(msgspec.Struct, forbid_unknown_fields=True):
    outcome: str
    """done or declined."""
    how: str = ""


class ReviewQueue(msgspec.Struct, frozen=True):
    waiting: list[Waiting]
    """The most urgent first."""
    progress: list[Progress]


class NewFlag(msgspec.Struct, forbid_unknown_fields=True):
    cards: Annotated[list[str], msgspec.Meta(min_length=1, max_length=MOST_LISTED)]
    """Their ids."""
    name: str
    """Of whatever found them suspicious: they wait as flag:NAME."""
    why: str


class Flagged(msgspec.Struct, frozen=True):
    added: int
    """Cards that did not wait under this name before."""


class QueueFilled(msgspec.Struct, frozen=True):
    since: int
    until: int
    """It looked at the ledger's entries after the first, up to the second."""
    put: dict[str, int]


def cards_routes(gate: Gate, detectors: Detectors = BUILT_IN_ONLY) -> list[HTTPRouteHandler]:
    return [*_reading(gate), *_saying(gate, detectors), *_around(gate)]


def _needs(gate: Gate, scope: Any, tag: str) -> dict[str, Any]:
    return {"guards": [gate.needs(scope)], "security": BEARER, "tags": [tag], "sync_to_thread": True}


def _reading(gate: Gate) -> list[HTTPRouteHandler]:
    shown = {200: response(Dossier, "The card and everything that is known around it")}
    written = {200: response(bytes, "Every card, in the format asked for", "application/octet-stream")}

    @get("/v1/cards", summary="Cards that a query asks for, a page at a time", **_needs(gate, "read", "cards"))
    def search(
        request: Asking, q: Question = "", limit: Limit = 50, after: FromQuery[str | None] = None, count: FromQuery[bool] = True
    ) -> CardsPage:
        caller, store, query = _asked(gate, request, q)
        found = find.page(store, query, limit + 1, read_cursor(after) if after else None, caller.tenant)
        lines = found[:limit]
        number = find.count(store, query, caller.tenant, find.COUNTED + 1) if count else None
        behind = not_indexed(store, caller.tenant) if find.asks_for_words(query) else None
        note(gate.store, caller, "search", views.as_noted(q, query), [line.rollout_id for line in lines])
        following = cursor_text(Cursor(lines[-1].started_at, lines[-1].rollout_id)) if len(found) > limit else None
        counted = None if number is None else min(number, find.COUNTED)
        return CardsPage(lines, following, counted, counted != number, behind)

    @get("/v1/cards/{rollout_id:str}", summary="One card, whole", responses=shown, **_needs(gate, "read", "cards"))
    def read(request: Asking, rollout_id: FromPath[str]) -> Response[bytes]:
        caller, store = _caller(gate, request)
        found = dossier_of(store, caller.tenant, storable(rollout_id))
        note(gate.store, caller, "read", rollout_id, [rollout_id])
        return Response(to_json(msgspec.to_builtins(found)).encode(), media_type=MediaType.JSON)

    @get("/v1/cards/export", summary="Every card that a query asks for", responses=written, **_needs(gate, "export", "cards"))
    def export(request: Asking, q: Question = "", format: FromQuery[Format] = "jsonl") -> Stream:
        caller, store, query = _asked(gate, request, q)
        find.index_for(gate.store, query, caller.tenant)
        cards = _noted(gate.store, caller, views.as_noted(q, query), find.whole_cards(store, query, caller.tenant))
        kind = EXPORTS[format]
        name = {"content-disposition": f'attachment; filename="cards{kind.suffix}"'}
        return Stream(_pieces(kind.write(cards)), media_type=kind.media_type, headers=name)

    return [search, read, export]


def _saying(gate: Gate, detectors: Detectors) -> list[HTTPRouteHandler]:
    @post("/v1/cards/{rollout_id:str}/reviews", summary="A verdict or a note on a card", **_needs(gate, "review", "reviews"))
    def review(request: Asking, rollout_id: FromPath[str], data: JSONBody[NewReview]) -> Review:
        caller, store = _doing(gate, request, "review", rollout_id)
        return reviews.add(store, caller.name, caller.tenant, rollout_id, data.verdict, data.note, data.position)

    @post("/v1/cards/{rollout_id:str}/changes", summary="Ask for a change of the data or the prompt", **_needs(gate, "review", "reviews"))
    def ask_for(request: Asking, rollout_id: FromPath[str], data: JSONBody[NewChange]) -> Change:
        caller, store = _doing(gate, request, "request change", rollout_id)
        return reviews.request_change(store, caller.name, caller.tenant, rollout_id, data.target, data.wanted)

    @post(
        "/v1/cards/{rollout_id:str}/seal", status_code=204, summary="Let nothing more be said of it", **_needs(gate, "approve", "reviews")
    )
    def seal(request: Asking, rollout_id: FromPath[str], data: JSONBody[Why]) -> None:
        caller, store = _doing(gate, request, "seal", rollout_id)
        states.seal(store, caller.name, caller.tenant, rollout_id, data.why)

    @post("/v1/cards/{rollout_id:str}/states", summary="How far a job is that has not answered", **_needs(gate, "ingest", "cards"))
    def enter_state(request: Asking, rollout_id: FromPath[str], data: JSONBody[NewState]) -> Added:
        caller, store = _caller(gate, request)
        return Added(states.note(store, caller.name, caller.tenant, rollout_id, data.state, data.why, detectors))

    @post("/v1/cards/{rollout_id:str}/grades", summary="A grade by a registered grader", **_needs(gate, "operate", "reviews"))
    def grade(request: Asking, rollout_id: FromPath[str], data: JSONBody[NewGrade]) -> Added:
        caller, store = _doing(gate, request, "grade", rollout_id)
        given = Grade(find_version(store, data.grader).ref, data.reward, data.passed, data.parts, data.errors)
        return Added(append_grades(store, [(storable(rollout_id), given)], caller.tenant, detectors) > 0)

    return [review, ask_for, seal, enter_state, grade]


def _around(gate: Gate) -> list[HTTPRouteHandler]:
    @get("/v1/queue", summary="Cards that wait for a reviewer, and why", **_needs(gate, "review", "reviews"))
    def waiting(request: Asking, limit: Limit = 50, reason: FromQuery[str | None] = None) -> ReviewQueue:
        caller, store = _caller(gate, request)
        return ReviewQueue(queue.waiting(store, caller.tenant, limit, reason), queue.progress(store, caller.tenant))

    @post(
        "/v1/queue", status_code=200, summary="Put into the queue what came since it was last filled", **_needs(gate, "operate", "reviews")
    )
    def fill(request: Asking, data: JSONBody[Policy]) -> QueueFilled:
        filled = queue.fill_for(gate.store, caller_of(request), data)
        return QueueFilled(filled.since, filled.until, dict(filled.put))

    @post("/v1/queue/flags", summary="Let cards that look suspicious wait for a reviewer", **_needs(gate, "operate", "reviews"))
    def flag(request: Asking, data: JSONBody[NewFlag]) -> Flagged:
        return Flagged(queue.flag_for(gate.store, caller_of(request), list(map(storable, data.cards)), data.name, data.why))

    @get("/v1/changes", summary="Change requests, oldest first", **_needs(gate, "read", "reviews"))
    def changes(
        request: Asking,
        target: FromQuery[Target | None] = None,
        open: FromQuery[bool] = True,
        after: FromQuery[int] = 0,
        limit: Limit = 100,
    ) -> list[Change]:
        caller, store = _caller(gate, request)
        return reviews.changes(store, caller.tenant, target=target, open_only=open, after=after, limit=limit)

    @post("/v1/changes/{number:int}/outcome", summary="What came of a change request", **_needs(gate, "review", "reviews"))
    def settle(request: Asking, number: FromPath[int], data: JSONBody[NewOutcome]) -> Change:
        caller, store = _caller(gate, request)
        return reviews.settle(store, caller.name, caller.tenant, number, data.outcome, data.how)

    @get("/v1/views", summary="Saved queries, by name", **_needs(gate, "read", "views"))
    def listed(request: Asking) -> list[View]:
        caller, store = _caller(gate, request)
        return views.listed(store, caller.tenant)

    @put("/v1/views/{name:str}", summary="Save a query under a name", **_needs(gate, "review", "views"))
    def save(request: Asking, name: FromPath[str], data: JSONBody[NewView]) -> View:
        caller, store = _caller(gate, request)
        return views.save(store, caller.name, caller.tenant, name, data.query)

    @delete("/v1/views/{name:str}", summary="Remove a saved query", **_needs(gate, "review", "views"))
    def remove(request: Asking, name: FromPath[str]) -> None:
        caller, store = _caller(gate, request)
        views.remove(store, caller.tenant, name)

    return [waiting, fill, flag, changes, settle, listed, save, remove]


# --- between a request and the store ------------------------------------------------------------------------------------------


def _caller(gate: Gate, request: Asking) -> tuple[Caller, Store]:
    caller = caller_of(request)
    return caller, gate.store.of(caller.tenant)


def _asked(gate: Gate, request: Asking, q: str) -> tuple[Caller, Store, Query]:
    caller, store = _caller(gate, request)
    return caller, store, views.read_query(store, caller.tenant, q, dt.datetime.now(dt.UTC))


def _doing(gate: Gate, request: Asking, action: str, rollout_id: str) -> tuple[Caller, Store]:
    """Whoever judges a card has read it."""
    caller, store = _caller(gate, request)
    note(gate.store, caller, action, rollout_id, [storable(rollout_id)])
    return caller, store


def _noted(store: Store, caller: Caller, question: str, cards: Iterator[StoredCard]) -> Iterator[StoredCard]:
    """None goes out before the access log names it."""
    while some := [*itertools.islice(cards, NOTED_AT_ONCE)]:
        note(store, caller, "export", question, [one.card.rollout_id for one in some])
        yield from some


def _pieces(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Each piece takes a turn of the server's: a line would be too little for one."""
    held = bytearray()
    for line in lines:
        held += line
        if len(held) >= PIECE_BYTES:
            yield bytes(held)
            held.clear()
    yield bytes(held)
