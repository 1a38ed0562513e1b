"""Holds, retention and erasure over HTTP: each role does what is its own, in its own tenant, on both databases."""

from __future__ import annotations

import datetime as dt
import runpy
from pathlib import Path
from typing import Any

import pytest
from litestar import Litestar
from litestar.testing import TestClient

from observability import accesses, ledger, views
from observability.access import person_at_the_machine
from observability.cards import find_card, stored_cards
from observability.ingest import insert_cards
from observability.records import RecordedCard
from observability.store import open_store
from observability.users import add_user, new_key
from serving.gate import Gate
from serving.keeping_api import keeping_routes
from serving.refusals import REFUSALS

ROOT = Path(__file__).resolve().parents[2]
make_card = runpy.run_path(str(ROOT / "tests/observability/sample_cards.py"))["make_card"]
NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
LONG_AGO = NOW - dt.timedelta(days=300)
IDS = [f"0198c2{number:02d}-0000-7000-8000-000000000000" for number in range(3)]
ROLES = ("viewer", "reviewer", "approver", "operator", "admin")


@pytest.fixture(params=["sqlite", "postgresql"])
def stored(request: pytest.FixtureRequest, tmp_path: Path):
    """Three old cards of `acme`, one of `beta` that has the id of acme's first."""
    from observability.store import migrate

    url = request.getfixturevalue("postgres")() if request.param == "postgresql" else f"sqlite:///{tmp_path}/cards.db"
    migrate(url)
    store = open_store(url)
    for number, one in enumerate(IDS):
        card = make_card(one, tenant="acme", kind="production", row_id=f"val-{number}", started_at=LONG_AGO.isoformat())
        insert_cards(store, [RecordedCard(card, LONG_AGO)])
    insert_cards(store, [RecordedCard(make_card(IDS[0], tenant="beta", row_id="val-0"), NOW)])
    yield store
    store.close()


@pytest.fixture
def ask(stored):
    keys: dict[tuple[str, str], str] = {}
    for tenant in ("acme", "beta"):
        for role in ROLES:
            by = person_at_the_machine(tenant, "root")
            add_user(stored, by, role, role, NOW)
            keys[tenant, role] = new_key(stored, by, role, dt.datetime.now(dt.UTC)).text

    with TestClient(
        Litestar(keeping_routes(Gate(stored)), exception_handlers=REFUSALS, logging_config=None), raise_server_exceptions=False
    ) as client:

        def asked(role: str, method: str, path: str, body: Any = None, tenant: str = "acme", **query: Any) -> tuple[int, Any]:
            answer = client.request(method, path, json=body, params=query, headers={"authorization": f"Bearer {keys[tenant, role]}"})
            return answer.status_code, answer.json() if answer.content else None

        yield asked


def test_a_hold_is_placed_by_an_approver_keeps_its_cards_and_is_released(ask, stored):
    hold = {"name": "case-7", "query": "row:val-0,val-1 after:2026-01-01", "reason": "suit 7"}
    assert [ask(role, "POST", "/v1/holds", hold)[0] for role in ("viewer", "reviewer", "operator")] == [403] * 3
    status, placed = ask("approver", "POST", "/v1/holds", hold)
    assert status == 201 and (placed["by"], placed["query"]) == ("approver", "row:val-0,val-1 started>=2026-01-01T00:00:00Z")
    assert ask("approver", "POST", "/v1/holds", hold)[0] == 400
    status, told = ask("approver", "POST", "/v1/holds", {"name": "x y", "query": "grade<0.5", "reason": ""})
    assert status == 400 and [fault["where"] for fault in told["faults"]] == ["name", "reason", "query"]
    wish = {"query": "row:val-1,val-2", "why": "request 3", "dry_run": True}
    status, told = ask("admin", "POST", "/v1/erasures", wish)
    assert status == 200 and sorted(told["cards"]) == IDS[1:] and told["held"] == {IDS[1]: ["case-7"]} and told["erased"] == []
    status, told = ask("admin", "POST", "/v1/erasures", wish | {"dry_run": False})
    assert told["erased"] == [IDS[2]] and told["held"] == {IDS[1]: ["case-7"]}
    assert ask("approver", "POST", "/v1/holds/case-7/release", {"reason": "settled"}, tenant="beta")[0] == 400
    assert ask("approver", "POST", "/v1/holds/case-7/release", {"reason": "settled"})[1]["act"] == "released"
    assert [one["act"] for one in ask("viewer", "GET", "/v1/holds")[1]] == ["placed", "released"]
    assert ask("viewer", "GET", "/v1/holds", tenant="beta")[1] == []
    assert ask("admin", "POST", "/v1/erasures", wish | {"dry_run": False})[1]["erased"] == [IDS[1]]
    assert not list(ledger.verify(stored, "acme"))


def test_an_erasure_is_an_admin_s_stays_in_the_tenant_and_is_in_the_access_log(ask, stored):
    wish = {"query": "row:val-0", "why": "request 3", "dry_run": False}
    assert [ask(role, "POST", "/v1/erasures", wish)[0] for role in ROLES[:4]] == [403] * 4
    assert ask("admin", "POST", "/v1/erasures", wish | {"query": ""})[0] == 400
    assert ask("admin", "POST", "/v1/erasures", wish | {"query": "row:nobody"})[0] == 400
    assert ask("admin", "POST", "/v1/erasures", wish | {"why": " "})[0] == 400
    assert ask("admin", "POST", "/v1/erasures", wish)[1]["erased"] == [IDS[0]]
    with stored.reading() as connection:
        erased = {one.card.tenant: one.erased and one.erased.by for one in stored_cards(connection, [IDS[0]])}
    assert erased == {"acme": "admin", "beta": None}
    asked = [(one.by, one.action, one.subject, one.cards) for one in accesses.reading(stored, "acme") if one.action == "erasure asked for"]
    assert asked[0] == ("admin", "erasure asked for", "request 3", 1)


def test_a_hold_and_an_erasure_by_a_view_s_name_are_of_its_cards(ask, stored):
    views.save(stored.of("acme"), "ann", "acme", "suit", "row:val-0,val-1 after:99999d")
    status, hold = ask("approver", "POST", "/v1/holds", {"name": "case-7", "query": "@suit", "reason": "suit 7"})
    assert status == 201 and hold["query"].startswith("row:val-0,val-1 started>=") and "@" not in hold["query"]
    views.save(stored.of("acme"), "ann", "acme", "suit", "row:val-2")  # the hold stays what it was
    told = ask("admin", "POST", "/v1/erasures", {"query": "kind:production", "why": "request 3", "dry_run": True})[1]
    assert told["held"] == {IDS[0]: ["case-7"], IDS[1]: ["case-7"]}
    assert ask("admin", "POST", "/v1/erasures", {"query": "@suit", "why": "request 3", "dry_run": False})[1]["erased"] == [IDS[2]]
    assert ask("approver", "POST", "/v1/holds", {"name": "case-8", "query": "@suite", "reason": "suit 8"})[0] == 404
    assert ask("admin", "POST", "/v1/erasures", {"query": "@suit row:val-0", "why": "request 3", "dry_run": False})[0] == 400
    assert ask("approver", "POST", "/v1/holds", {"name": "case-8", "query": "@suit", "reason": "x"}, tenant="beta")[0] == 404


def test_a_dry_run_has_the_same_bounds_and_its_own_name_in_the_access_log(ask, stored, monkeypatch):
    wish = {"query": "kind:production", "why": "request 3", "dry_run": True}
    assert ask("admin", "POST", "/v1/erasures", wish | {"why": "x" * 1001})[0] == 400
    assert not [one for one in accesses.reading(stored, "acme") if "erasure" in one.action]  # what is refused is not written down
    assert ask("admin", "POST", "/v1/erasures", wish)[0] == 200
    noted = [(one.action, one.cards) for one in accesses.reading(stored, "acme") if "erasure" in one.action]
    assert noted == [("erasure dry run", 3)]
    monkeypatch.setattr("serving.keeping_api.MOST_ERASED", 2)
    for dry_run in (True, False):
        status, told = ask("admin", "POST", "/v1/erasures", wish | {"dry_run": dry_run})
        assert status == 400 and told["error"] == "the query asks for more than 2 cards"
    monkeypatch.setattr("serving.keeping_api.MOST_ERASED", 3)
    assert len(ask("admin", "POST", "/v1/erasures", wish)[1]["cards"]) == 3


def test_retention_is_the_operator_s_and_the_plan_counts_the_held(ask, stored):
    path = "/v1/retention/production"
    assert [ask(role, "PUT", path, {"days": 90})[0] for role in ("viewer", "reviewer", "approver")] == [403] * 3
    status, told = ask("operator", "PUT", path, {"days": 90})
    assert status == 200 and told["policy"]["days"] == 90 and "EU AI Act" in told["warning"]
    assert ask("operator", "PUT", "/v1/retention/nonsense", {"days": -1})[0] == 400
    assert ask("operator", "PUT", path, {"days": "many"})[0] == 400
    assert ask("operator", "PUT", "/v1/retention/*", {"days": 400})[1]["warning"] == ""
    assert [one["kind"] for one in ask("viewer", "GET", "/v1/retention")[1]] == ["*", "production"]
    assert ask("viewer", "GET", "/v1/retention", tenant="beta")[1] == []
    ask("approver", "POST", "/v1/holds", {"name": "case-7", "query": "henderson row:val-1", "reason": "suit"})
    [due] = ask("operator", "POST", "/v1/retention/plan")[1]
    assert (due["kind"], due["cards"], due["held"]) == ("production", 3, 1)
    assert ask("operator", "DELETE", path, tenant="beta")[0] == 400
    assert ask("operator", "DELETE", path)[0] == 204
    assert ask("operator", "POST", "/v1/retention/plan")[1] == []
    assert find_card(stored, IDS[1]).erased is None
