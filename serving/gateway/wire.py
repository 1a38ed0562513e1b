"""HTTP/1.1 to one model server, and no more of it than a gateway needs: a request that is ready as bytes, an answer passed on as it comes.

A client for everything took half of what a request cost. This one follows no redirect, unpacks nothing and keeps no cookie: it keeps
connections, and tells apart a server that cannot be reached, one that closed without a word, and one that broke off.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from typing import Any, cast
from urllib.parse import urlsplit

import httptools

KEEP_ALIVE_SECONDS = 4.0
"""Many servers close a connection that was idle for five: one that we hold longer would break as a request sets out."""
MOST_HELD = 2**18
"""Bytes of an answer that wait for whoever asked, until the server is to wait too."""
MOST_FRAMING = 2**16
"""Bytes without a word of the answer, as of a head that does not end."""
MOST_WHOLE = 2**26
"""Bytes of an answer that is read to its end here."""
PLAIN = {b"content-encoding": (b"", b"identity"), b"transfer-encoding": (b"", b"identity", b"chunked")}
"""What may stand there of an answer that is passed on as it comes."""


class Unreachable(Exception):
    """No connection: the server has not heard of the request."""


class Closed(Exception):
    """Not a byte came back."""


class Broken(Exception):
    """It ended before the answer did, or was no answer."""


class Connection(asyncio.Protocol):
    """One answer after another."""

    def __init__(self, wire: Wire) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.whole = False
        self.idle_since = 0.0
        self._wire, self._transport = wire, cast(asyncio.Transport, None)
        self._parser: Any = None
        self._pieces: list[bytes] = []
        self._held = self._framing = 0
        self._heard = self._paused = self._kept = False
        self._trouble: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._taker: Callable[[bytes], bool] | None = None

    # --- for whoever asked --------------------------------------------------------------------------------------------------

    @property
    def taken(self) -> bool:
        """All of it has come, and was asked for."""
        return self.whole and not self._pieces

    async def ask(self, request: bytes) -> None:
        """Returns when the answer's head is there. Raises Closed or Broken."""
        self.status, self.headers, self.whole, self._framing, self._heard = 0, {}, False, 0, False
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(request)
        while self.status < 200:
            await self._something()
        for name, plain in PLAIN.items():
            if (said := self.headers.get(name, b"").strip().lower()) not in plain:
                raise Broken(f"its answer is packed as {said.decode('latin-1')[:40]}, which it was not asked for")

    async def piece(self) -> bytes:
        """What has come since; empty at the end. Raises Broken."""
        while not self._pieces:
            if self.whole:
                return b""
            await self._something()
        return self._drawn()

    async def pour(self, take: Callable[[bytes], bool]) -> None:
        """Gives `take` what comes, as it comes and without a task that wakes for it, until it answers that this is enough for now, or
        the answer is whole. Raises Broken."""
        if self._pieces and not take(self._drawn()):
            return
        self._taker = take
        try:
            while self._taker is not None and not self.whole:
                await self._something()
        finally:
            self._taker = None

    def _drawn(self) -> bytes:
        piece = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._held = 0
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        return piece

    async def read(self) -> bytes:
        """All of it. Raises Broken."""
        pieces, size = list[bytes](), 0
        while piece := await self.piece():
            pieces.append(piece)
            size += len(piece)
            if size > MOST_WHOLE:
                raise Broken(f"it answered more than {MOST_WHOLE} bytes")
        return b"".join(pieces)

    def close(self) -> None:
        """To be asked again, where its answer was read to the end. Else the server learns by it that nobody waits."""
        if self.whole and self._kept and not self._pieces and not self._transport.is_closing():
            self._wire.keep(self)
        else:
            self._transport.abort()

    async def _something(self) -> None:
        if self._trouble is not None:
            raise type(self._trouble)(*self._trouble.args)  # the one that is kept would keep, by its trace, all who waited
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # --- for the transport --------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._heard = True
        if self._parser is None or self.whole:  # nobody asked
            self._transport.abort()
            return
        self._framing += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._break(f"what it answered is no HTTP: {error}")
        if self._framing > MOST_FRAMING:
            self._break(f"more than {MOST_FRAMING} bytes came without a word of an answer")
        if self._taker is None or self._trouble is not None:
            self._wake()
        elif (self._pieces and not self._goes_on(self._taker)) or self.whole:
            self._taker = None
            self._wake()

    def _goes_on(self, taker: Callable[[bytes], bool]) -> bool:
        """What the taker raises is for the task that pours: here it would break the connection, and the server have the blame."""
        try:
            return taker(self._drawn())
        except Exception as error:
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_exception(error)
            return False

    def _break(self, why: str) -> None:
        self._trouble = Broken(why)
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wire.forget(self)
        framed = b"content-length" in self.headers or b"transfer-encoding" in self.headers
        if self.status >= 200 and not framed and exc is None and self._trouble is None:  # by closing it says that this was all
            self.whole = True
        elif self._trouble is None:
            self._trouble = Broken(str(exc or "the connection broke")) if self._heard else Closed("closed the connection")
        self._wake()

    # --- for the parser -----------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.whole:
            raise ValueError("more came than was asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)
        self._held += len(body)
        self._framing = 0
        if self._held > MOST_HELD and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self.status < 200:  # one that only says that the answer will come
            self.headers = {}
            return
        self.whole, self._kept = True, self._parser.should_keep_alive()


class Wire:
    """The connections to one server."""

    def __init__(self, url: str, headers: Mapping[str, str], connect_seconds: float) -> None:
        parts = urlsplit(url)
        self._host, self._path, self._connect_seconds = parts.hostname or "", parts.path.rstrip("/"), connect_seconds
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self._always = _lines({"host": parts.netloc, **headers})
        self._idle: list[Connection] = []

    async def ask(self, method: str, path: str, body: bytes = b"", more: Mapping[str, str] | None = None) -> Connection:
        """Its answer, of which only the head has come; to be closed. Raises Unreachable, Closed or Broken."""
        length = b"content-length: %d\r\n\r\n" % len(body)
        head = f"{method} {self._path}{path} HTTP/1.1\r\n".encode() + self._always + (_lines(more) if more else b"")
        connection = self._kept() or await self._new()
        try:
            await connection.ask(head + length + body)
        except BaseException:
            connection.whole = False
            connection.close()
            raise
        return connection

    def keep(self, connection: Connection) -> None:
        connection.idle_since = asyncio.get_running_loop().time()
        self._idle.append(connection)

    def forget(self, connection: Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)

    def close_idle(self, now: float | None = None) -> None:
        """Those that were idle for long; all of them where no time is given."""
        for connection in list(self._idle):
            if now is None or now - connection.idle_since > KEEP_ALIVE_SECONDS:
                self._idle.remove(connection)
                connection.whole = False
                connection.close()

    def _kept(self) -> Connection | None:
        """The one that was used last, so that the others grow old."""
        while self._idle:
            connection = self._idle.pop()
            if asyncio.get_running_loop().time() - connection.idle_since <= KEEP_ALIVE_SECONDS:
                return connection
            connection.whole = False
            connection.close()
        return None

    async def _new(self) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_seconds):
                name = self._host if self._tls else None
                _, connection = await loop.create_connection(
                    lambda: Connection(self), self._host, self._port, ssl=self._tls, server_hostname=name
                )
        except TimeoutError as error:
            raise Unreachable(f"no connection within {self._connect_seconds:g} s") from error
        except OSError as error:
            raise Unreachable(str(error)) from error
        return connection


def _lines(headers: Mapping[str, str]) -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("latin-1")
