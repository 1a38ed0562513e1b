"""The client of model servers, before servers that are raw sockets: each way in which one may answer, or not."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from serving.gateway import wire as module
from serving.gateway.wire import Broken, Closed, Unreachable, Wire

PLAIN = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"


class Server:
    """Says the next of what it was given to each request, closes where that is None, and counts connections."""

    def __init__(self, *answers: bytes | None, closes: bool = False) -> None:
        self.answers, self.closes = list(answers), closes
        self.connections, self.asked, self.left = 0, list[bytes](), asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                self.asked.append(head + await reader.readexactly(length))
                answer = self.answers.pop(0)
                writer.write(answer or b"")
                await writer.drain()
                if answer is None or self.closes:
                    break
        writer.close()
        self.left.set()


@contextlib.asynccontextmanager
async def asked_of(server: Server):
    running = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    wire = Wire(f"http://127.0.0.1:{running.sockets[0].getsockname()[1]}/v1", {"x-always": "1"}, 1.0)
    try:
        yield wire
    finally:
        wire.close_idle()
        running.close()


async def whole(wire: Wire, body: bytes = b"{}") -> bytes:
    answer = await wire.ask("POST", "/chat", body, {"x-more": "2"})
    try:
        return await answer.read()
    finally:
        answer.close()


def test_one_connection_carries_one_request_after_another():
    async def run():
        server = Server(PLAIN, CHUNKED, b"HTTP/1.1 204 No Content\r\n\r\n", PLAIN)
        async with asked_of(server) as wire:
            assert [await whole(wire) for _ in range(4)] == [b"hello", b"abcde", b"", b"hello"]
        assert server.connections == 1
        assert server.asked[0].startswith(b"POST /v1/chat HTTP/1.1\r\nhost: 127.0.0.1:") and server.asked[0].endswith(b"\r\n\r\n{}")
        assert b"x-always: 1\r\nx-more: 2\r\ncontent-length: 2\r\n" in server.asked[0]

    asyncio.run(run())


def test_answers_that_only_say_that_one_will_come_are_passed_over():
    async def run():
        async with asked_of(Server(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + PLAIN)) as wire:
            answer = await wire.ask("POST", "/chat", b"")
            assert (answer.status, b"link" in answer.headers, await answer.read()) == (200, False, b"hello")

    asyncio.run(run())


def test_an_answer_without_a_length_ends_with_its_connection():
    async def run():
        server = Server(b"HTTP/1.1 200 OK\r\n\r\nuntil the end", PLAIN, closes=True)
        async with asked_of(server) as wire:
            assert [await whole(wire), await whole(wire)] == [b"until the end", b"hello"]
        assert server.connections == 2

    asyncio.run(run())


@pytest.mark.parametrize(
    ("said", "trouble"),
    [
        (None, Closed),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhel", Broken),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n", Broken),
        (b"HTTP/1.1 200 OK\r\nconte", Broken),
        (b"SSH-2.0-OpenSSH_9.6\r\n", Broken),
        (b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n", Broken),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000 + b"\r\n\r\n", Broken),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", Broken),
        (b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\n\x1f\x8b", Broken),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", Broken),
    ],
)
def test_what_is_no_whole_answer_is_told_apart(said, trouble):
    async def run():
        async with asked_of(Server(said, PLAIN, closes=True)) as wire:
            with pytest.raises(trouble):
                await whole(wire)
            assert await whole(wire) == b"hello", "on a connection of its own"

    asyncio.run(run())


@pytest.mark.parametrize("endless", [b"HTTP/1.1 200 OK\r\nx: ", b"HTTP/1.1 200 ", CHUNKED[:-2] + b"x: ", CHUNKED[:47] + b"3;"])
def test_a_head_that_does_not_end_is_not_heard_out(endless):
    """Of 32 MB in one header, reason, trailer or chunk's name no more is taken than one that is in good order may have."""

    async def run():
        async with asked_of(Server(endless + b"y" * 2**25)) as wire:
            with pytest.raises(Broken, match="65536 bytes came without a word of an answer"):
                async with asyncio.timeout(5):
                    await whole(wire)

    asyncio.run(run())


def test_an_answer_that_broke_off_is_told_in_words():
    async def run():
        async with asked_of(Server(PLAIN[:-1], closes=True)) as wire:
            with pytest.raises(Broken, match=r"^the connection broke$"):
                await whole(wire)

    asyncio.run(run())


def test_what_is_read_to_its_end_has_one(monkeypatch):
    async def run():
        monkeypatch.setattr(module, "MOST_WHOLE", 4)
        async with asked_of(Server(PLAIN)) as wire:
            with pytest.raises(Broken, match="more than 4 bytes"):
                await whole(wire)

    asyncio.run(run())


def test_more_than_was_asked_for_spoils_the_connection_and_no_later_answer():
    async def run():
        server = Server(PLAIN + PLAIN, CHUNKED)
        async with asked_of(server) as wire:
            assert [await whole(wire), await whole(wire)] == [b"hello", b"abcde"]
        assert server.connections == 2

    asyncio.run(run())


def test_who_stops_reading_breaks_the_connection_and_the_server_knows():
    async def run():
        server = Server(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhel")
        async with asked_of(server) as wire:
            answer = await wire.ask("POST", "/chat", b"")
            assert await answer.piece() == b"hel"
            answer.close()
            await asyncio.wait_for(server.left.wait(), 5)

    asyncio.run(run())


def test_what_comes_is_poured_until_it_is_enough_and_then_on():
    async def run():
        async with asked_of(Server(CHUNKED, CHUNKED)) as wire:
            answer, taken = await wire.ask("POST", "/chat", b""), list[bytes]()

            def take(piece):
                taken.append(piece)
                return False

            while not answer.taken:
                before = len(taken)
                await answer.pour(take)
                assert len(taken) <= before + 1, "it said that this was enough"
            assert b"".join(taken) == b"abcde"
            answer.close()
            assert await whole(wire) == b"abcde"

    asyncio.run(run())


def test_what_breaks_off_while_it_is_poured_is_broken_and_what_came_was_given():
    async def run():
        async with asked_of(Server(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhel", closes=True)) as wire:
            answer, taken = await wire.ask("POST", "/chat", b""), list[bytes]()
            with pytest.raises(Broken):
                await answer.pour(lambda piece: taken.append(piece) is None)
            assert taken == [b"hel"]
            answer.close()

    asyncio.run(run())


def test_a_mistake_of_who_takes_what_is_poured_is_theirs_and_not_the_servers():
    async def run():
        async with asked_of(Server(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", PLAIN)) as wire:
            answer = await wire.ask("POST", "/chat", b"")
            pouring = asyncio.create_task(answer.pour(lambda piece: bool(1 / len(piece[:0]))))
            await asyncio.sleep(0)
            answer.data_received(b"hel")
            with pytest.raises(ZeroDivisionError):
                await pouring
            answer.close()

    asyncio.run(run())


def test_a_server_that_nobody_hears_is_unreachable():
    async def run():
        with pytest.raises(Unreachable):
            await Wire("http://127.0.0.1:1/v1", {}, 1.0).ask("GET", "/models")

    asyncio.run(run())


def test_a_connection_that_was_idle_for_long_is_not_used_again(monkeypatch):
    async def run():
        server = Server(PLAIN, PLAIN)
        async with asked_of(server) as wire:
            await whole(wire)
            monkeypatch.setattr(module, "KEEP_ALIVE_SECONDS", -1.0)
            await whole(wire)
        assert server.connections == 2

    asyncio.run(run())


def test_a_slow_reader_makes_the_server_wait():
    """32 MB that nobody reads: what is held here stays near the limit."""

    async def run():
        body = b"x" * 2**25
        async with asked_of(Server(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)) as wire:
            answer = await wire.ask("POST", "/chat", b"")
            await asyncio.sleep(0.2)
            assert answer._held < module.MOST_HELD + 2**20
            assert await answer.read() == body

    asyncio.run(run())
