"""One tenant's key opens nothing of another's: every route of the store is walked, and raw SQL as the application's role.

Both tenants hold the same kinds of things, the cards of one id among them. What is the other's carries a word that may be in no answer.
"""

from __future__ import annotations

import datetime as dt
import json
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import sqlalchemy as sa
from litestar import Litestar
from litestar.testing import TestClient
from sqlalchemy import exc

from agent_rft.commands.serve import label_desk_of
from agent_rft.contracts.agents import Agent
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.releases import Policy as ReleasePolicy
from agent_rft.evaluation.report.contents import without_words
from agent_rft.graders.labelling import Round, place_of
from observability import artifacts, drift, holds, queue, registry, retention, reviews, run_reports, states, users, views
from observability.access import SCOPES, person_at_the_machine
from observability.accesses import note, reading
from observability.approvals import Call
from observability.dossier import Artifact
from observability.drift import Alarm
from observability.graders import append_grades, give_label_once, register
from observability.ingest import insert_cards
from observability.intake import Intake
from observability.query import parse
from observability.records import RecordedCard
from observability.redaction.detectors import BUILT_IN, detectors_of
from observability.roots import LedgerFiles
from observability.search import catch_up
from observability.store import Store, migrate, open_store
from observability.tables import metadata
from observability.tool_results import Waits, begin
from observability.words import word_of_tenant
from serving.app import store_routes
from serving.release import acts
from serving.release.monitors import Reading

make_report = runpy.run_path(str(Path(__file__).parents[1] / "evaluation" / "sample_report.py"))["make_report"]
make_card = runpy.run_path(str(Path(__file__).parents[1] / "observability" / "sample_cards.py"))["make_card"]
NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
LONG_AGO = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
DISGUISED = f"{word_of_tenant('acme')} {word_of_tenant('other')}"
"""Words under which the index holds each tenant's cards, in everybody's texts."""
SHARED = "0198c200-0000-7000-8000-00000000ffff"
"""Both have a card of this id."""
KINDS = {"1": "prior", "2": "shadow"}
"""Of which each has a policy."""
GONE, BAD, FINE = (404,), (400, 404), (200, 201, 204, 303)


class Tenant(NamedTuple):
    """What there is of one tenant. Names that are sent in an address hold no word that may not come back."""

    name: str
    word: str
    card: str
    key: users.NewKey
    """Of an admin."""
    spare: users.NewKey
    change: int
    approvals: tuple[int, int]
    """Two calls that wait for a person."""
    agents: tuple[str, str, str]
    releases: tuple[int, ...]
    """On trial; proposed for full; without its reports; one that needs none; and another that is proposed."""

    @property
    def own(self) -> str:
        """Ends the names of what only this tenant has."""
        return self.card[-1]


def to_label(number: int | str) -> str:
    """The card of a run whose name, which is sent in an address, holds no word."""
    return f"0198c200-0000-7000-8000-0000000000a{number}"


def filled(store: Store, name: str, word: str, number: int) -> Tenant:
    me, card = person_at_the_machine(name, f"root-{word}"), f"0198c200-0000-7000-8000-00000000000{number}"
    for one in (card, SHARED, to_label(number)):
        said = make_card().rollout
        rollout = msgspec.structs.replace(said, rollout_id=one, answer=f"It is {word}. {DISGUISED}")
        made = make_card(
            one,
            rollout=rollout,
            tenant=name,
            run_id=f"run-{number if one == to_label(number) else word}",
            row_id=f"row-{word}",
            metadata={"difficulty": word},
        )
        insert_cards(store, [RecordedCard(made, NOW)])
    append_grades(store, [(card, Grade(GraderRef("numeric", "1", "a1b2c3d4e5f60718"), 0.0, False, {"found": word}))], name)
    give_label_once(store, f"Ann {word}", card, 1.0)
    users.add_user(store, me, f"ann-{number}", "admin", NOW)
    users.add_user(store, me, f"Zoe {word}", "viewer", NOW)
    mine = store.of(name)
    reviews.add(mine, f"Zoe {word}", name, card, "coach", f"say {word}")
    change = reviews.request_change(mine, f"Zoe {word}", name, card, "prompt", f"more {word}")
    for other in ("", "-too"):
        holds.place(mine, name, f"hold-{number}{other}", parse(f"run:{word}", NOW), f"because {word}", f"Zoe {word}")
        views.save(mine, f"Zoe {word}", name, f"view-{number}{other}", f"run:run-{word}")
    retention.set_policy(mine, name, KINDS[str(number)], 900, f"Zoe {word}")
    queue.flag(mine, name, [card], word, f"why {word}")
    states.note(mine, f"Zoe {word}", name, f"0198c2ff-{number}", "opened", f"why {word}")
    artifacts.register(store, name, [Artifact(kind="dataset", id="d1", name=f"data {word}", run_id=f"run-{word}")])
    told = msgspec.to_builtins(without_words(make_report(f"run-{number}", recipe=f"recipe {word}")))
    run_reports.keep(store, name, run_reports.Made(f"run-{number}", f"recipe {word}", f"came {word}", told), BUILT_IN)
    note(store, me, "read", f"about {word}", [card])
    catch_up(store, name)

    def waiting(number: int) -> int:
        call = Call(tenant=name, rollout_id=card, call_id=f"call-{number}", tool="publish", arguments={"text": word})
        verdict = begin(store, call, f"agent {word}", dt.datetime.now(dt.UTC), dt.timedelta(days=1))
        assert isinstance(verdict, Waits)
        return verdict.approval.id

    monitored(store, name, word)
    key = users.new_key(store, me, f"ann-{number}", NOW)
    return Tenant(
        name,
        word,
        card,
        key,
        users.new_key(store, me, f"Zoe {word}", NOW),
        change.id,
        (waiting(0), waiting(1)),
        *released(store, name, word),
    )


def released(store: Store, name: str, word: str) -> tuple[tuple[str, str, str], tuple[int, ...]]:
    """Services of one live agent, each with another one on trial."""
    made = [Agent(checkpoint=f"weights {word} {number}", tool_set="t") for number in range(3)]
    live, other, spare = (registry.register_agent(store, name, one, f"agent {word}") for one in made)
    registry.report(store, name, other, "safety", passed=True, figures={"said": word}, by=f"Zoe {word}")
    numbers: list[int] = []
    for agent in (live, spare):
        registry.report(store, name, agent, "safety", passed=True, figures={}, by=f"Zoe {word}")
    for service in ("trial", "proposed", "bare", "ready", "agreed"):
        acts.begin_first(store, f"Zoe {word}", name, service, live, ReleasePolicy())
        made_of = ReleasePolicy(needs=("safety",)) if service != "bare" else ReleasePolicy()
        numbers.append(acts.begin(store, f"Zoe {word}", name, service, other, made_of).id)
    for place in (0, 1, 4):
        acts.to_canary(store, f"Zoe {word}", name, numbers[place])
    for place in (1, 4):
        acts.propose(store, f"Zoe {word}", name, numbers[place], f"because {word}")
    return (live, other, spare), tuple(numbers)


def monitored(store: Store, name: str, word: str) -> None:
    alarm = Alarm(service=f"service {word}", monitor="turns, training", alarmed=True, why=f"odd {word}", figures={}, at=NOW)
    reading = {drift.READING: msgspec.to_builtins(Reading(agent=word, at=NOW.isoformat()))}
    assert drift.save(store, name, alarm.service, None, reading, [alarm], NOW)


class World(NamedTuple):
    store: Store
    client: TestClient[Litestar]
    mine: Tenant
    theirs: Tenant


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("isolation")
    url = request.getfixturevalue("postgres")() if request.param == "postgresql" else f"sqlite:///{folder}/cards.db"
    migrate(url)
    store = open_store(url)
    register(store, GraderRef("numeric", "1", "a1b2c3d4e5f60718"), {"type": "numeric"}, "c", "ann")
    mine, theirs = filled(store, "acme", "acmeword", 1), filled(store, "other", "otherword", 2)
    intake = Intake(store, detectors_of(True))
    app = Litestar([store_routes(store, LedgerFiles.of(store, str(folder)), intake, label_desk_of)], logging_config=None)
    with pytest.MonkeyPatch.context() as patch, TestClient(app, raise_server_exceptions=False) as client:
        patch.setattr("serving.gate.TRIES", 10_000)  # so that each of many wrong keys is looked up
        client.follow_redirects = False
        yield World(store, client, mine, theirs)
    intake.close()
    store.close()


# --- every route ------------------------------------------------------------------------------------------------------------


class Place(NamedTuple):
    """A route in this test."""

    scope: str | None
    """None: open to all."""
    call: Callable[[Tenant], dict[str, Any]] = lambda _: {}
    """What is sent so that it is about things of this tenant."""
    shows: bool = False
    """Its owner finds the word in the answer."""
    others: tuple[int, ...] = FINE
    """What somebody else is answered to the same."""


def card(t: Tenant, **more: Any) -> dict[str, Any]:
    return {"path": {"rollout_id": t.card}, **more}


def of_release(place: int, **json: Any) -> Callable[[Tenant], dict[str, Any]]:
    return lambda t: {"path": {"number": t.releases[place]}, **({"json": json.get("json", json)} if json else {})}


def on_page(place: int, **data: str) -> Callable[[Tenant], dict[str, Any]]:
    return lambda t: {"path": {"release_id": t.releases[place]}, **({"data": data} if data else {})}


def one(**path: Callable[[Tenant], Any]) -> Callable[[Tenant], dict[str, Any]]:
    return lambda t: {"path": {name: value(t) for name, value in path.items()}}


def body(value: dict[str, Any]) -> Callable[[Tenant], dict[str, Any]]:
    return lambda _: {"json": value}


def batch(t: Tenant) -> dict[str, Any]:
    new = make_card(f"0198c2aa-{t.own}", tenant=t.name)
    return {"content": msgspec.json.encode({"cards": [RecordedCard(new, NOW)]}), "headers": {"content-type": "application/json"}}


def _place(t: Tenant) -> str:
    return place_of(Round(f"run-{t.own}", f"ann-{t.own}"), to_label(t.own))


PLACES: dict[tuple[str, str], Place] = {
    ("GET", "/login"): Place(None),
    ("POST", "/login"): Place(None, lambda _: {"data": {"key": "rft_a_b"}}, others=(401, 403)),
    ("POST", "/logout"): Place(None, others=(403,)),
    ("GET", "/pages/{name:str}"): Place(None, one(name=lambda _: "pages.css")),
    # reading
    ("GET", "/v1/cards"): Place("read", lambda _: {"params": {"q": "kind:eval"}}, True),
    ("GET", "/v1/cards/{rollout_id:str}"): Place("read", card, True, GONE),
    ("GET", "/v1/cards/export"): Place("export", lambda _: {"params": {"q": "kind:eval"}}, True),
    ("GET", "/v1/queue"): Place("review", shows=True),
    ("GET", "/v1/changes"): Place("read", shows=True),
    ("GET", "/v1/views"): Place("read", shows=True),
    ("GET", "/v1/holds"): Place("read", shows=True),
    ("GET", "/v1/retention"): Place("read", shows=True),
    ("POST", "/v1/retention/plan"): Place("operate"),
    ("GET", "/v1/users"): Place("admin", shows=True),
    ("GET", "/v1/keys"): Place("admin", shows=True),
    ("GET", "/v1/access"): Place("approve", shows=True),
    # pages
    ("GET", "/"): Place("read"),
    ("GET", "/cards"): Place("read", lambda _: {"params": {"q": "kind:eval"}}, True),
    ("GET", "/cards/counts"): Place("read", lambda _: {"params": {"q": "kind:eval"}}),
    ("GET", "/cards/{rollout_id:str}"): Place("read", card, True, GONE),
    ("GET", "/compare"): Place("read", lambda t: {"params": {"a": t.card, "b": SHARED}}, True, BAD),
    ("GET", "/inspect"): Place("read", shows=True),
    ("GET", "/inspect/{run_id:str}"): Place("read", one(run_id=lambda t: f"run-{t.own}"), others=GONE),
    ("POST", "/inspect/{run_id:str}/triage"): Place(
        "review", lambda t: {"path": {"run_id": f"run-{t.own}"}, "data": {"card": to_label(t.own), "fault": "model"}}, others=GONE
    ),
    ("GET", "/runs"): Place("read", shows=True),
    ("GET", "/runs/{run_id:str}"): Place("read", one(run_id=lambda t: f"run-{t.own}"), True, GONE),
    ("GET", "/queue"): Place("review", shows=True),
    ("GET", "/changes"): Place("read", shows=True),
    ("GET", "/views"): Place("read", shows=True),
    ("GET", "/ledger"): Place("read"),
    ("GET", "/ledger/keys.json"): Place("read"),
    ("GET", "/ledger/verify_evidence.py"): Place("read"),
    ("GET", "/holds"): Place("read", shows=True),
    ("GET", "/holds/plan"): Place("operate", shows=True),
    ("GET", "/labels"): Place("review", shows=True),
    ("GET", "/labels/next"): Place("review", lambda t: {"params": {"run": f"run-{t.own}"}}, True, BAD),
    ("GET", "/labels/agreement"): Place("review", lambda t: {"params": {"run": f"run-{t.own}"}}, others=BAD),
    ("POST", "/labels/give"): Place("review", lambda t: {"data": {"run": f"run-{t.own}", "place": _place(t), "score": "1"}}, others=BAD),
    ("POST", "/labels/undo"): Place("review", lambda t: {"data": {"run": f"run-{t.own}", "undo": _place(t)}}, others=BAD),
    ("GET", "/access"): Place("approve", shows=True),
    # calls that wait for a person
    ("GET", "/v1/approvals"): Place("read", shows=True),
    ("GET", "/v1/approvals/{approval_id:int}"): Place("read", one(approval_id=lambda t: t.approvals[0]), True, GONE),
    ("POST", "/v1/approvals/{approval_id:int}"): Place(
        "approve", lambda t: {"path": {"approval_id": t.approvals[0]}, "json": {"decision": "approve"}}, others=GONE
    ),
    ("GET", "/approvals"): Place("approve", shows=True),
    ("POST", "/approvals/{approval_id:str}"): Place(
        "approve", lambda t: {"path": {"approval_id": t.approvals[1]}, "data": {"decision": "approve"}}, others=GONE
    ),
    # saying
    ("POST", "/v1/cards/{rollout_id:str}/reviews"): Place("review", lambda t: card(t, json={"verdict": "accept"}), others=BAD),
    ("POST", "/v1/cards/{rollout_id:str}/changes"): Place(
        "review", lambda t: card(t, json={"target": "prompt", "wanted": "x"}), others=BAD
    ),
    ("POST", "/v1/cards/{rollout_id:str}/grades"): Place(
        "operate", lambda t: card(t, json={"grader": "numeric@1", "reward": 1.0, "parts": {"a": 1}}), others=BAD
    ),
    ("POST", "/v1/cards/{rollout_id:str}/states"): Place(
        "ingest", lambda _: {"path": {"rollout_id": "soon"}, "json": {"state": "blocked"}}
    ),
    ("POST", "/v1/queue"): Place("operate", body({})),
    # releases
    ("GET", "/releases"): Place("read", shows=True),
    ("GET", "/releases/{release_id:str}"): Place("read", on_page(0), True, GONE),
    ("GET", "/drift"): Place("read", shows=True),
    ("GET", "/v1/drift"): Place("read", shows=True),
    ("GET", "/service-levels"): Place("read"),
    ("GET", "/v1/service-levels"): Place("read"),
    ("GET", "/v1/releases"): Place("read", shows=True),
    ("GET", "/v1/releases/{number:int}"): Place("read", of_release(0), True, GONE),
    ("GET", "/v1/webhooks"): Place("read", shows=True),
    ("GET", "/v1/agents"): Place("read", shows=True),
    ("GET", "/v1/agents/{agent:str}"): Place("read", one(agent=lambda t: t.agents[1]), True, GONE),
    ("POST", "/v1/agents"): Place("operate", body({"name": "new", "agent": {"checkpoint": "x", "tool_set": "t"}})),
    ("POST", "/v1/agents/{agent:str}/reports"): Place(
        "operate", lambda t: {"path": {"agent": t.agents[1]}, "json": {"kind": "holdout", "passed": True}}, others=GONE
    ),
    ("POST", "/v1/releases"): Place("operate", lambda t: {"json": {"service": "second", "agent": t.agents[2], "first": True}}, others=GONE),
    ("POST", "/v1/releases/{number:int}/hold"): Place("operate", of_release(0, why="x"), others=GONE),
    ("POST", "/v1/releases/{number:int}/resume"): Place("operate", of_release(0, json={}), others=GONE),
    ("POST", "/releases/{release_id:str}/hold"): Place("operate", on_page(0, why="x"), others=GONE),
    ("POST", "/releases/{release_id:str}/resume"): Place("operate", on_page(0), others=GONE),
    ("POST", "/releases/{release_id:str}/promote"): Place("operate", on_page(0), others=GONE),
    ("POST", "/releases/{release_id:str}/approve"): Place("approve", on_page(4), others=GONE),
    ("POST", "/releases/{release_id:str}/waive"): Place("approve", on_page(2, report="evaluation", why="x"), others=GONE),
    ("POST", "/releases/{release_id:str}/rollback"): Place("operate", on_page(4, sure="yes"), others=GONE),
    ("POST", "/v1/releases/{number:int}/shadow"): Place("operate", of_release(3), others=GONE),
    ("POST", "/v1/releases/{number:int}/canary"): Place("operate", of_release(0, share=0.25), others=GONE),
    ("POST", "/v1/releases/{number:int}/promote"): Place("operate", of_release(0, json={}), others=GONE),
    ("POST", "/v1/releases/{number:int}/approve"): Place("approve", of_release(1, json={}), others=GONE),
    ("POST", "/v1/releases/{number:int}/waive"): Place("approve", of_release(2, report="holdout", why="x"), others=GONE),
    ("POST", "/v1/releases/{number:int}/rollback"): Place("operate", of_release(0, json={}), others=GONE),
    ("POST", "/v1/queue/flags"): Place("operate", lambda t: {"json": {"cards": [t.card], "name": "odd", "why": "x"}}, others=GONE),
    ("POST", "/v1/changes/{number:int}/outcome"): Place(
        "review", lambda t: {"path": {"number": t.change}, "json": {"outcome": "done", "how": "x"}}, others=BAD
    ),
    ("PUT", "/v1/views/{name:str}"): Place("review", lambda t: {"path": {"name": "fresh"}, "json": {"query": "kind:eval"}}),
    ("DELETE", "/v1/views/{name:str}"): Place("review", one(name=lambda t: f"view-{t.own}"), others=GONE),
    ("POST", "/v1/holds"): Place("approve", body({"name": "fresh", "query": "row:none", "reason": "x"})),
    ("POST", "/v1/holds/{name:str}/release"): Place(
        "approve", lambda t: {"path": {"name": f"hold-{t.own}"}, "json": {"reason": "x"}}, others=BAD
    ),
    ("PUT", "/v1/retention/{kind:str}"): Place("operate", lambda _: {"path": {"kind": "train"}, "json": {"days": 900}}),
    ("DELETE", "/v1/retention/{kind:str}"): Place("operate", one(kind=lambda t: KINDS[t.own]), others=BAD),
    ("POST", "/v1/cards"): Place("ingest", batch),
    ("POST", "/v1/traces"): Place("ingest", body({"resourceSpans": []})),
    ("POST", "/cards/{rollout_id:str}/review"): Place("review", lambda t: card(t, data={"verdict": "accept"}), others=BAD),
    ("POST", "/queue/fill"): Place("operate"),
    ("POST", "/changes/settle"): Place("review", lambda t: {"data": {"request": str(t.change), "outcome": "done", "how": "x"}}, others=BAD),
    ("POST", "/views"): Place("review", lambda _: {"data": {"name": "newest", "query": "kind:eval"}}),
    ("POST", "/views/remove"): Place("review", lambda t: {"data": {"name": f"view-{t.own}-too"}}, others=BAD),
    ("POST", "/ledger/verify"): Place("export"),
    ("POST", "/ledger/evidence"): Place("export", lambda t: {"data": {"name": "case", "q": f"id:{t.card}"}}, others=BAD),
    ("POST", "/holds"): Place("approve", lambda _: {"data": {"name": "newest", "q": "row:none", "reason": "x"}}),
    ("POST", "/holds/release"): Place("approve", lambda t: {"data": {"name": f"hold-{t.own}-too", "reason": "x"}}, others=BAD),
    ("POST", "/cards/{rollout_id:str}/seal"): Place("approve", lambda t: card(t._replace(card=SHARED), data={"why": "x"})),
    ("POST", "/v1/cards/{rollout_id:str}/seal"): Place("approve", lambda t: card(t, json={"why": "x"}), others=BAD),
    ("POST", "/v1/erasures"): Place("admin", lambda t: {"json": {"query": f"id:{t.card}", "why": "x", "dry_run": False}}, others=BAD),
    # people and keys
    ("POST", "/v1/users"): Place("admin", body({"name": "new", "role": "viewer"})),
    ("POST", "/v1/users/{name:str}"): Place("admin", lambda t: {"path": {"name": f"ann-{t.own}"}, "json": {"role": "admin"}}, others=BAD),
    ("POST", "/v1/keys"): Place("admin", lambda t: {"json": {"user": f"ann-{t.own}"}}, others=BAD),
    ("POST", "/v1/keys/{key_id:str}/rotate"): Place("admin", lambda t: {"path": {"key_id": t.spare.id}, "json": {}}, others=BAD),
    ("POST", "/v1/keys/{key_id:str}/revoke"): Place("admin", one(key_id=lambda t: t.spare.id), others=BAD),
}


def send(world: World, route: tuple[str, str], about: Tenant, key: str | None) -> Any:
    told = PLACES[route].call(about)
    path = route[1]
    for name, value in told.pop("path", {}).items():
        path = path.replace(f"{{{name}:int}}", str(value)).replace(f"{{{name}:str}}", str(value))
    headers = told.pop("headers", {}) | ({"authorization": f"Bearer {key}"} if key else {})
    return world.client.request(route[0], path, headers=headers, **told)


def holds_word(answer: Any, word: str) -> bool:
    return word in (answer.text + str(answer.headers) + answer.content.decode("latin-1")).lower()


def everything_of(store: Store, tenant: str) -> dict[str, list[str]]:
    with store.reading() as connection:
        tables = [table for table in metadata.sorted_tables if "tenant" in table.c]
        return {table.name: sorted(map(repr, connection.execute(sa.select(table).where(table.c.tenant == tenant)))) for table in tables}


def test_every_route_has_its_place_here(world):
    walked = {
        (method, route.path)
        for route in world.client.app.routes
        for method in getattr(route, "methods", ())
        if method not in ("HEAD", "OPTIONS") and not route.path.startswith("/schema")
    }
    assert walked == set(PLACES), "a route that serves cards is tried here: with others' keys, with none, with bad ones"


def test_who_has_no_good_key_gets_nothing_on_any_route(world):
    me, owner = person_at_the_machine("other", "root"), "ann-2"
    revoked, over = (users.new_key(world.store, me, owner, at, expires_at=at + dt.timedelta(days=1000)) for at in (NOW, LONG_AGO))
    users.revoke_key(world.store, me, revoked.id, NOW)
    users.add_user(world.store, me, "gone", "admin", NOW)
    disabled = users.new_key(world.store, me, "gone", NOW)
    users.disable_user(world.store, me, "gone", NOW)
    before = everything_of(world.store, "other")
    for route, place in PLACES.items():
        for key in (None, revoked.text, over.text, disabled.text):
            answer = send(world, route, world.theirs, key)
            assert not holds_word(answer, "otherword"), (route, answer.text)
            if place.scope is not None:
                login = answer.status_code == 303 and answer.headers["location"].startswith("/login")
                assert answer.status_code == 401 or login, (route, answer.status_code)
    assert everything_of(world.store, "other") == before


def test_a_key_without_the_scope_gets_nothing_on_any_route(world):
    me = person_at_the_machine("other", "root")
    without = {scope: users.new_key(world.store, me, "ann-2", NOW, [one for one in SCOPES if one != scope]).text for scope in SCOPES}
    before = everything_of(world.store, "other")
    for route, place in PLACES.items():
        if place.scope is not None:
            answer = send(world, route, world.theirs, without[place.scope])
            assert answer.status_code == 403 and not holds_word(answer, "otherword"), (route, answer.status_code, answer.text[:300])
    assert everything_of(world.store, "other") == before


def test_another_tenants_key_sees_nothing_and_changes_nothing_on_any_route(world):
    before = everything_of(world.store, "other")
    for route, place in PLACES.items():
        answer = send(world, route, world.theirs, world.mine.key.text)
        sent = json.dumps(place.call(world.theirs), default=str).lower()
        assert "otherword" in sent or not holds_word(answer, "otherword"), (route, answer.text)
        assert answer.status_code in place.others, (route, answer.status_code, answer.text[:300])
    assert everything_of(world.store, "other") == before


def test_of_a_card_whose_id_both_have_each_sees_their_own(world):
    shared = world.theirs._replace(card=SHARED)
    for route in (("GET", "/v1/cards/{rollout_id:str}"), ("GET", "/cards/{rollout_id:str}"), ("POST", "/ledger/evidence")):
        for tenant, other in ((world.mine, world.theirs), (world.theirs, world.mine)):
            answer = send(world, route, shared, tenant.key.text)
            assert answer.status_code == 200 and not holds_word(answer, other.word)
            assert holds_word(answer, tenant.word) or route[0] == "POST", route  # the bundle is compressed


def test_words_find_ones_own_cards_only(world):
    for q, whose in (("otherword", world.theirs), ("It", None), ("otherword OR acmeword", None), ("-acmeword", None), ("id:*", None)):
        for tenant in (world.mine, world.theirs):
            headers = {"authorization": f"Bearer {tenant.key.text}"}
            found = world.client.get("/v1/cards", params={"q": q}, headers=headers).json()
            runs = {line["run_id"] for line in found["cards"]}
            allowed = {f"run-{tenant.word}", f"run-{tenant.own}"} if whose in (None, tenant) else set()
            assert runs <= allowed and (found["count"] > 0) == bool(runs), (q, found)
            assert runs == allowed or q == "-acmeword", q


def test_the_owner_finds_all_of_it_and_stands_in_the_log(world):
    """What shows that the routes above were asked rightly. It changes and erases: it comes last."""
    for route, place in PLACES.items():
        answer = send(world, route, world.theirs, world.theirs.key.text)
        if place.scope is not None:
            assert answer.status_code in FINE, (route, answer.status_code, answer.text[:300])
            assert not place.shows or holds_word(answer, "otherword"), route
            assert not holds_word(answer, "run-acmeword"), route
    read = [line for line in reading(world.store, "other", world.theirs.card, by="ann-2", limit=500)]
    assert {"search", "read", "export", "compare", "review", "evidence"} <= {line.action for line in read}, {line.action for line in read}


# --- raw SQL ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def raw(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    url = request.getfixturevalue("postgres")() if request.param == "postgresql" else f"sqlite:///{tmp_path_factory.mktemp('raw')}/cards.db"
    migrate(url)
    store = open_store(url)
    filled(store, "acme", "acmeword", 1)
    filled(store, "other", "otherword", 2)
    yield store
    store.close()


KEPT = [table for table in metadata.sorted_tables if "tenant" in table.c]


def test_every_table_of_a_tenant_shows_that_tenants_rows_only(raw):
    with raw.reading() as connection:
        whose = {table.name: list(connection.scalars(sa.text(f"SELECT tenant FROM {table.name} ORDER BY 1"))) for table in KEPT}
    assert {"acme", "other"} <= {*whose["job_cards"], *whose["users"]}
    for tenant in ("acme", "other"):
        with raw.of(tenant).reading() as connection:
            seen = {table.name: list(connection.scalars(sa.text(f"SELECT tenant FROM {table.name}"))) for table in KEPT}
        assert seen == {name: [one for one in every if one == tenant] for name, every in whose.items()}


def test_without_a_tenant_there_are_no_rows(raw):
    with raw.of("").reading() as connection:
        assert [table.name for table in KEPT if connection.scalar(sa.text(f"SELECT count(*) FROM {table.name}"))] == []


def as_the_role(store: Store, tenant: str | None, statement: str) -> Any:
    """What the application's role gets for it, or why not: of rows changed the number. Nothing of it stays."""
    with store.engine.connect() as connection:
        connection.execute(sa.text("SELECT set_config('role', 'agent_rft_app', true)"))
        if tenant is not None:
            connection.execute(sa.text("SELECT set_config('app.tenant', :tenant, true)"), {"tenant": tenant})
        try:
            result = connection.execute(sa.text(statement))
            return [tuple(row) for row in result] if result.returns_rows else result.rowcount
        except exc.DBAPIError as error:
            return type(error.orig).__name__
        finally:
            connection.rollback()


@pytest.fixture(scope="module")
def postgresql(raw: Store) -> Store:
    if raw.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has no roles")
    return raw


def relations(store: Store) -> list[str]:
    """Every table and partition that has a tenant."""
    found = """SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid WHERE c.relnamespace = 'public'::regnamespace
      AND c.relkind IN ('r', 'p') AND a.attname = 'tenant' AND NOT a.attisdropped ORDER BY 1"""
    with store.reading() as connection:
        return list(connection.scalars(sa.text(found)))


DENIED = "InsufficientPrivilege"
NOTHING = (DENIED, 0, [])


@pytest.mark.parametrize("tenant", ["acme", None, "", "nobody"])
def test_the_role_reaches_no_others_rows_in_any_table_or_partition(postgresql, tenant):
    every = relations(postgresql)
    assert {table.name for table in KEPT} <= set(every) and any(name.startswith("job_cards_") for name in every)
    for name in every:
        assert as_the_role(postgresql, tenant, f"SELECT tenant FROM {name} WHERE tenant = 'other'") in NOTHING, name
        assert as_the_role(postgresql, tenant, f"UPDATE {name} SET tenant = 'acme' WHERE tenant = 'other'") in NOTHING, name
        assert as_the_role(postgresql, tenant, f"DELETE FROM {name} WHERE tenant = 'other'") in NOTHING, name
        columns = ", ".join("'other'" if column == "tenant" else f'"{column}"' for column in columns_of(postgresql, name))
        copied = f"INSERT INTO {name} SELECT {columns} FROM {name}"
        assert as_the_role(postgresql, tenant, copied) in NOTHING, name


def columns_of(store: Store, name: str) -> list[str]:
    return [column["name"] for column in sa.inspect(store.engine).get_columns(name)]


@pytest.mark.parametrize("name", ["ledger", "ledger_roots", "access_log", "access_cards", "legal_holds", "card_states", "erasures"])
def test_records_can_be_added_to_and_not_changed_by_their_own_tenant(postgresql, name):
    for statement in (f"UPDATE {name} SET tenant = tenant", f"DELETE FROM {name}", f"TRUNCATE {name}"):
        assert as_the_role(postgresql, "acme", statement) == DENIED, statement


def test_the_role_cannot_get_round_its_confinement(postgresql):
    for statement in (
        "SELECT * FROM search_words",
        "ALTER TABLE job_cards DISABLE ROW LEVEL SECURITY",
        "DROP POLICY of_tenant ON job_cards",
        "CREATE TABLE mine (a int)",
        "CREATE FUNCTION leak() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'",
        "COPY job_cards TO PROGRAM 'cat'",
        "SELECT pg_read_file('/etc/passwd')",
        "INSERT INTO grader_approvals (name, version, by, at) VALUES ('numeric', '1', 'me', now())",
    ):
        assert as_the_role(postgresql, "acme", statement) == DENIED, statement


def test_the_index_of_words_answers_for_the_tenant_only(postgresql):
    numbers = {
        tenant: {row[0] for row in as_the_role(postgresql, tenant, "SELECT number FROM search_cards")} for tenant in ("acme", "other")
    }
    assert numbers["acme"] and numbers["other"] and not numbers["acme"] & numbers["other"]
    for words in ("it", "otherword", "!nothing", "otherword | acmeword", "it | !it"):
        found = as_the_role(postgresql, "acme", f"SELECT newest_with_words(to_tsquery('simple', '{words}'), 0, 9223372036854775807, 1000)")
        assert {row[0] for row in found} <= numbers["acme"], words
        others = as_the_role(postgresql, "acme", f"SELECT has_words(to_tsquery('simple', '{words}'), {min(numbers['other'])})")
        assert others == [(False,)], words
    for tenant in (None, "", "nobody"):
        found = as_the_role(postgresql, tenant, "SELECT newest_with_words(to_tsquery('simple', 'it'), 0, 9223372036854775807, 1000)")
        assert found in ([], DENIED) or isinstance(found, str), found
