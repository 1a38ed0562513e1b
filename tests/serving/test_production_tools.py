"""The tool server in production, over real HTTP on both databases: who may call what, how much, once, and what waits for a person."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import runpy
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from agent_rft.contracts.errors import InfraError, NeedsApproval
from agent_rft.contracts.messages import ToolCall, ToolSpec
from agent_rft.contracts.rollouts import ToolResult
from agent_rft.datasets.filings import TOOLS
from agent_rft.rollouts.tool_client import HttpTools
from observability import approvals, users
from observability.access import ROLES, Caller, person_at_the_machine
from observability.store import Store, migrate, open_store
from serving import production_tools
from serving.app import create_app
from serving.production_tools import Rules
from serving.server import running_server
from serving.tools.context import current_call, seconds_left
from serving.tools.corpus import CorpusTools
from serving.tools.joined import JoinedTools
from serving.tools.notebook import NotebookTools
from serving.tools.outbox import OutboxTools

BEARER = "the-gateways"
NOW = dt.datetime.now(dt.UTC)
SERVER = Path(__file__).parent / "production_server.py"
ANN = Caller("acme", "ann", "approver", ROLES["approver"], "k1")


class Probe:
    """Waits where it is told to, counts its calls, and tells what it knows of each."""

    specs = (ToolSpec("probe", "Tells.", {"type": "object", "properties": {"wait": {"type": "boolean"}}}), ToolSpec("count", "Counts.", {}))
    version = "1"
    blocks = True
    changes = frozenset({"count"})

    def __init__(self) -> None:
        self.go = threading.Event()
        self.calls: list[str] = []

    def call(self, name, arguments):
        key = current_call.get()
        assert key is not None
        self.calls.append(key.call_id)
        if arguments.get("wait"):
            assert self.go.wait(10)
        if arguments.get("fail"):
            raise OSError("the printer burns")
        return json.dumps([*key, seconds_left() is not None and round(seconds_left() or 0)]), None


class World(NamedTuple):
    url: str
    store: Store
    probe: Probe
    outbox: Path
    keys: dict[str, str]
    client: httpx.Client

    def send(self, tool, arguments, call_id="c1", rollout_id="r1", *, key="", **headers):
        sent = {"authorization": f"Bearer {self.keys.get(key, key or BEARER)}"}
        sent |= {"x-rft-tenant": "acme", "x-rft-caller": "bob"} if not key else {}
        body = {"arguments": arguments, "call_id": call_id, "rollout_id": rollout_id}
        return self.client.post(f"{self.url}/tools/{tool}", json=body, headers=sent | headers)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def world(request, tmp_path_factory, in_thread):
    folder = tmp_path_factory.mktemp("production")
    url = request.getfixturevalue("postgres")() if request.param == "postgresql" else f"sqlite:///{folder}/cards.db"
    migrate(url)
    store, keys = open_store(url), {}
    for tenant in ("acme", "beta"):
        me = person_at_the_machine(tenant, "root")
        for name, role, scopes in (("agent", "agent", None), ("search", "agent", ["tool:search"]), ("vic", "viewer", None)):
            users.add_user(store, me, name, role, NOW)
            keys[f"{tenant}-{name}"] = users.new_key(store, me, name, NOW, scopes).text
    (outbox := folder / "outbox").mkdir()
    probe = Probe()
    tools = JoinedTools([CorpusTools({"filings/a.html": "Atlas margin 28.7%"}, TOOLS), NotebookTools(), OutboxTools(outbox), probe])
    rules = Rules(in_flight=2, queue=1, per_minute=40, high_impact=frozenset({"publish"}), approval=dt.timedelta(minutes=10))
    with in_thread(create_app(tools, {}, BEARER, store=store, production=rules, call_deadline_seconds=8.0)) as address:
        with httpx.Client(timeout=20) as client:
            yield World(address, store, probe, outbox, keys, client)
    store.close()


def said(answer):
    return answer.status_code, answer.json().get("output") or answer.json().get("detail") or answer.json()["infra_error"]["what"]


# --- who ------------------------------------------------------------------------------------------------------------------------


def test_a_key_calls_what_its_scopes_say_and_the_rest_is_refused_as_policy(world):
    assert world.send("search", {"query": "Atlas"}, key="acme-agent").status_code == 200
    assert world.send("search", {"query": "Atlas"}, key="acme-search").status_code == 200
    assert said(world.send("read", {"path": "x"}, key="acme-search")) == (403, "this key may not call read; it may call search")
    assert said(world.send("read", {"path": "x"}, key="acme-vic")) == (
        403, "this key may not call read; one whose role or key has 'run' may",
    )  # fmt: skip


def test_wrong_keys_and_none_are_refused(world):
    assert said(world.send("search", {}, key="rft_00_00"))[0] == 401
    assert httpx.post(f"{world.url}/tools/search", json={"call_id": "c"}).status_code == 401
    assert httpx.get(f"{world.url}/tools").status_code == 401
    me = person_at_the_machine("acme", "root")
    made = users.new_key(world.store, me, "agent", NOW)
    users.revoke_key(world.store, me, made.id, NOW)
    assert said(world.send("search", {}, key=made.text))[0] == 401


def test_the_servers_own_bearer_speaks_for_a_tenant_that_it_names(world):
    for headers, told in (({"x-rft-tenant": ""}, "says for which tenant"), ({"x-rft-tenant": "a%20%20b"}, "'a  b' is no name")):
        status, what = said(world.send("search", {"query": "x"}, **headers))
        assert status == 400 and told in what
    told = json.loads(world.send("probe", {}, "c-1", "r-1", **{"x-rft-tenant": "caf%C3%A9"}).json()["output"])
    assert told[:3] == ["r-1", "c-1", "caf\u00e9"]


def test_azures_calls_which_name_no_tenant_are_not_served(world):
    call = {"type": "function_call", "id": "1", "call_id": "c", "name": "publish", "arguments": "{}"}
    assert httpx.post(f"{world.url}/azure/tools", json=call, headers={"authorization": f"Bearer {BEARER}"}).status_code == 404


# --- how much, how long ------------------------------------------------------------------------------------------------------------


def test_what_is_too_much_for_one_tenants_tool_is_shed_and_nobody_elses_call_waits(world):
    world.probe.go.clear()
    with ThreadPoolExecutor(5) as pool:
        asked = [pool.submit(world.send, "probe", {"wait": True}, f"w{n}", "burst") for n in range(3)]
        _until(lambda: [call for call in world.probe.calls if call.startswith("w")].__len__() == 2)
        time.sleep(0.2)  # the third stands in the queue
        shed = world.send("probe", {"wait": True}, "w3", "burst")
        assert (
            said(shed) == (429, "2 calls of probe are in hand for acme, and 1 wait; try again in 1 s")
            and shed.headers["retry-after"] == "1"
        )
        assert world.send("probe", {}, "other", key="beta-agent").status_code == 200
        world.probe.go.set()
        assert [one.result().status_code for one in asked] == [200, 200, 200]


def test_changes_of_one_tenant_that_hang_take_no_place_from_another(world, monkeypatch):
    """A call that nobody waits for any more still runs; so many may, of all tenants, and fewer of one."""
    monkeypatch.setattr(production_tools, "MOST_CHANGING", 3)
    monkeypatch.setattr(production_tools, "MOST_CHANGING_OF_ONE", 2, raising=False)
    world.probe.go.clear()
    hang = [world.send("count", {"wait": True}, f"h{n}", "hang", **{"x-rft-deadline": "0.3"}).status_code for n in range(3)]
    other = world.send("count", {}, "h0", "hang", key="beta-agent").status_code
    world.probe.go.set()
    assert (hang, other) == ([503, 503, 429], 200)


def test_a_rate_is_kept_for_each_tenant_and_tool(world):
    codes = [world.send("recall", {}, f"n{n}", "fast", key="acme-agent").status_code for n in range(50)]
    assert codes[:40] == [200] * 40 and 429 in codes[40:], "40 at once, then one each second and a half"
    assert world.send("recall", {}, "n", "fast", key="beta-agent").status_code == 200
    assert world.send("search", {"query": "x"}, "n", "fast", key="acme-agent").status_code == 200


def test_the_callers_deadline_reaches_the_tool_and_ends_the_call(world):
    told = world.send("probe", {}, "d1", "deadline", **{"x-rft-deadline": "3"}).json()["output"]
    assert json.loads(told) == ["deadline", "d1", "acme", 3]
    world.probe.go.clear()
    started = time.monotonic()
    assert said(world.send("probe", {"wait": True}, "d2", "deadline", **{"x-rft-deadline": "0.4"})) == (503, "no answer within 0.4 s")
    assert time.monotonic() - started < 10
    world.probe.go.set()
    assert said(world.send("probe", {}, **{"x-rft-deadline": "soon"}))[0] == 400


# --- how often --------------------------------------------------------------------------------------------------------------------


def test_a_call_that_only_reads_runs_once_for_two_deliveries_and_another_body_is_refused(world):
    first = world.send("probe", {"n": 1}, "same", "idem").json()
    assert world.send("probe", {"n": 1}, "same", "idem").json() == first and world.probe.calls.count("same") == 1
    assert said(world.send("probe", {"n": 2}, "same", "idem"))[0] == 409
    assert said(world.send("search", {"query": "x"}, "same", "idem"))[0] == 409
    assert world.send("probe", {"n": 2}, "same", "idem", key="beta-agent").status_code == 200, "another tenant's ids are others"


def test_what_changes_something_runs_once_and_is_answered_again_from_the_store(world):
    world.probe.go.clear()
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(world.send, "count", {"wait": True}, "one", "change") for _ in range(2)]
        _until(lambda: "one" in world.probe.calls)
        world.probe.go.set()
        first, second = (one.result() for one in both)
    assert first.json() == second.json() == world.send("count", {"wait": True}, "one", "change").json()
    assert first.status_code == 200 and world.probe.calls.count("one") == 1
    assert said(world.send("count", {}, "one", "change"))[0] == 409
    assert said(world.send("count", {}, "two", ""))[0] == 400


def test_a_change_that_failed_halfway_is_never_made_again(world):
    for _ in range(2):
        status, what = said(world.send("count", {"fail": True}, "bad", "change"))
        assert status == 503 and ("a person has to look" in what or "may still run there" in what)
    assert world.probe.calls.count("bad") == 1


# --- what waits for a person -----------------------------------------------------------------------------------------------------------


def publish(world, call_id, name="note.md", text="All is well.", **more):
    return world.send("publish", {"name": name, "text": text}, call_id, "pub", **more)


def test_a_high_impact_call_waits_is_allowed_and_is_made_once(world):
    first = publish(world, "p1", "one.md")
    approval = first.json()["approval"]
    assert first.status_code == 428 and publish(world, "p1", "one.md").json()["approval"] == approval
    assert not list(world.outbox.iterdir())
    found = approvals.one(world.store, "acme", approval["id"])
    assert (found.by, found.arguments) == ("bob", {"name": "one.md", "text": "All is well."})
    approvals.decide(world.store, ANN, approval["id"], "approve", "", dt.datetime.now(dt.UTC))
    assert said(publish(world, "p1", "one.md", "All is lost."))[0] == 409
    with ThreadPoolExecutor(3) as pool:
        told = {said(one) for one in pool.map(lambda _: publish(world, "p1", "one.md"), range(3))}
    assert told == {(200, "Published one.md, 12 bytes.")}
    assert [path.name for path in world.outbox.iterdir()] == ["one.md"]
    assert approvals.state(world.store, "acme", approval["id"]) == "used"
    assert publish(world, "p2", "one.md").status_code == 428, "an approval is for one call, however alike the next is"


def test_a_refused_call_is_answered_with_the_reason(world):
    number = publish(world, "p3").json()["approval"]["id"]
    approvals.decide(world.store, ANN, number, "refuse", "not before Monday", dt.datetime.now(dt.UTC))
    answer = publish(world, "p3").json()
    assert (answer["output"], answer["error"]) == ("Error: ann refused this call: not before Monday", "policy_denied")


@pytest.mark.parametrize("name", ["../out.md", "/etc/passwd", "a/../../b", ".ssh", "a\\b", "", "nul\0"])
def test_a_path_that_leads_out_is_refused_before_anybody_is_asked(world, name):
    before = len(approvals.listed(world.store, "acme"))
    answer = publish(world, f"path-{name!r}", name).json()
    assert answer["error"] in ("policy_denied", "model_error") and len(approvals.listed(world.store, "acme")) == before


@pytest.mark.parametrize("url", ["http://169.254.169.254/latest/meta-data", "http://localhost:8080/v1/keys", "file:///etc/shadow"])
def test_an_address_inside_among_the_arguments_reaches_no_tool(world, url):
    for tool, arguments in (
        ("read", {"path": url}),
        ("publish", {"name": "x.md", "text": f"see {url}"}),
        ("probe", {"deep": [{"er": url}]}),
    ):
        answer = world.send(tool, arguments, f"ssrf-{tool}-{url}", "ssrf").json()
        assert answer["error"] == "policy_denied" and "inside this system" in answer["output"]


# --- by the client of the rollouts -----------------------------------------------------------------------------------------------------


def test_the_client_speaks_for_a_tenant_and_tells_what_waits(world):
    async def calls():
        async with HttpTools(world.url, BEARER, retries=0) as tools:
            mine = tools.on_behalf_of("acme", "Zo\u00eb")
            found = await mine.call("cli", ToolCall("c1", "search", {"query": "Atlas"}))
            with pytest.raises(NeedsApproval) as waits:
                await mine.call("cli", ToolCall("c2", "publish", {"name": "z.md", "text": "hello"}))
            with pytest.raises(InfraError, match="409"):
                await mine.call("cli", ToolCall("c1", "search", {"query": "Other"}))
            with pytest.raises(InfraError, match="for which tenant"):
                await tools.call("cli", ToolCall("c3", "search", {"query": "Atlas"}))
            return found, waits.value

    found, waits = asyncio.run(calls())
    assert isinstance(found, ToolResult) and found.error is None and "filings/a.html" in found.output
    asked = approvals.one(world.store, "acme", waits.approval_id)
    assert (asked.by, asked.expires_at) == ("Zo\u00eb", waits.expires_at)


# --- kill -9 --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_server_that_is_killed_within_a_change_leaves_it_made_once_and_says_that_nobody_knows(kind, request, tmp_path, in_thread):
    url = request.getfixturevalue("postgres")() if kind == "postgresql" else f"sqlite:///{tmp_path}/cards.db"
    migrate(url)
    lines, command = tmp_path / "lines.txt", lambda port: [sys.executable, str(SERVER), str(port), url, str(lines)]

    def send(address, bearer, seconds, call_id):
        headers = {"authorization": f"Bearer {bearer}", "x-rft-tenant": "acme", "x-rft-caller": "bob"}
        body = {"arguments": {"line": call_id, "seconds": seconds}, "call_id": call_id, "rollout_id": "r"}
        return httpx.post(f"{address}/tools/append", json=body, headers=headers, timeout=10)

    store = open_store(url)
    with running_server(command) as server:
        for call_id, seconds in (("done", 0), ("torn", 60)):
            number = send(server.base_url, server.bearer, seconds, call_id).json()["approval"]["id"]
            approvals.decide(store, ANN, number, "approve", "", dt.datetime.now(dt.UTC))
        assert said(send(server.base_url, server.bearer, 0, "done")) == (200, "wrote done")
        with ThreadPoolExecutor(1) as pool:
            cut = pool.submit(send, server.base_url, server.bearer, 60, "torn")
            _until(lambda: lines.read_text() == "done\ntorn\n")
            os.kill(server.pid, 9)
            assert isinstance(cut.exception(), httpx.TransportError)
    tools = runpy.run_path(str(SERVER))["Appending"](lines)
    rules = Rules(high_impact=frozenset({"append"}))
    with in_thread(create_app(tools, {}, BEARER, store=store, production=rules, call_deadline_seconds=0.1)) as address:
        assert said(send(address, BEARER, 0, "done")) == (200, "wrote done"), "answered as before, from the store"
        for _ in range(2):
            status, what = said(send(address, BEARER, 60, "torn"))
            assert status == 503 and "never ended" in what and "a person has to look" in what
    assert lines.read_text() == "done\ntorn\n"
    store.close()


def _until(holds):
    give_up = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.01)
