"""One way for every page: who asks, what they sent, the work in a thread, and the answer as HTML or as a fault that can be read."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast
from urllib.parse import parse_qsl, urlencode

import msgspec
import structlog
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from litestar import MediaType, Request, Response, get, route
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath
from markupsafe import Markup

from agent_rft.contracts.errors import UserError
from agent_rft.evaluation.report.style import STYLE
from observability.access import Caller, Scope
from observability.dossier import NotThere
from observability.roots import LedgerFiles
from observability.store import Store
from observability.story import CONTROL
from serving.gate import Gate, caller_of
from serving.inspection import Looks
from serving.pages import pictures
from serving.pages.cardview import as_lines, long, plain, share
from serving.pages.checks import Checks
from serving.refusals import AWAY, RETRY_AFTER_SECONDS, why_away
from serving.release.looking import Promises
from serving.threads import in_daemon_thread

HERE = Path(__file__).parent
PATIENCE = 60.0
"""Seconds that a page waits for the store."""
MOST_FIELDS = 200
"""Of an address or a form."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self';"
    " base-uri 'none'; frame-ancestors 'none'"
)
"""Were anything to slip through the escaping, it still could not run or send."""
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # under no-referrer browsers would hide a form's origin from us, too
    "cache-control": "no-store",
}
log = structlog.get_logger("serving.pages")
Asking = Request[Any, Any, Any]


class Desk(msgspec.Struct, frozen=True):
    """What the pages work with."""

    gate: Gate
    files: LedgerFiles
    checks: Checks
    promises: Promises = Promises()
    looks: Looks = msgspec.field(default_factory=Looks)

    @property
    def store(self) -> Store:
        return self.gate.store


class Asked(msgspec.Struct, frozen=True):
    caller: Caller
    fields: Mapping[str, str]
    """Of the address or the form; and what the route's path names."""
    now: dt.datetime

    def get(self, name: str) -> str:
        return self.fields.get(name, "").strip()

    def number(self, name: str) -> int | None:
        text = self.get(name)
        if not text:
            return None
        if not (text.isascii() and text.isdecimal() and len(text) < 19):
            raise UserError(f"{name} is {text[:40]!r}, which is no number", "go back, and follow the page's own links")
        return int(text)


class Page(msgspec.Struct, frozen=True):
    template: str
    values: Mapping[str, Any] = {}
    status: int = 200


class Go(msgspec.Struct, frozen=True):
    """On to another page, so that reloading sends nothing twice."""

    address: str


class File(msgspec.Struct, frozen=True):
    name: str
    content: bytes
    media_type: str


Answer: TypeAlias = Page | Go | File
Work: TypeAlias = Callable[[Desk, Asked], Answer]


# --- HTML ---------------------------------------------------------------------------------------------------------------


def harmless(value: Any) -> Any:
    """Escape codes and marks that turn the direction of text show as what they are."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return CONTROL.sub("\N{REPLACEMENT CHARACTER}", value.replace("\r\n", "\n"))
    return "" if value is None else value


def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=harmless,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {
        "long": long,
        "lines": as_lines,
        "plain": plain,
        "took": pictures.took,
        "words": pictures.words,
        "count": pictures.count,
        "moment": moment,
        "share": share,
        "score": score,
        "e_value": pictures.e_value,
        "percent": pictures.percent,
    }
    known: dict[str, Any] = {"at": address, "width": pictures.WIDTH, "high": pictures.HIGH, "drawn": pictures, "static": _versioned}
    cast(dict[str, Any], made.filters).update(filters)
    cast(dict[str, Any], made.globals).update(known | {"hidden_pages": hidden_pages})
    return made


def moment(one: dt.datetime | str | None) -> str:
    if not one:
        return "unknown"
    value = dt.datetime.fromisoformat(one) if isinstance(one, str) else one
    return value.astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M:%S")


def score(reward: float | None) -> str:
    return "\N{EN DASH}" if reward is None else f"{reward:.2f}"


def address(path: str, **fields: Any) -> str:
    """Of a page of ours: what is empty is left out."""
    told = {name: value for name, value in fields.items() if value not in ("", None)}
    return f"{path}?{urlencode(told, errors='replace')}" if told else path


def hidden_pages(caller: Caller) -> list[str]:
    """What the menu leaves out: pages that would only refuse."""
    takes: dict[str, Scope] = {"/queue": "review", "/approvals": "approve", "/access": "approve"}
    return [page for page, scope in takes.items() if not caller.may(scope)]


STATIC = {
    "htmx.min.js": "text/javascript; charset=utf-8",
    "keys.js": "text/javascript; charset=utf-8",
    "pages.css": "text/css; charset=utf-8",
    "report.css": "text/css; charset=utf-8",
    "htmx.LICENSE.txt": "text/plain; charset=utf-8",
}
CONTENT = {name: (HERE / "static" / name).read_bytes() for name in STATIC if name != "report.css"} | {"report.css": STYLE.encode()}
"""The report brings its own style, as in the file that a run leaves."""
VERSIONS = {name: hashlib.sha256(content).hexdigest()[:12] for name, content in CONTENT.items()}


def _versioned(name: str) -> str:
    return f"/pages/{name}?v={VERSIONS[name]}"


TEMPLATES = _environment()


def html(page: Page, caller: Caller, path: str) -> Response[str]:
    body = TEMPLATES.get_template(page.template).render(**page.values, me=caller, path=path)
    return Response(body.encode("utf-8", "replace").decode(), status_code=page.status, media_type=MediaType.HTML, headers=HEADERS)


# --- routes -------------------------------------------------------------------------------------------------------------


def page_route(desk: Desk, method: Literal["GET", "POST"], path: str, scope: Scope, work: Work) -> HTTPRouteHandler:
    @route(path, http_method=method, guards=[desk.gate.needs(scope, page=True)], include_in_schema=False, status_code=200)
    async def handler(request: Asking) -> Response[Any]:
        caller = caller_of(request)
        try:
            fields = await _fields(request)
            answer = await asyncio.wait_for(
                in_daemon_thread(work, desk, Asked(caller, fields | dict(request.path_params), dt.datetime.now(dt.UTC))), PATIENCE
            )
            return _response(answer, caller, request)
        except NotThere as error:
            return _trouble(error.what, error.cure, 404, caller, request)
        except UserError as error:
            return _trouble(error.what, error.cure, 400, caller, request)
        except TimeoutError:
            return _trouble(f"the store gave no answer within {PATIENCE:g} s", "ask for less, or try again", 503, caller, request)
        except AWAY as error:
            log.error("store_away", path=request.url.path, exc_info=error)
            return _trouble(*why_away(error), 503, caller, request)
        except Exception as error:
            log.error("page_failed", path=request.url.path, exc_info=error)
            return _trouble("this server failed", "its log says why", 500, caller, request)

    return handler


def _response(answer: Answer, caller: Caller, request: Asking) -> Response[Any]:
    match answer:
        case Page():
            return html(answer, caller, request.url.path)
        case Go():
            return Response("", status_code=303, media_type=MediaType.HTML, headers={**HEADERS, "location": answer.address})
        case File():
            headers = HEADERS | {"content-disposition": f'attachment; filename="{answer.name}"'}
            return Response(answer.content, media_type=answer.media_type, headers=headers)


def _trouble(what: str, cure: str, status: int, caller: Caller, request: Asking) -> Response[str]:
    told = html(Page("trouble.html", {"what": what, "cure": cure}, status), caller, request.url.path)
    if status == 503:
        told.headers["retry-after"] = str(RETRY_AFTER_SECONDS)
    return told


async def _fields(request: Asking) -> dict[str, str]:
    sent = await request.body() if request.method == "POST" else request.scope["query_string"]
    try:
        pairs = parse_qsl(sent.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=MOST_FIELDS)
    except ValueError:
        raise UserError(f"more than {MOST_FIELDS} fields were sent", "go back, and follow the page's own links") from None
    return {name: value.replace("\0", "\N{SYMBOL FOR NULL}").replace("\r\n", "\n") for name, value in pairs}


def static_route() -> HTTPRouteHandler:
    @get("/pages/{name:str}", include_in_schema=False)
    async def static(name: FromPath[str]) -> Response[bytes]:
        """Scripts and styles: no secret is in them, and the sign-in form could want them, too."""
        if name not in STATIC:
            return Response(b"", status_code=404, media_type=MediaType.TEXT)
        headers = {"cache-control": "public, max-age=31536000, immutable", "x-content-type-options": "nosniff"}
        return Response(CONTENT[name], media_type=STATIC[name], headers=headers)

    return static
