"""Who is let in: keys, sessions, origins, wrong keys in number, a store that is away. And the form that a person signs in with."""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from litestar import Litestar, Request, Router, get, post
from litestar.params import FromPath
from litestar.testing import TestClient
from sqlalchemy import exc

from observability import users
from observability.access import person_at_the_machine
from observability.accesses import reading
from observability.store import Store, open_store
from serving import gate as gates
from serving.gate import COOKIE, Gate, caller_of
from serving.pages.login import login_routes
from serving.refusals import REFUSALS

NOW = dt.datetime.now(dt.UTC)
ME = person_at_the_machine("acme", "bob")
HOST = "http://cards.test"
HERE = {"origin": HOST}


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once, since making one takes longer than any of these tests."""
    path = tmp_path_factory.mktemp("gate") / "cards.db"
    open_store(f"sqlite:///{path}").close()
    return path


@pytest.fixture
def store(empty: Path, tmp_path: Path) -> Iterator[Store]:
    store = open_store(f"sqlite:///{shutil.copy(empty, tmp_path)}")
    users.add_user(store, ME, "ann", "reviewer", NOW)
    yield store
    store.close()


@pytest.fixture
def key(store) -> users.NewKey:
    return users.new_key(store, ME, "ann", NOW)


@pytest.fixture
def client(store) -> Iterator[TestClient[Litestar]]:
    """An API route and a page that each scope of a reviewer opens, and one that takes more."""
    gate = Gate(store)

    @get("/v1/who", guards=[gate.needs("read")])
    async def who(request: Request) -> str:
        return caller_of(request).name

    @get("/v1/who/{name:str}", guards=[gate.needs("read")])
    async def whoever(name: FromPath[str]) -> str:
        return name

    @post("/v1/who", guards=[gate.needs("review")])
    async def change(request: Request) -> str:
        return caller_of(request).name

    @get("/v1/admin", guards=[gate.needs("admin")])
    async def admin() -> str:
        return "secret"

    @get("/page", guards=[gate.needs("read", page=True)])
    async def page() -> str:
        return "a page"

    @get("/admins-page", guards=[gate.needs("admin", page=True)])
    async def admins_page() -> str:
        return "secret"

    routes = [who, whoever, change, admin, page, admins_page, *login_routes(gate)]
    app = Litestar([Router("/", route_handlers=routes, exception_handlers=REFUSALS)], openapi_config=None, logging_config=None)
    with TestClient(app, base_url=HOST) as client:
        client.follow_redirects = False
        yield client


def bearer(text: str) -> dict[str, str]:
    return {"authorization": f"Bearer {text}"}


def sign_in(client: TestClient[Litestar], key: users.NewKey, **fields: str):
    return client.post("/login", data={"key": key.text, **fields}, headers=HERE)


# --- programs -------------------------------------------------------------------------------------------------------------


def test_a_key_opens_what_its_role_may_and_no_more(client, key):
    assert client.get("/v1/who", headers=bearer(key.text)).text == "ann"
    assert client.post("/v1/who", headers=bearer(key.text)).status_code == 201, "a program is nobody's dupe and names no origin"
    refused = client.get("/v1/admin", headers=bearer(key.text))
    assert refused.status_code == 403 and "secret" not in refused.text
    assert refused.json()["error"] == "this takes the scope 'admin', which this key does not have" and "ann" in refused.json()["cure"]


@pytest.mark.parametrize("headers", [{}, bearer(""), bearer("nonsense"), bearer("rft_a_b"), {"authorization": "Basic YTpi"}])
def test_without_a_key_there_is_nothing_and_the_cure_is_told(client, headers):
    refused = client.get("/v1/who", headers=headers)
    assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
    assert set(refused.json()) == {"error", "cure", "faults"} and "rft key new" in refused.json()["cure"]


def test_a_revoked_key_is_refused_once_the_gate_has_forgotten_it(client, store, key, monkeypatch):
    assert client.get("/v1/who", headers=bearer(key.text)).status_code == 200
    users.revoke_key(store, ME, key.id, NOW)
    assert gates.REMEMBERED_SECONDS <= 5
    monkeypatch.setattr(gates, "REMEMBERED_SECONDS", 0.0)
    assert client.get("/v1/who", headers=bearer(key.text)).status_code == 401


def test_keys_are_remembered_so_that_not_every_request_reads_the_store(client, key, monkeypatch):
    asked: list[str] = []
    lookup = gates.caller_of_key
    monkeypatch.setattr(gates, "caller_of_key", lambda store, text, now: asked.append(text) or lookup(store, text, now))
    for _ in range(5):
        assert client.get("/v1/who", headers=bearer(key.text)).status_code == 200
    assert asked == [key.text]


def test_who_tries_keys_is_slowed_and_locks_nobody_else_out(client, store, key):
    assert client.get("/v1/who", headers=bearer(key.text)).status_code == 200
    answers = [client.get("/v1/who", headers=bearer(f"rft_a_{number}")).status_code for number in range(12)]
    assert answers == [401] * 10 + [429] * 2
    refused = client.get("/v1/who", headers=bearer("rft_a_b"))
    assert 50 <= int(refused.headers["retry-after"]) <= 61
    assert client.get("/v1/who", headers=bearer(key.text)).status_code == 200, "whose key was good before"
    fresh = users.new_key(store, ME, "ann", NOW)
    assert client.get("/v1/who", headers=bearer(fresh.text)).status_code == 429, "a right guess is not told from a wrong one"


def test_a_session_that_is_over_is_no_wrong_key(client, key):
    client.cookies.set(COOKIE, "rft_a_b")
    assert [client.get("/page").status_code for _ in range(12)] == [303] * 12
    client.cookies.clear()
    assert sign_in(client, key).status_code == 303


@pytest.mark.parametrize("address", ["/v1/who?card=%00", "/page?q=%00", "/v1/who/%00"])
def test_what_no_database_holds_is_refused_at_the_gate(client, key, address):
    refused = client.get(address, headers=bearer(key.text))
    assert refused.status_code == 400 and "NUL" in refused.text


def test_an_address_may_try_again_after_a_minute(client, key, monkeypatch):
    for number in range(11):
        client.get("/v1/who", headers=bearer(f"rft_a_{number}"))
    later = gates.time.monotonic() + 61
    monkeypatch.setattr(gates.time, "monotonic", lambda: later)
    assert client.get("/v1/who", headers=bearer(key.text)).status_code == 200


@pytest.mark.parametrize(
    "error",
    [
        exc.OperationalError("SELECT", {}, Exception("password=hunter2")),
        exc.InternalError("SELECT", {}, Exception("password=hunter2")),
        exc.TimeoutError("QueuePool limit of size 5 overflow 10 reached"),
    ],
)
def test_a_store_that_is_away_or_busy_is_told_so(client, key, monkeypatch, error):
    def away(*_: object) -> None:
        raise error

    monkeypatch.setattr(gates, "caller_of_key", away)
    answer = client.get("/v1/who", headers=bearer(key.text))
    assert answer.status_code == 503 and answer.headers["retry-after"] and "hunter2" not in answer.text and "limit" not in answer.text


# --- browsers -------------------------------------------------------------------------------------------------------------


def test_a_page_sends_to_the_form_and_the_form_back(client, key):
    sent = client.get("/page?q=a%26b")
    assert sent.status_code == 303 and sent.headers["location"] == f"/login?next={quote('/page?q=a%26b', safe='')}"
    assert 'name="key"' in client.get(sent.headers["location"]).text
    back = sign_in(client, key, next="/page?q=a%26b")
    assert back.status_code == 303 and back.headers["location"] == "/page?q=a%26b"
    assert client.get("/page").text == "a page" and client.get("/v1/who").text == "ann"


def test_a_part_of_a_page_sends_the_whole_page_to_the_form(client):
    answer = client.get("/page", headers={"hx-request": "true"})
    assert answer.status_code == 401 and answer.headers["hx-redirect"].startswith("/login?next=")


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites_and_is_not_the_key(client, key):
    cookie = sign_in(client, key).headers["set-cookie"]
    assert "HttpOnly" in cookie and "samesite=lax" in cookie.lower() and "Secure" not in cookie
    assert key.text not in cookie and key.id not in cookie
    assert (
        "Secure" in client.post("/login", data={"key": key.text}, headers={"origin": HOST.replace("http", "https")}).headers["set-cookie"]
    )


@pytest.mark.parametrize(
    "origin", [{}, {"origin": "http://evil.test"}, {"origin": "null"}, {"origin": "http://cards.test.evil.test"}, {"origin": "http://["}]
)
def test_what_another_site_sends_with_the_cookie_is_refused(client, store, key, origin):
    assert client.post("/login", data={"key": key.text}, headers=origin).status_code == 403
    sign_in(client, key)
    before = len(reading(store, "acme"))
    assert client.post("/v1/who", headers=origin).status_code == 403 and client.post("/logout", headers=origin).status_code == 403
    assert client.post("/v1/who", headers=HERE).status_code == 201 and len(reading(store, "acme")) == before


def test_a_page_that_takes_more_is_refused_as_a_page(client, key):
    sign_in(client, key)
    refused = client.get("/admins-page")
    assert refused.status_code == 403 and refused.headers["content-type"].startswith("text/html") and "secret" not in refused.text


def test_whoever_is_signed_in_already_goes_on_without_the_key(client, key):
    sign_in(client, key)
    there = client.get("/login?next=/page")
    assert there.status_code == 303 and there.headers["location"] == "/page"
    client.cookies.set(COOKIE, "rft_a_b")
    assert 'name="key"' in client.get("/login?next=/page").text


def test_signing_out_ends_the_session_at_once(client, key):
    sign_in(client, key)
    session = client.cookies[COOKIE]
    assert client.get("/page").status_code == 200
    out = client.post("/logout", headers=HERE)
    assert out.status_code == 303 and out.headers["location"] == "/login"
    client.cookies.set(COOKIE, session)
    assert client.get("/page").status_code == 303 and client.get("/v1/who", headers=bearer(key.text)).status_code == 200


def test_a_wrong_key_a_session_and_too_many_tries_at_the_form(client, key):
    wrong = client.post("/login", data={"key": "rft_a_b"}, headers=HERE)
    assert wrong.status_code == 401 and "opens nothing here" in wrong.text and "set-cookie" not in wrong.headers
    sign_in(client, key)
    session = client.post("/login", data={"key": client.cookies[COOKIE]}, headers=HERE)
    assert session.status_code == 401 and "that is a session" in session.text
    tries = [client.post("/login", data={"key": f"rft_a_{number}"}, headers=HERE).status_code for number in range(10)]
    assert tries == [401] * 9 + [429]


@pytest.mark.parametrize(
    "where", ["//evil.test", "http://evil.test/", "/\\evil.test", "javascript:alert(1)", "evil", "/a\nb", "", "//[", "/\0"]
)
def test_the_form_leads_nowhere_else(client, key, where):
    assert "evil" not in client.get(f"/login?next={quote(where)}").text and sign_in(client, key, next=where).headers["location"] == "/"


def test_an_empty_store_says_how_to_make_the_first_user(empty):
    store = open_store(f"sqlite:///{empty}")
    app = Litestar(
        [Router("/", route_handlers=login_routes(Gate(store)), exception_handlers=REFUSALS)], openapi_config=None, logging_config=None
    )
    with TestClient(app) as client:
        assert "rft user add NAME --role admin" in client.get("/login").text
    store.close()
