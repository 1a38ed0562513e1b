"""`/login` and `/logout`: a key is pasted once; from then on the browser holds a session."""

from __future__ import annotations

import datetime as dt
from html import escape
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from litestar import MediaType, Request, Response, get, post
from litestar.datastructures import Cookie
from litestar.handlers import HTTPRouteHandler

from agent_rft.contracts.errors import UserError
from observability.users import SESSION, anybody, close_session, open_session
from serving.gate import COOKIE, LOGIN, Gate, address_of, sent_from_here
from serving.label_pages import HEADERS, document
from serving.refusals import Refused
from serving.threads import in_daemon_thread

FIRST = "Nobody has been added to this store yet: on its machine, <code>rft user add NAME --role admin</code> prints a key."
Asking = Request[Any, Any, Any]


def login_routes(gate: Gate) -> list[HTTPRouteHandler]:
    hidden: dict[str, Any] = {"include_in_schema": False}

    @get(LOGIN, **hidden)
    async def form(request: Asking) -> Response[str]:
        text = request.cookies.get(COOKIE, "")
        if text and await gate.caller_of_text(text, address_of(request), cookie=True):
            return _go(_here(request.query_params.get("next", "/")))
        empty = not await in_daemon_thread(anybody, gate.store)
        return _page(request.query_params.get("next", "/"), empty=empty)

    @post(LOGIN, **hidden)
    async def sign_in(request: Asking) -> Response[str]:
        fields = await _fields(request)
        caller = await gate.caller_of_text(fields.get("key", ""), address_of(request))
        if caller is None:
            return _page(fields.get("next", "/"), "That key opens nothing here (any more).", 401)
        try:
            session = await in_daemon_thread(open_session, gate.store, caller, dt.datetime.now(dt.UTC))
        except UserError as error:
            return _page(fields.get("next", "/"), str(error), 401)
        return _go(_here(fields.get("next", "/")), _cookie(request, session.text, int(SESSION.total_seconds())))

    @post("/logout", **hidden)
    async def sign_out(request: Asking) -> Response[str]:
        await _fields(request)
        text = request.cookies.get(COOKIE, "")
        caller = await gate.caller_of_text(text, address_of(request), cookie=True) if text else None
        if caller is not None:
            await in_daemon_thread(close_session, gate.store, caller, dt.datetime.now(dt.UTC))
            gate.forget(text)
        return _go(LOGIN, _cookie(request, "", 0))

    return [form, sign_in, sign_out]


async def _fields(request: Asking) -> dict[str, str]:
    """Of a form that was sent from our own page: another site must not sign its visitors in, or out."""
    if not sent_from_here(request):
        raise Refused(403, "this form was not sent from this server's own page", f"open {LOGIN} here", page=True)
    return dict(parse_qsl((await request.body()).decode("utf-8", "replace"), keep_blank_values=True))


def _here(address: str) -> str:
    """Only an address of ours: whoever sends a link to the sign-in form must not choose where it leads."""
    try:
        split = urlsplit(address) if address.isascii() and address.isprintable() and "\\" not in address else None
    except ValueError:  # such as a bracket that nothing closes
        return "/"
    return address if split and not split.scheme and not split.netloc and address[:1] == "/" and address[:2] != "//" else "/"


def _cookie(request: Asking, value: str, seconds: int) -> Cookie:
    """A proxy that ends TLS speaks plain HTTP to us; the browser says what it speaks. Lax: a link in a mail or a chat opens its page; a
    form from elsewhere comes without the cookie, and is refused by its origin too."""
    secure = request.headers.get("origin", "").startswith("https:")
    return Cookie(COOKIE, value=value, path="/", max_age=seconds, httponly=True, samesite="lax", secure=secure)


def _page(back: str, trouble: str = "", status: int = 200, empty: bool = False) -> Response[str]:
    told = f'<p class="trouble">{escape(trouble)}</p>' if trouble else ""
    body = (
        f"<main><h1>Job cards</h1><p>{FIRST if empty else 'Sign in with your key.'}</p>{told}"
        f'<form class="ask" method="post" action="{LOGIN}"><input type="hidden" name="next" value="{escape(_here(back))}">'
        '<label>Key <input name="key" type="password" autocomplete="current-password" required autofocus></label>'
        '<div><button class="main">Sign in</button></div></form></main>'
    )
    return Response(document("Sign in", body), status_code=status, media_type=MediaType.HTML, headers=HEADERS)


def _go(address: str, *cookies: Cookie) -> Response[str]:
    return Response("", status_code=303, media_type=MediaType.HTML, headers={**HEADERS, "location": address}, cookies=cookies)
