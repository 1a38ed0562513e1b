"""What a caller's connection is told through a line: the same bytes, whether uvicorn's own connection carries them or ASGI's messages."""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from serving.line import LINE, line_of

BIG = b"x" * 1_000_000


class App:
    """Answers by its path; remembers what it saw."""

    def __init__(self, over_asgi: bool) -> None:
        self.over_asgi = over_asgi
        self.bodies: list[bytes | None] = []
        self.most_ahead = 0
        self.ended = threading.Event()
        self.cycles: list[weakref.ref[Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        if self.over_asgi:
            scope["extensions"].pop(LINE)
        line = line_of(scope, send)
        self.bodies.append(line.whole_body())
        self.cycles.append(weakref.ref(send.__self__))
        if scope["path"] == "/whole":
            line.answer(201, [(b"content-type", b"text/plain"), (b"x-more", b"1")], b"all of it")
        elif scope["path"] == "/whole and big":
            line.answer(200, [], 8 * BIG)
        elif scope["path"] == "/slow":
            line.begin(200, [])
            for _ in range(30):
                line.say(b"x")
                await line.drain()
                await asyncio.sleep(0.01)
            line.end(b"")
        elif scope["path"] == "/split":
            line.answer(200, [(b"x-name", b"a\r\nset-cookie: stolen")], b"")
        elif scope["path"] == "/big":
            line.begin(200, [])
            for said in range(40):
                line.say(BIG)
                self.most_ahead = said
                await line.drain()
            line.end(b"")
        else:
            line.begin(200, [(b"content-type", b"text/event-stream")])
            line.say(b"one")
            await line.drain()
            line.say(b"two")
            line.end(b"three")
        await line.drain()
        self.ended.set()


@pytest.fixture(params=["direct", "over ASGI"])
def app(request: pytest.FixtureRequest) -> App:
    return App(request.param == "over ASGI")


@pytest.fixture
def ask(app: App, in_thread: Any) -> Iterator[Callable[..., socket.socket]]:
    with in_thread(app) as url:
        host, _, port = url.removeprefix("http://").partition(":")

        def ask(*pieces: bytes) -> socket.socket:
            connection = socket.create_connection((host, int(port)), timeout=5)
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(0.05 * (len(pieces) > 1))
            return connection

        yield ask


def head(path: str, *lines: str, method: str = "GET", version: str = "1.1") -> bytes:
    return "\r\n".join((f"{method} {path} HTTP/{version}", "host: a", *lines, "", "")).encode()


def read(connection: socket.socket, until: bytes) -> bytes:
    """With the two headers that only tests' server adds taken out."""
    heard = bytearray()
    while not heard.endswith(until) and (more := connection.recv(65536)):
        heard += more
    return b"\r\n".join(line for line in bytes(heard).split(b"\r\n") if not line.startswith((b"date: ", b"server: ")))


def test_an_answer_is_told_whole(ask):
    with closing(ask(head("/whole"))) as connection:
        told = b"HTTP/1.1 201 Created\r\ncontent-type: text/plain\r\nx-more: 1\r\ncontent-length: 9\r\n\r\nall of it"
        assert read(connection, b"all of it") == told


def test_an_answer_in_pieces_is_told_as_it_comes(ask):
    with closing(ask(head("/pieces"))) as connection:
        told = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        assert read(connection, b"0\r\n\r\n") == told + b"3\r\none\r\n3\r\ntwo\r\n5\r\nthree\r\n0\r\n\r\n"


def test_a_connection_is_used_again_and_keeps_the_order_of_what_was_asked_ahead(ask):
    with closing(ask(head("/pieces") + head("/whole"))) as connection:
        first, _, second = read(connection, b"all of it").partition(b"0\r\n\r\n")
        assert first.startswith(b"HTTP/1.1 200 OK") and second.startswith(b"HTTP/1.1 201 Created")
        connection.sendall(head("/whole"))
        assert read(connection, b"all of it").startswith(b"HTTP/1.1 201 Created")


@pytest.mark.parametrize("asked", [head("/whole", "connection: close"), head("/whole", version="1.0")], ids=["asked to", "HTTP/1.0"])
def test_who_wants_no_second_answer_has_the_connection_closed(ask, asked):
    with closing(ask(asked)) as connection:
        heard = read(connection, b"never")
        assert b"\r\nconnection: close\r\n" in heard and heard.endswith(b"all of it")


def test_who_asks_for_the_head_gets_no_body(ask):
    with closing(ask(head("/whole", "connection: close", method="HEAD"))) as connection:
        assert read(connection, b"never").endswith(b"content-length: 9\r\nconnection: close\r\n\r\n")


def test_no_header_can_end_its_line(ask):
    with closing(ask(head("/split", "connection: close"))) as connection:
        heard = read(connection, b"never")
        assert b"stolen" not in heard and not heard.startswith(b"HTTP/1.1 200")


def test_a_body_that_is_there_is_had_at_once_and_another_is_waited_for(app, ask):
    with closing(ask(head("/whole", "content-length: 4", method="POST") + b"body")) as connection:
        read(connection, b"all of it")
    with closing(ask(head("/whole", "content-length: 4", method="POST"), b"bo", b"dy")) as connection:
        read(connection, b"all of it")
    assert app.bodies == ([None, None] if app.over_asgi else [b"body", None])


def test_who_reads_slowly_is_not_answered_ahead_without_bound(app, ask):
    with closing(ask(head("/big"))) as connection:
        time.sleep(0.3)
        assert app.most_ahead < 30, "40 MB would stand in memory"
        assert read(connection, b"0\r\n\r\n").count(BIG) == 40 and app.ended.wait(5)


def test_who_goes_away_is_told_nothing_more_and_harms_nobody(app, ask):
    ask(head("/big")).close()
    assert app.ended.wait(5)
    with closing(ask(head("/whole"))) as connection:
        assert read(connection, b"all of it").startswith(b"HTTP/1.1 201")


def test_who_goes_away_having_asked_ahead_is_told_nothing_more_either(app, ask):
    connection = ask(head("/slow") + head("/whole"))
    connection.recv(1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # by a reset: what is written next fails
    connection.close()
    assert app.ended.wait(5) and len(app.bodies) == 1


def test_an_answer_has_ended_for_whoever_gave_it_though_it_is_read_slowly(app, ask):
    """Else its request's deadline would strike while it is read, and what is said then would follow upon the answer."""
    with closing(ask(head("/whole%20and%20big", "connection: close"))) as connection:
        assert app.ended.wait(2)
        assert read(connection, b"never").endswith(b"\r\n\r\n" + 8 * BIG)


def test_who_asks_on_and_reads_nothing_is_not_answered_without_bound(app, ask):
    with closing(ask(9 * head("/whole%20and%20big") + head("/whole"))) as connection:
        time.sleep(0.3)
        assert len(app.bodies) < 5, "72 MB would stand in memory"
        assert read(connection, b"all of it").count(BIG) == 72


def test_an_older_caller_is_told_pieces_without_chunks(app, ask):
    with closing(ask(head("/pieces", version="1.0"))) as connection:
        heard = read(connection, b"never")
        assert (heard.endswith(b"\r\n\r\nonetwothree"), b"chunked" in heard) == (not app.over_asgi, app.over_asgi)


def test_a_request_leaves_no_garbage_that_holds_itself(app, ask):
    """Servers look for it seldom, and until then each would keep what it was asked."""
    gc.disable()
    try:
        with closing(ask(head("/whole"))) as connection:
            read(connection, b"all of it")
            connection.sendall(head("/whole"))
            read(connection, b"all of it")
            assert app.cycles[0]() is None
    finally:
        gc.enable()
