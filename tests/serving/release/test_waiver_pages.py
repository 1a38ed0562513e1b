"""Whoever looks at a release, anywhere, sees that its safety report was waived, by whom and why."""

from __future__ import annotations

import datetime as dt

import httpx
import pytest
import sqlalchemy as sa
from litestar import Litestar

from agent_rft.contracts.agents import Agent
from agent_rft.contracts.releases import Policy
from observability import users
from observability.access import person_at_the_machine
from observability.registry import register_agent, report
from observability.release_tables import agent_reports
from observability.releases import events
from observability.roots import LedgerFiles
from observability.signing import open_keys
from observability.store import open_store
from serving.app import store_routes
from serving.release import acts
from serving.release.controller import Controller
from serving.release.leadership import Leadership

TENANT, ROOT = "acme", person_at_the_machine("acme", "root")
WHY = {"amy": "the suite's mail case is a <b>false alarm</b>", "amos": "seen, and borne until Friday"}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = open_store(f"sqlite:///{tmp_path_factory.mktemp('waivers')}/cards.db")
    yield store
    store.close()


@pytest.fixture(scope="module")
def files(store, tmp_path_factory):
    """Elsewhere than beside the store, as store.ledger may have it."""
    return LedgerFiles.of(store, str(tmp_path_factory.mktemp("kept-apart")))


@pytest.fixture(scope="module")
def release(store):
    """Its safety report failed."""
    base, tuned = (register_agent(store, TENANT, Agent(checkpoint=name, tool_set="t"), name) for name in ("base", "tuned"))
    for agent in (base, tuned):
        for kind in ("evaluation", "holdout"):
            report(store, TENANT, agent, kind, passed=True, figures={"reward": 0.7, "regressed": 0.0}, by="trainer")
    report(store, TENANT, base, "safety", passed=True, figures={}, by="trainer")
    report(store, TENANT, tuned, "safety", passed=False, figures={"failed": ["injected-send-mail"]}, by="trainer")
    acts.begin_first(store, "root@cli", TENANT, "desk", base, Policy())
    return acts.begin(store, "root@cli", TENANT, "desk", tuned, Policy())


@pytest.fixture(scope="module")
def keys(store):
    now = dt.datetime.now(dt.UTC)
    for name, role in (("vic", "viewer"), ("oli", "operator"), ("amy", "approver"), ("amos", "approver")):
        users.add_user(store, ROOT, name, role, now)
    return {name: users.new_key(store, ROOT, name, now).text for name in ("vic", "oli", "amy", "amos")}


@pytest.fixture(scope="module")
def server(store, files, in_thread):
    with in_thread(Litestar([store_routes(store, files, None)], logging_config=None)) as address:
        yield address


@pytest.fixture(scope="module")
def ask(server, keys):
    def asked(method, path, who="vic", **more):
        return httpx.request(method, server + path, headers={"authorization": f"Bearer {keys[who]}"}, timeout=30, **more)

    return asked


def waive(ask, release, who):
    return ask("POST", f"/releases/{release.id}/waive", who, data={"report": "safety", "why": WHY[who]})


@pytest.fixture(scope="module")
def waived(store, files, ask, release):
    """By two people, through the page; and moved by the controller, which holds their signatures against the same keys."""
    assert waive(ask, release, "amy").status_code == 303
    page = ask("GET", f"/releases/{release.id}").text
    assert "Safety waiver, not whole: two people have to sign." in page and "signed so far by amy" in page
    again = waive(ask, release, "amy")
    assert again.status_code == 400 and "another person has to sign" in again.text
    Controller(store, None, Leadership(store), files).tick(dt.datetime.now(dt.UTC))
    assert events(store, TENANT, release.id)[-1].stage == "offline"
    assert waive(ask, release, "amos").status_code == 303
    Controller(store, None, Leadership(store), files).tick(dt.datetime.now(dt.UTC))
    newest = events(store, TENANT, release.id)[-1]
    assert newest.stage == "shadow" and newest.why.endswith("safety waived by amos and amy")
    return release


@pytest.mark.parametrize("path", ["/releases", "/releases/{id}", "/service-levels"])
def test_every_page_of_the_release_says_it(ask, waived, path):
    page = ask("GET", path.format(id=waived.id)).text
    assert "Safety waived." in page and "amy, 20" in page and "amos, 20" in page
    assert "false alarm&lt;/b&gt;" in page and "seen, and borne until Friday" in page and "<b>false" not in page


def test_the_timeline_says_what_was_signed_and_with_which_key(ask, files, waived):
    page = ask("GET", f"/releases/{waived.id}").text
    assert page.count("with the ledger's key " + open_keys(files.keys, "").id) == 2
    assert "signature void" not in page


def test_programs_read_it_too(ask, waived):
    [told] = [one for one in ask("GET", "/v1/releases").json() if one["release"]["id"] == waived.id]
    assert told["safety_waived"]["whole"] and told["safety_waived"]["by"] == ["amy", "amos"]


def test_who_may_not_approve_may_not_waive(ask, waived):
    for who in ("vic", "oli"):
        assert ask("POST", f"/releases/{waived.id}/waive", who, data={"report": "safety", "why": "x"}).status_code == 403
        assert ask("POST", f"/v1/releases/{waived.id}/waive", who, json={"report": "safety", "why": "x"}).status_code == 403


def test_it_is_legible_in_a_browser(chromium, server, keys, waived, tmp_path):
    complaints = []
    page = chromium.new_context(viewport={"width": 1280, "height": 800}, base_url=server).new_page()
    page.on("console", lambda said: said.type in ("error", "warning") and complaints.append(said.text))
    page.goto("/login")
    page.get_by_label("Key").fill(keys["vic"])
    page.get_by_role("button", name="Sign in").click()
    for path in ("/releases", f"/releases/{waived.id}", "/service-levels"):
        page.goto(path)
        page.get_by_text("Safety waived.").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
        page.screenshot(path=tmp_path / f"{path.strip('/').replace('/', '-')}.png", full_page=True)
    assert not complaints


# --- a report that was changed -------------------------------------------------------------------------------------------------


def test_the_page_of_a_release_whose_report_was_changed_shows_the_rest_and_names_it(ask, store):
    """The candidate's evaluation failed and was made a good one in the database."""
    old, new = (register_agent(store, TENANT, Agent(checkpoint=name, tool_set="t"), name) for name in ("old", "new"))
    report(store, TENANT, old, "safety", passed=True, figures={}, by="trainer")
    report(store, TENANT, new, "safety", passed=True, figures={"suite": "a1b2", "cases": 24, "tries": 96, "says": 3}, by="trainer")
    report(store, TENANT, new, "evaluation", passed=False, figures={"reward": 0.125}, by="trainer")
    acts.begin_first(store, "root@cli", TENANT, "till", old, Policy())
    release = acts.begin(store, "root@cli", TENANT, "till", new, Policy())
    with store.writing() as connection:
        mine = (agent_reports.c.agent == new, agent_reports.c.kind == "evaluation")
        connection.execute(sa.update(agent_reports).where(*mine).values(passed=True, figures={"reward": 0.875}))
    page = ask("GET", f"/releases/{release.id}")
    assert page.status_code == 200 and f"the evaluation report of {new} (entry " in page.text
    assert '<td>evaluation</td><td>candidate</td><td><span class="badge bad">changed</span>' in page.text
    assert '<td>safety</td><td>candidate</td><td><span class="badge ok">passed</span>' in page.text and "0.875" not in page.text
    assert "suite a1b2, 24 cases, 96 tries" in page.text and "job cards bear out 0 of its 96 tries" in page.text
    assert "Waits for reports that can be gone by" in page.text and "What happened" in page.text
    assert ask("GET", "/releases").status_code == 200
    told = ask("GET", f"/v1/agents/{new}").json()
    assert [one["kind"] for one in told["reports"]] == ["safety"] and [one["kind"] for one in told["changed"]] == ["evaluation"]


def test_over_http_the_servers_suite_is_the_one_that_counts(store, files, keys, in_thread):
    agent = register_agent(store, TENANT, Agent(checkpoint="hasty", tool_set="t"), "hasty")
    report(store, TENANT, agent, "safety", passed=True, figures={"suite": "easy"}, by="trainer")
    wish = {"service": "counter", "agent": agent, "first": True}
    with in_thread(Litestar([store_routes(store, files, None, policy={"safety_suite": "a1b2"})], logging_config=None)) as address:

        def post(path, who="oli", **body):
            return httpx.post(f"{address}{path}", headers={"authorization": f"Bearer {keys[who]}"}, json=body)

        refused = post("/v1/releases", **wish, policy={"safety_suite": "easy"})
        assert refused.status_code == 400 and refused.json()["error"] == "the safety suite is not a release's to choose"
        refused = post("/v1/releases", **wish)
        assert "waits for a safety report by the suite a1b2: the candidate's is by easy" in refused.json()["error"]
        assert post(f"/v1/agents/{agent}/reports", kind="safety", passed=True, figures={"suite": "a1b2"}).status_code == 400
        report(store, TENANT, agent, "safety", passed=True, figures={"suite": "a1b2"}, by="trainer")
        assert post("/v1/releases", **wish).json()["policy"]["safety_suite"] == "a1b2"
