"""The inbox in a real browser: a call waits, a person allows it, and it is made once; and what the API tells programs of the same."""

from __future__ import annotations

import datetime as dt
import re

import httpx
import msgspec
import pytest

from agent_rft.contracts.messages import Message, ToolCall, ToolSpec
from agent_rft.contracts.rollouts import Limits, Rollout, ToolResult, Turn
from observability import approvals, ledger, runs, users
from observability.access import person_at_the_machine
from observability.accesses import reading
from observability.runs import Run
from observability.store import open_store
from serving.app import create_app
from serving.gateway.events import Story
from serving.production_tools import Rules
from serving.tools.outbox import OutboxTools

BEARER = "the-gateways"
NOW = dt.datetime.now(dt.UTC)
HOSTILE = "<script>document.title='owned'</script>\u202e"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = open_store(f"sqlite:///{tmp_path_factory.mktemp('approvals')}/cards.db")
    yield store
    store.close()


@pytest.fixture(scope="module")
def keys(store):
    made = {}
    for tenant, names in {"acme": {"amy": "approver", "vic": "viewer"}, "beta": {"bea": "approver"}}.items():
        me = person_at_the_machine(tenant, "root")
        for name, role in names.items():
            users.add_user(store, me, name, role, NOW)
            made[name] = users.new_key(store, me, name, NOW).text
    return made


@pytest.fixture(scope="module")
def outbox(tmp_path_factory):
    return tmp_path_factory.mktemp("outbox")


@pytest.fixture(scope="module")
def server(store, outbox, in_thread):
    rules = Rules(high_impact=frozenset({"publish"}), approval=dt.timedelta(minutes=10))
    with in_thread(create_app(OutboxTools(outbox), {}, BEARER, store=store, production=rules)) as address:
        yield address


@pytest.fixture
def publish(server):
    def send(call_id, name, text="All is well.", by="bob"):
        body = {"arguments": {"name": name, "text": text}, "call_id": call_id, "rollout_id": "run-1"}
        headers = {"authorization": f"Bearer {BEARER}", "x-rft-tenant": "acme", "x-rft-caller": by}
        return httpx.post(f"{server}/tools/publish", json=body, headers=headers, timeout=20)

    return send


@pytest.fixture
def ask(server, keys):
    def send(method, path, who="amy", **more):
        return httpx.request(method, server + path, headers={"authorization": f"Bearer {keys[who]}"}, timeout=20, **more)

    return send


def parked(store, approval):
    """The run that waits for it, as a gateway leaves it."""
    turns = [
        Turn("I look first.", calls=(ToolCall("c1", "search", {"query": "Atlas"}),), results={"c1": ToolResult("c1", "margin: 28.7%")}),
        Turn(f"Now I publish. {HOSTILE}", calls=(ToolCall("p1", "publish", {"name": "one.md"}),)),
    ]
    rollout = Rollout("run-1", (Message("user", "ours"),), (ToolSpec("publish", "", {}),), Limits(), turns=turns)
    story = Story(rollout=rollout, said=(Message("user", "Tell everybody Atlas's margin."),), item={}, metadata={}, caller="bob")
    run = Run(
        tenant="acme", rollout_id="run-1", client_id=None, service="desk", session="s", agent="a", arm="live", release=0, state="parked",
        request={}, rollout=msgspec.msgpack.encode(story), waits_for=approval, owner="", lease_until=NOW, at=NOW, changed_at=NOW,
    )  # fmt: skip
    with store.writing() as connection:
        runs.accept(connection, run)


def test_a_call_waits_is_approved_in_the_page_and_is_made_once(chromium, server, keys, store, outbox, publish):
    number = publish("p1", "one.md").json()["approval"]["id"]
    parked(store, number)
    complaints = []
    page = chromium.new_context(viewport={"width": 1366, "height": 768}, base_url=server).new_page()
    page.set_default_timeout(8000)
    page.on("console", lambda told: told.type in ("error", "warning") and complaints.append(told.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto("/login?next=/approvals")
    page.get_by_label("Key").fill(keys["amy"])
    page.get_by_role("button", name="Sign in").click()
    wish = page.get_by_label(f"Approval {number}", exact=True)
    wish.wait_for()
    assert re.fullmatch(r"0\d:\d\d left", wish.locator("[data-until]").inner_text())
    words = wish.inner_text()
    for seen in ("publish", "for bob", "one.md", "All is well.", "Tell everybody Atlas's margin.", "margin: 28.7%", "Now I publish."):
        assert seen in words, seen
    assert page.title() == "Approvals" and "<script>" in words
    assert wish.get_by_role("link", name="run-1").get_attribute("href") == "/cards/run-1"
    wish.get_by_role("button", name="Approve").click()
    page.get_by_role("status").wait_for()
    assert page.get_by_text("Nothing waits.").is_visible() and page.locator("table .badge").inner_text() == "approved"
    assert not list(outbox.iterdir()), "the page allows; the run makes its call itself"
    assert publish("p1", "one.md", "All is lost.").status_code == 409, "with other arguments it allows nothing"
    assert publish("p1", "one.md").json() == publish("p1", "one.md").json() == {
        "output": "Published one.md, 12 bytes.", "call_id": "p1", "error": None,
    }  # fmt: skip
    assert [path.name for path in outbox.iterdir()] == ["one.md"]
    page.reload()
    assert page.locator("table .badge").inner_text() == "made"
    assert [one.action for one in reading(store, "acme", rollout_id="run-1", by="amy")][-2:] == ["approve call", "read approvals"]
    assert list(ledger.verify(store, "acme")) == [] and complaints == []
    page.context.close()


def test_a_decision_over_the_api_and_who_may_take_one(ask, publish, keys, store):
    number = publish("api", "two.md").json()["approval"]["id"]
    path = f"/v1/approvals/{number}"
    assert ask("GET", path, "vic").json()["state"] == "waiting"
    assert ask("POST", path, "vic", json={"decision": "approve"}).status_code == 403
    assert ask("GET", path, "bea").status_code == ask("POST", path, "bea", json={"decision": "approve"}).status_code == 404
    assert ask("POST", path, json={"decision": "maybe"}).status_code == 400
    assert "without a reason" in ask("POST", path, json={"decision": "refuse"}).json()["faults"][0]["what"]
    assert ask("POST", path, json={"decision": "refuse", "note": "no"}).json()["state"] == "refused"
    assert ask("POST", path, json={"decision": "approve"}).status_code == 409
    assert publish("api", "two.md").json()["output"] == "Error: amy refused this call: no"


def test_nobody_decides_for_their_own_agent(ask, publish):
    number = publish("own", "three.md", by="Amy").json()["approval"]["id"]
    told = ask("POST", f"/v1/approvals/{number}", json={"decision": "approve"})
    assert told.status_code == 400 and "your own agent" in told.json()["error"]
    page = ask("GET", "/approvals").text
    assert "somebody else has to decide" in page
    refused = ask("POST", f"/approvals/{number}", data={"decision": "approve"})
    assert refused.status_code == 400 and "your own agent" in refused.text


def test_the_list_goes_on_page_by_page(ask, publish, store):
    for number in range(3):
        publish(f"list-{number}", "four.md")
    first = ask("GET", "/v1/approvals?show=all&limit=2").json()
    second = ask("GET", f"/v1/approvals?show=all&limit=2&before={first['next']}").json()
    ids = [one["approval"]["id"] for one in (*first["approvals"], *second["approvals"])]
    assert ids == [one.id for one in approvals.listed(store, "acme")][:4]
    assert [one["state"] for one in ask("GET", "/v1/approvals").json()["approvals"]].count("waiting") >= 3
    assert ask("GET", "/approvals?before=3").status_code == 200
    assert ask("GET", "/approvals", "vic").status_code == 403
