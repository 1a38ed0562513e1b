"""HTTP/1.1 as uvicorn serves it, with a shorter way beside ASGI for what is asked a thousand times a second.

ASGI hands an answer over in two messages or more. Each is awaited, looked through and written by itself, which took a third of the time
of an answer that is passed on; and to hear that a body is there takes a task that waits. A `Line` says what there is to say at once.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Sequence
from typing import Any, Protocol

from litestar.types import Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

LINE = "rft.line"
"""Among the extensions of a request's ASGI scope: a weak reference to what uvicorn knows of the request, which holds the scope itself."""
Headers = Sequence[tuple[bytes, bytes]]


class Line(Protocol):
    """To whoever asked. After `begin`, `say`, `end` and `answer` comes `drain`; who has gone away is told nothing more."""

    @property
    def full(self) -> bool:
        """Whether more is to wait for `drain`."""
        ...

    def whole_body(self) -> bytes | None:
        """The request's, if all of it has come and none of it was taken."""
        ...

    def answer(self, status: int, headers: Headers, body: bytes) -> None: ...

    def begin(self, status: int, headers: Headers) -> None:
        """An answer that comes in pieces; the head goes out with the first."""
        ...

    def say(self, piece: bytes) -> None: ...

    def end(self, piece: bytes) -> None: ...

    async def drain(self) -> None: ...


class Direct:
    """Over uvicorn's own connection."""

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._head = b""
        self._chunked = cycle.scope["http_version"] == "1.1"
        """To an older caller the end of the connection is that of an answer in pieces."""

    @property
    def full(self) -> bool:
        return self._cycle.flow.write_paused

    def whole_body(self) -> bytes | None:
        cycle = self._cycle
        if cycle.more_body or cycle.disconnected or cycle.waiting_for_100_continue:
            return None
        body, cycle.body = bytes(cycle.body), bytearray()
        cycle.message_event.clear()
        cycle.flow.resume_reading()
        return body

    def answer(self, status: int, headers: Headers, body: bytes) -> None:
        self._start(status, [*headers, (b"content-length", b"%d" % len(body))])
        self._finish(b"" if self._cycle.scope["method"] == "HEAD" else body)

    def begin(self, status: int, headers: Headers) -> None:
        self._start(status, [*headers, (b"transfer-encoding", b"chunked")] if self._chunked else headers)

    def say(self, piece: bytes) -> None:
        self._write(self._head + self._framed(piece))
        self._head = b""

    def end(self, piece: bytes) -> None:
        self._finish(self._framed(piece) + (b"0\r\n\r\n" if self._chunked else b""))

    async def drain(self) -> None:
        """What ends an answer is not waited for: how slowly it is read is between the caller and the connection."""
        if self.full and not self._cycle.disconnected and not self._cycle.response_complete:
            await self._cycle.flow.drain()

    def _framed(self, piece: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(piece), piece) if self._chunked and piece else piece

    def _start(self, status: int, headers: Headers) -> None:
        cycle = self._cycle
        lines = [b"%b: %b\r\n" % header for header in (*cycle.default_headers, *headers)]
        if not cycle.keep_alive:
            lines.append(b"connection: close\r\n")
        head = b"".join(lines)
        if head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines) or b"\0" in head:
            raise ValueError("a header holds the end of a line")
        cycle.response_started, cycle.waiting_for_100_continue = True, False
        self._head = STATUS_LINE[status] + head + b"\r\n"

    def _finish(self, last: bytes) -> None:
        cycle = self._cycle
        self._write(self._head + last)
        self._head = b""
        if cycle.disconnected:
            return
        cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()

    def _write(self, data: bytes) -> None:
        if not self._cycle.disconnected:
            self._cycle.transport.write(data)


class OverAsgi:
    """The same over ASGI's own messages, for whoever serves the app otherwise."""

    full = True

    def __init__(self, send: Send) -> None:
        self._send = send
        self._unsent: list[Any] = []

    def whole_body(self) -> bytes | None:
        return None

    def answer(self, status: int, headers: Headers, body: bytes) -> None:
        self.begin(status, [*headers, (b"content-length", b"%d" % len(body))])
        self.end(body)

    def begin(self, status: int, headers: Headers) -> None:
        self._unsent.append({"type": "http.response.start", "status": status, "headers": list(headers)})

    def say(self, piece: bytes) -> None:
        self._unsent.append({"type": "http.response.body", "body": piece, "more_body": True})

    def end(self, piece: bytes) -> None:
        self._unsent.append({"type": "http.response.body", "body": piece, "more_body": False})

    async def drain(self) -> None:
        unsent, self._unsent = self._unsent, []
        for message in unsent:
            await self._send(message)


class HttpWithLine(HttpToolsProtocol):
    """uvicorn's, whose requests bring their line with them."""

    _answering: RequestResponseCycle | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """uvicorn tells it to the request that came last; where more were asked ahead, another one is being answered."""
        if (cycle := self._answering) is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        cycle.scope["extensions"] = {LINE: weakref.ref(cycle)}  # pyright: ignore[reportGeneralTypeIssues]
        super()._start_asgi_task(cycle, functools.partial(_once_read, self.flow, app) if self.flow.write_paused else app)


async def _once_read(flow: FlowControl, app: Any, scope: Any, receive: Any, send: Any) -> None:
    """Who asks on and does not read what was answered waits, or the answers would fill the memory."""
    await flow.drain()
    await app(scope, receive, send)


def line_of(scope: Any, send: Send) -> Line:
    cycle = (scope.get("extensions") or {}).get(LINE)
    return Direct(cycle()) if cycle else OverAsgi(send)
