"""What every route of the store answers when it does not do what it was asked: one shape, with what is wrong and what to do.

`{"error": "...", "cure": "...", "faults": [{"where", "what", "cure"}]}`. A page shows the same as a page.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import msgspec
import structlog
from litestar import MediaType, Request, Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.types import ExceptionHandlersMap
from sqlalchemy import exc

from agent_rft.contracts.errors import Fault, FaultsFound, UserError
from observability.approvals import Decided
from observability.dossier import NotThere, Sealed
from serving.auth import CHALLENGE
from serving.label_pages import HEADERS, document

RETRY_AFTER_SECONDS = 5
AWAY = (exc.OperationalError, exc.InternalError, exc.TimeoutError)
"""Faults of the store and of the way to it, not of what was asked."""
QUERY_ENDED = "57014"
"""PostgreSQL's code for a statement that ran out of its time."""
log = structlog.get_logger("serving.refusals")
Asking = Request[Any, Any, Any]


class Refusal(msgspec.Struct, frozen=True):
    error: str
    cure: str = ""
    faults: tuple[Fault, ...] = ()


class Refused(HTTPException):
    """Not a fault of ours: the caller may not, or asked for what is not there."""

    def __init__(
        self, status: int, what: str, cure: str = "", *, page: bool = False, login: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(detail=what, status_code=status)
        self.what, self.cure, self.page, self.login, self.retry_after = what, cure, page, login, retry_after


def _refused(request: Asking, error: Refused) -> Response[Any]:
    headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
    if error.status_code == 401:
        headers |= CHALLENGE
    if error.login is not None:
        return _to_sign_in(request, error.login)
    if error.page:
        body = f"<main><h1>{escape(error.what)}</h1><p>{escape(error.cure)}</p></main>"
        return Response(document("Refused", body), status_code=error.status_code, media_type=MediaType.HTML, headers={**HEADERS, **headers})
    return _told(error.status_code, error.what, error.cure, headers=headers)


def _to_sign_in(request: Asking, login: str) -> Response[str]:
    """What a page fetched by itself for one of its parts must not become the sign-in form: there the whole page goes to it."""
    if request.headers.get("hx-request"):
        return Response("", status_code=401, media_type=MediaType.HTML, headers={**HEADERS, **CHALLENGE, "hx-redirect": login})
    return Response("", status_code=303, media_type=MediaType.HTML, headers={**HEADERS, "location": login})


def _users_mistake(_: Asking, error: UserError) -> Response[Refusal]:
    faults = error.faults if isinstance(error, FaultsFound) else ()
    status = 404 if isinstance(error, NotThere) else 409 if isinstance(error, Sealed | Decided) else 400
    return _told(status, error.what.partition("\n")[0] if faults else error.what, error.cure, faults)


def _not_such_a_request(_: Asking, error: ValidationException) -> Response[Refusal]:
    wrong: Any = error.extra if isinstance(error.extra, list) else []
    faults = tuple(Fault(str(one.get("key", one.get("source", "body"))), str(one.get("message", one))) for one in wrong)
    return _told(400, "this is not what the route takes", "GET /schema says what it takes", faults)


def _http(_: Asking, error: HTTPException) -> Response[Refusal]:
    return _told(error.status_code, error.detail, headers=error.headers or {})


def _unreadable(_: Asking, error: RecursionError | UnicodeDecodeError) -> Response[Refusal]:
    what = "nested too deeply" if isinstance(error, RecursionError) else "no UTF-8"
    return _told(400, f"the body is {what}", "GET /schema says what the route takes")


def why_away(error: BaseException) -> tuple[str, str]:
    """What whoever asked is told of one of AWAY, and what they can do."""
    if isinstance(error, exc.TimeoutError):
        return "the store is busy with others' questions", "try again"
    if getattr(getattr(error, "orig", None), "sqlstate", None) == QUERY_ENDED:
        return "the store took too long over this, and was stopped", "ask for less, such as fewer days (after:, before:), or try again"
    return "the store cannot be reached", "try again"


def _store_away(request: Asking, error: exc.SQLAlchemyError) -> Response[Refusal]:
    log.error("store_away", path=request.url.path, exc_info=error)
    return _told(503, *why_away(error), headers={"retry-after": str(RETRY_AFTER_SECONDS)})


def _told(
    status: int, what: str, cure: str = "", faults: tuple[Fault, ...] = (), headers: Mapping[str, str] | None = None
) -> Response[Refusal]:  # fmt: skip
    return Response(Refusal(what, cure, faults), status_code=status, media_type=MediaType.JSON, headers=dict(headers or {}))


REFUSALS: ExceptionHandlersMap = {
    Refused: _refused,
    UserError: _users_mistake,
    ValidationException: _not_such_a_request,
    HTTPException: _http,
    RecursionError: _unreadable,
    UnicodeDecodeError: _unreadable,
    **dict.fromkeys(AWAY, _store_away),
}
"""For the routes of the store. Other errors are ours, and Litestar's own 500."""
