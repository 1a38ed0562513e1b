"""The pages for whoever runs services, in a real browser, over releases that were moved by the real controller."""

from __future__ import annotations

import datetime as dt
import os
import random
import re
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from litestar import Litestar

from agent_rft.contracts.agents import Agent
from agent_rft.contracts.releases import Policy, Release, Turn
from observability import users
from observability.access import person_at_the_machine
from observability.accesses import reading
from observability.registry import register_agent, report
from observability.releases import events, routes
from observability.roots import LedgerFiles
from observability.store import Store, open_store
from observability.turns import add_turns
from serving.app import store_routes
from serving.release import acts
from serving.release.controller import Controller
from serving.release.leadership import Leadership
from serving.release.monitors import look_at

traffic = runpy.run_path(str(Path(__file__).parent / "sample_traffic.py"))
TENANT = "acme"
ROLES = {"vic": "viewer", "oli": "operator", "ola": "operator", "amy": "admin", "amos": "admin"}
RULES: dict[str, Any] = {
    "idle_seconds": 5,
    "shadow_sessions": 2,
    "sessions_per_step": 500,
    "steps": (0.25, 1.0),
    "needs": ("evaluation", "safety"),
}
SHOTS = os.environ.get("PAGES_SHOTS")
"""A folder that pictures of the pages go to, for people and for the documentation."""


class World:
    """Two services: of `research` a candidate is on trial, of `desk` one was rolled back by its rewards."""

    def __init__(self, store: Store) -> None:
        self.store, self.now, self.number = store, dt.datetime.now(dt.UTC), 0
        traffic["trained"](store)
        traffic["lived"](store, "week", traffic["LAST_WEEK"], 120, traffic["Habits"](), 3)
        traffic["first_release"](store)
        [route] = routes(store)
        look_at(store, route, traffic["NOW"])
        traffic["lived"](store, "now", traffic["THIS_WEEK"], 250, traffic["Habits"](words=32), 4)
        look_at(store, route, traffic["NOW"])
        base = register_agent(store, TENANT, Agent(checkpoint="run-0/step-9", tool_set="t1"), "desk base")
        report(store, TENANT, base, "safety", passed=True, figures={}, by="trainer")
        acts.begin_first(store, "ann", TENANT, "desk", base, Policy())
        for route in routes(store):
            report(store, TENANT, route.live, "evaluation", passed=True, figures={"reward": 0.25}, by="trainer")
        self.open = self.on_trial("research", "tuned at step 90", mean=0.72)
        self.back = self.on_trial("desk", "desk hasty <b>", mean=0.25)

    def on_trial(self, service: str, name: str, mean: float) -> Release:
        agent = register_agent(self.store, TENANT, Agent(checkpoint="run-1/step-90", tool_set="t1", system_prompt=service), name, "run-1")
        report(self.store, TENANT, agent, "evaluation", passed=True, figures={"reward": mean, "regressed": 0.05}, by="trainer")
        report(self.store, TENANT, agent, "safety", passed=True, figures={}, by="trainer")
        release = acts.begin(self.store, "ann", TENANT, service, agent, Policy(**RULES))
        control, rng = Controller(self.store, None, Leadership(self.store)), random.Random(8)
        control.tick(self.now)
        for shadow, sessions in ((True, 3), (False, 90)):
            for _ in range(sessions):
                self.session(release, "candidate", rng.random() < mean, shadow)
                self.session(release, "live", rng.random() < 0.7, shadow)
            for _ in range(3):
                self.now += dt.timedelta(seconds=8)
                control.tick(self.now)
        return release

    def session(self, release: Release, arm: str, good: bool, shadow: bool) -> None:
        self.number += 1
        self.now += dt.timedelta(seconds=0.01)
        add_turns(
            self.store,
            [
                Turn(
                    tenant=TENANT, release=release.id, rollout_id=f"r{self.number}", session=f"s{self.number}", arm=arm, shadow=shadow,  # pyright: ignore[reportArgumentType]
                    at=self.now, seconds=1.2, failed=False, tool_calls=2, tool_failures=0, tokens=40, to_grade=True,
                    reward=float(good), holdout=float(good), graded_at=self.now,
                )
            ],
        )  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    store = open_store(f"sqlite:///{tmp_path_factory.mktemp('ops')}/cards.db")
    yield World(store)
    store.close()


@pytest.fixture(scope="module")
def keys(world: World) -> dict[str, str]:
    by, now = person_at_the_machine(TENANT, "setup"), dt.datetime.now(dt.UTC)
    for name, role in ROLES.items():
        users.add_user(world.store, by, name, role, now)
    return {name: users.new_key(world.store, by, name, now).text for name in ROLES}


@pytest.fixture(scope="module")
def server(world: World, in_thread: Any) -> Iterator[str]:
    app = Litestar([store_routes(world.store, LedgerFiles.of(world.store, None), None)], logging_config=None)
    with in_thread(app) as address:
        yield address


@pytest.fixture
def ask(server: str, keys: dict[str, str]) -> Callable[..., httpx.Response]:
    def asked(method: str, path: str, who: str = "oli", **more: Any) -> httpx.Response:
        return httpx.request(method, server + path, headers={"authorization": f"Bearer {keys[who]}"}, timeout=30, **more)

    return asked


@pytest.fixture
def signed_in(sign_in_at: Callable[..., Any], server: str, keys: dict[str, str]) -> Callable[..., Any]:
    def sign_in(who: str = "oli", scheme: str = "light", path: str = "/releases") -> Any:
        page = sign_in_at(server, keys[who], path, color_scheme=scheme, viewport={"width": 1280, "height": 800})
        page.get_by_role("button", name="Sign in").click()
        page.locator("main h1").wait_for()
        return page

    return sign_in


def shot(page: Any, name: str) -> None:
    if SHOTS:
        page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_legible_in_both_schemes(signed_in: Any, world: World, hard_to_read: Any, scheme: str) -> None:
    """Nothing is moved aside at 1280, and words stand out from their ground by 4.5 to 1, as WCAG asks for."""
    page = signed_in("amy", scheme)
    for path in ("/releases", f"/releases/{world.open.id}", f"/releases/{world.back.id}", "/drift", "/service-levels"):
        page.goto(path)
        shot(page, f"{path.strip('/').replace('/', '-')}-{scheme}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 1280, path
        assert hard_to_read(page) == [], path


@pytest.mark.parametrize("width", [480, 640])
def test_a_phone_and_a_page_at_twice_its_size_scroll_tables_and_not_the_page(signed_in: Any, world: World, width: int) -> None:
    """640 is a screen of 1280 at 200%."""
    page = signed_in("amy")
    page.set_viewport_size({"width": width, "height": 800})
    releases = [f"/releases/{one.id}" for one in (world.open, world.back)]
    wide = {}
    for path in ("/releases", *releases, "/drift", "/service-levels", "/access", "/ledger"):
        page.goto(path)
        wide[path] = page.evaluate("document.documentElement.scrollWidth")
    assert {path: found for path, found in wide.items() if found > width} == {}


def test_what_happened_to_a_release_stands_on_its_page(signed_in: Any, world: World) -> None:
    page = signed_in()
    row = page.get_by_role("row").filter(has_text="desk hasty <b>")  # what a person typed is shown, and is no HTML
    assert "rolled back" in row.inner_text() and "reward" in row.inner_text()
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_url("**/releases/*")
    page.goto(f"/releases/{world.back.id}")
    newest = events(world.store, TENANT, world.back.id)[-1]
    assert (newest.stage, newest.by) == ("rolled_back", "@controller")
    page.get_by_text(newest.why).first.wait_for()
    kpi = page.get_by_role("row").filter(has=page.get_by_role("rowheader", name="Reward", exact=True)).first
    assert "enough to roll it back" in kpi.inner_text()
    assert page.locator(".course.crossed").count() >= 1 and page.locator("line.enough").count() >= 4
    page.get_by_text("figures", exact=True).first.click()
    assert '"log_e"' in page.locator("pre.figures").first.inner_text()
    assert page.get_by_role("button", name="Hold").count() == page.get_by_text("Roll back…").count() == 0  # it is over
    page.goto(f"/releases/{world.open.id}")
    assert "Not shown yet" in page.get_by_text("Promotion.").locator("..").inner_text()
    assert page.locator(".lineage").get_by_text("run-1/step-90").count() == 1 and page.get_by_text("passed").count() >= 1


def test_two_people_hold_propose_approve_and_take_back_a_release(signed_in: Any, ask: Any, world: World) -> None:
    release = world.open.id
    page = signed_in("amos", path=f"/releases/{release}")
    page.get_by_label("Hold: why").fill("an audit")
    page.get_by_role("button", name="Hold").click()
    page.get_by_text("It is held: nothing goes forward").wait_for()
    page.get_by_role("button", name="Resume").click()
    page.get_by_text("It goes on.").wait_for()
    page.get_by_role("button", name="Propose full").click()
    page.get_by_text("You proposed that everybody gets it.").wait_for()
    own = ask("POST", f"/releases/{release}/approve", "amos")
    assert own.status_code == 400 and "another person has to approve" in own.text
    other = signed_in("amy", path=f"/releases/{release}")
    other.get_by_role("button", name="Approve full").click()
    other.get_by_text("You approved it: everybody gets it now.").wait_for()
    other.get_by_text("Roll back…").click()
    other.get_by_role("button", name="Roll back").click()  # not ticked: the browser asks for it, and nothing is sent
    assert events(world.store, TENANT, release)[-1].stage == "full"
    other.get_by_label("yes, take release").check()
    other.get_by_label("Why it is rolled back").fill("a complaint")
    other.get_by_role("button", name="Roll back").click()
    other.get_by_text("It is rolled back.").wait_for()
    told = [(event.act, event.by) for event in events(world.store, TENANT, release)[-6:]]
    assert told == [
        ("hold", "amos"), ("resume", "amos"), ("propose", "amos"), ("approve", "amy"), ("advance", "amy"), ("rollback", "amy"),
    ]  # fmt: skip
    said = [(line.by, line.action) for line in reading(world.store, TENANT, limit=20) if line.action.startswith("release")]
    assert said[:2] == [("amy", "release rolled back"), ("amy", "release approved")]


def test_drift_and_levels_are_shown(signed_in: Any) -> None:
    page = signed_in("vic", path="/drift")
    assert page.get_by_role("heading", name=re.compile("^research")).get_by_text("alarms").count() == 1
    first = page.locator(".monitor").first
    assert first.locator(".badge.bad").count() >= 1 and "beyond what chance" in first.inner_text()
    assert first.locator("rect.live").count() >= 10 and "% of the reference" in first.locator("title").first.text_content()
    assert "length of answers" in page.locator("table").inner_text()
    page.get_by_role("link", name="Service levels").click()
    assert "at most 1% with an error" in page.locator("main").inner_text()
    assert page.get_by_role("row").count() >= 6


# --- without a browser ------------------------------------------------------------------------------------------------------


def test_programs_read_the_same(ask: Any) -> None:
    [service] = ask("GET", "/v1/drift").json()
    answers = {one["reference"]: one["figures"] for one in service["compared"] if one["monitor"] == "answer_length"}
    assert set(answers) == {"training", "last week"} and answers["training"]["alarmed"] and answers["training"]["n"] == 370
    levels = ask("GET", "/v1/service-levels").json()
    assert levels["slo"]["seconds"] == 30 and {one["level"]["span"] for one in levels["levels"]} == {"hour", "day", "week"}


def test_who_may_not_is_shown_no_button_and_refused(ask: Any, world: World) -> None:
    page = ask("GET", f"/releases/{world.back.id}", "vic")
    assert page.status_code == 200 and "<form" not in page.text.partition('id="main"')[2].partition("<dialog")[0]
    for act in ("hold", "resume", "promote", "approve", "waive", "rollback"):
        assert ask("POST", f"/releases/{world.back.id}/{act}", "vic").status_code == 403
    assert ask("POST", f"/releases/{world.back.id}/approve", "oli").status_code == 403  # an operator does not approve


@pytest.mark.parametrize(
    ("path", "status"),
    [("/releases/999", 404), ("/releases/x", 400), ("/releases/99999999999999999999", 400), ("/drift?service=none", 200)],
)
def test_what_is_not_there_is_said(ask: Any, path: str, status: int) -> None:
    answer = ask("GET", path)
    assert answer.status_code == status and "Traceback" not in answer.text


def test_a_rollback_that_was_not_confirmed_rolls_nothing_back(ask: Any, world: World) -> None:
    before = events(world.store, TENANT, world.back.id)
    answer = ask("POST", f"/releases/{world.back.id}/rollback", data={"why": "slip"})
    assert answer.status_code == 400 and "was not confirmed" in answer.text and events(world.store, TENANT, world.back.id) == before
