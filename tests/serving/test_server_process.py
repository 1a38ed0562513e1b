"""The server as a process: how it starts, how it ends, and what it says when it cannot."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import httpx
import pytest

from agent_rft.commands import serve as commands
from agent_rft.contracts.errors import UserError
from agent_rft.datasets.filings import TOOLS
from observability.store import open_store
from serving.app import create_app
from serving.server import free_port, running_server, serve
from serving.tools.corpus import CorpusTools

TOY = str(Path(__file__).parent / "toy_server.py")


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


def gone_within(pid, seconds):
    give_up = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < give_up:
        time.sleep(0.02)
    return not alive(pid)


def test_it_is_up_inside_the_block_and_gone_after(monkeypatch):
    monkeypatch.delenv("TOOL_BEARER", raising=False)
    with running_server(lambda port: [sys.executable, TOY, str(port)]) as server:
        assert len(server.bearer) > 30  # made for this server
        assert urllib.request.urlopen(f"{server.base_url}/health").status == 200
    assert not alive(server.pid)


def test_a_server_whose_database_does_not_come_ends_and_says_so(monkeypatch):
    """Without a store /v1/traces were a 404, upon which exporters throw their traces away."""
    monkeypatch.setattr(commands, "PATIENCE", 0.3)
    monkeypatch.setattr(commands, "RETRY_SECONDS", 0.1)
    nobody = f"store.url=postgresql://someone@127.0.0.1:{free_port()}/cards"
    started = time.monotonic()
    with pytest.raises(UserError, match=r"store at postgresql://.* cannot be opened(.|\n)*server up\?") as ended:
        commands.serve_forever(commands.settings_of("research_tiny", [nobody], None, free_port()))
    assert ended.value.exit_code == 2 and 0.3 <= time.monotonic() - started < 10


def test_health_says_whether_the_store_answers(tmp_path, in_thread):
    store = open_store(f"sqlite:///{tmp_path}/cards.db")
    with in_thread(create_app(CorpusTools({"a": "b"}, TOOLS), {}, None, store=store)) as address:
        assert httpx.get(f"{address}/health").json()["store"] == "ok"
        store.close()
        for file in tmp_path.glob("cards.db*"):
            file.unlink()
        tmp_path.rmdir()
        assert httpx.get(f"{address}/health").json()["store"] == "away"


def test_the_bearer_of_the_environment_is_used(monkeypatch):
    monkeypatch.setenv("TOOL_BEARER", "from-outside")
    with running_server(lambda port: [sys.executable, TOY, str(port)]) as server:
        request = urllib.request.Request(f"{server.base_url}/tools", headers={"Authorization": "Bearer from-outside"})
        assert server.bearer == "from-outside" and urllib.request.urlopen(request).status == 200


def test_the_child_ends_when_its_parent_is_killed():
    parent_program = (
        "import sys, time; from serving.server import running_server\n"
        f"with running_server(lambda port: [sys.executable, {TOY!r}, str(port)]) as server:\n"
        "    print(server.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", parent_program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    child = int(parent.stdout.readline())
    assert alive(child)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert gone_within(child, 10)


def test_a_child_that_cannot_start_is_reported_with_its_last_words():
    dying = [sys.executable, "-c", "print('corpus folder data/x is missing'); raise SystemExit(2)"]
    with pytest.raises(UserError, match=r"(?s)ended with code 2 before it was up.*corpus folder data/x is missing"):
        with running_server(lambda _: dying):
            pass


def test_a_child_that_never_answers_is_given_up():
    with pytest.raises(UserError, match=r"gave no answer on http://127\.0\.0\.1:\d+/health within 0\.3 s"):
        with running_server(lambda _: [sys.executable, "-c", "import time; time.sleep(60)"], start_seconds=0.3):
            pass


def test_a_port_in_use_is_named_with_the_cure():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError) as caught:
            serve(None, "127.0.0.1", port)
    assert str(caught.value) == f"cannot listen on 127.0.0.1:{port}: the port is in use\n  cure: name another port with serving.port=..."


def started(*faults):
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, TOY, str(port), *faults], env={**os.environ, "TOOL_BEARER": "x"}, stderr=subprocess.PIPE, text=True
    )
    for _ in range(400):
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
            break
        time.sleep(0.05)
    return server, f"http://127.0.0.1:{port}"


def test_ctrl_c_stops_it_without_a_stack_trace():
    server, _ = started()
    server.send_signal(signal.SIGINT)
    said = server.communicate(timeout=20)[1]
    assert server.returncode == 0 and "Traceback" not in said


def test_what_fails_is_logged_as_json_and_what_goes_well_is_not():
    server, url = started("failure_rate=1")
    for path in ("/search", "/health"):
        body = b'{"arguments": {"query": "x"}, "call_id": "c7", "rollout_id": "r7"}' if path == "/search" else None
        with contextlib.suppress(urllib.error.HTTPError):
            urllib.request.urlopen(urllib.request.Request(url + path, body, {"Authorization": "Bearer x"}))
    server.terminate()
    lines = [json.loads(line) for line in server.communicate(timeout=20)[1].splitlines()]
    assert not [line for line in lines if "/health" in str(line)]
    [failure] = [line for line in lines if line["event"] == "tool_failed"]
    assert (failure["tool"], failure["attempts"], failure["rollout_id"], failure["call_id"], failure["level"]) == (
        "search",
        3,
        "r7",
        "c7",
        "error",
    )
    assert "search failed on purpose" in failure["exception"]
