"""Running the app: in this process, or in a child that lives no longer than its parent."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import uvicorn

from agent_rft.contracts.errors import UserError
from serving.garbage import look_less_often
from serving.line import HttpWithLine
from serving.logs import log_as_json

BEARER_VARIABLE = "TOOL_BEARER"
PARENT_PIPE = "RFT_SERVER_ENDS_WITH_STDIN"
KEEP_ALIVE_SECONDS = 75  # longer than any client keeps a connection idle, so that none is closed as a call sets out
ACCEPTS_PER_TURN = 64
"""uvloop accepts one connection per listening handle in each turn of its loop. When hundreds of rollouts arrive at once, and
the first are already being served, the last would wait seconds for their turn; so the one socket gets this many handles.
The price, 0.2 ms of CPU for a connection that comes alone, is paid once by clients that keep theirs."""
LINES_OF_A_LOG = 15


class RunningServer(msgspec.Struct, frozen=True):
    base_url: str
    bearer: str
    pid: int
    log: Path


def serve(app: Any, host: str, port: int) -> None:
    """Serves until SIGINT or SIGTERM. One process: the tools answer from memory, and more cores are more servers."""
    log_as_json()
    listening = _listen(host, port)
    if os.environ.get(PARENT_PIPE):
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=HttpWithLine,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        backlog=4096,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=5,
    )
    look_less_often()
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C, which uvicorn passes on once it has shut down
        uvicorn.Server(config).run(sockets=[listening, *(listening.dup() for _ in range(ACCEPTS_PER_TURN - 1))])


@contextlib.contextmanager
def running_server(
    command_for: Callable[[int], Sequence[str]],
    *,
    log: Path | None = None,
    start_seconds: float = 60.0,
    environment: Mapping[str, str] | None = None,
) -> Generator[RunningServer]:
    """Starts `command_for(port)`, which must end up in `serve`, on a free port; yields once /health answers; stops it at the end.

    The bearer is TOOL_BEARER's value, or one made for this server, and reaches the child by its environment. The child
    holds the other end of a pipe from this process and ends when that closes, kill -9 of this process included.
    """
    bearer = os.environ.get(BEARER_VARIABLE) or secrets.token_urlsafe(32)
    port = free_port()
    folder = tempfile.TemporaryDirectory(prefix="rft-server-")
    log = log or Path(folder.name) / "server.log"
    with log.open("wb") as out:
        child = subprocess.Popen(
            [*command_for(port)],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=out,
            env={**os.environ, **(environment or {}), BEARER_VARIABLE: bearer, PARENT_PIPE: "1"},
            start_new_session=True,  # Ctrl-C is for the parent, which may still need its tools to stop cleanly
        )
    server = RunningServer(f"http://127.0.0.1:{port}", bearer, child.pid, log)
    try:
        _wait_until_healthy(child, server, start_seconds)
        yield server
    finally:
        _stop(child)
        folder.cleanup()


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        raise UserError(f"cannot listen on {host}:{port}: {_reason(error)}", "name another port with serving.port=...") from error
    listening.listen(4096)
    return listening


def _reason(error: OSError) -> str:
    return "the port is in use" if error.errno == errno.EADDRINUSE else error.strerror or str(error)


def _end_with_stdin() -> None:
    """The parent's end of the pipe closes when the parent is gone, however it went."""
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _wait_until_healthy(child: subprocess.Popen[bytes], server: RunningServer, seconds: float) -> None:
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        if child.poll() is not None:
            raise UserError(f"the server ended with code {child.returncode} before it was up:\n{_last_lines(server.log)}")
        with contextlib.suppress(OSError):
            with urllib.request.urlopen(f"{server.base_url}/health", timeout=2):
                return
        time.sleep(0.05)
    raise UserError(f"the server gave no answer on {server.base_url}/health within {seconds:g} s:\n{_last_lines(server.log)}")


def _last_lines(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LINES_OF_A_LOG:]
    return "\n".join(f"  | {line}" for line in lines) or "  | (it said nothing)"


def _stop(child: subprocess.Popen[bytes], patience_seconds: float = 10.0) -> None:
    if child.stdin:
        child.stdin.close()
    child.terminate()
    try:
        child.wait(patience_seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
