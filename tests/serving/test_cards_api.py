"""Programs search, read, export and judge cards over HTTP, each for its tenant, and every card that is read stands in the access log."""

from __future__ import annotations

import datetime as dt
import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from litestar import Litestar
from litestar.testing import TestClient

from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.messages import ToolCall
from observability import accesses, ledger
from observability.access import person_at_the_machine
from observability.graders import append_grades, register
from observability.ingest import insert_cards
from observability.records import RecordedCard
from observability.search import catch_up
from observability.store import Store, open_store
from observability.users import add_user, new_key
from serving.cards_api import cards_routes
from serving.gate import Gate
from serving.refusals import REFUSALS

ROOT = Path(__file__).resolve().parents[2]
make_card = runpy.run_path(str(ROOT / "tests/observability/sample_cards.py"))["make_card"]
NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
IDS = [f"0198c2{number:02d}-0000-7000-8000-000000000000" for number in range(5)]
ROLES = ("viewer", "reviewer", "approver", "operator", "admin")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Five cards of tenant `acme`, one of `beta` that has the id of one of acme's, a user of each role."""
    store = open_store(f"sqlite:///{tmp_path_factory.mktemp('api')}/cards.db")
    for number, one in enumerate(IDS):
        started = (NOW + dt.timedelta(minutes=number)).isoformat()
        insert_cards(store, [RecordedCard(make_card(one, tenant="acme", kind="production", started_at=started), NOW)])
    insert_cards(store, [RecordedCard(make_card(IDS[0], tenant="beta", run_id="secret-run"), NOW)])
    append_grades(store, [(IDS[4], Grade(GraderRef("numeric", "2", "h2"), 0.0, False))], "acme")
    catch_up(store, "acme")
    for tenant in ("acme", "beta"):
        for role in ROLES:
            add_user(store, person_at_the_machine(tenant, "root"), role, role, NOW)
    yield store
    store.close()


class Asking:
    """A client with the key of a user of each role."""

    def __init__(self, store: Store, client: TestClient[Any]) -> None:
        self._client = client
        self.keys = {
            (tenant, role): new_key(store, person_at_the_machine(tenant, "root"), role, dt.datetime.now(dt.UTC)).text
            for tenant in ("acme", "beta")
            for role in ROLES
        }

    def __call__(self, role: str, method: str, path: str, body: Any = None, tenant: str = "acme", **query: Any) -> tuple[int, Any]:
        key = {"authorization": f"Bearer {self.keys[tenant, role]}"}
        answer = self._client.request(method, path, params=query, headers=key, json=body)
        kind = answer.headers.get("content-type", "")
        return answer.status_code, answer.json() if kind.partition(";")[0] == "application/json" and answer.content else answer.content


@pytest.fixture(scope="module")
def ask(stored: Store) -> Iterator[Asking]:
    with TestClient(
        Litestar(cards_routes(Gate(stored)), exception_handlers=REFUSALS, logging_config=None), raise_server_exceptions=False
    ) as client:
        yield Asking(stored, client)


def read_by(store: Store, action: str) -> list[tuple[str, str, int]]:
    return [(one.by, one.subject, one.cards) for one in accesses.reading(store, "acme", limit=500) if one.action == action]


# --- searching, reading, exporting --------------------------------------------------------------------------------------


def test_pages_hold_every_card_once_with_the_count_and_the_way_on(ask, stored):
    status, first = ask("viewer", "GET", "/v1/cards", q="kind:production", limit=3)
    assert status == 200
    assert [one["rollout_id"] for one in first["cards"]] == [IDS[4], IDS[3], IDS[2]]
    assert (first["count"], first["more"], first["not_indexed"]) == (5, False, None)
    assert first["cards"][0]["reward"] == 0.0 and first["cards"][1]["reward"] == 1.0
    status, rest = ask("viewer", "GET", "/v1/cards", q="kind:production", limit=3, after=first["next"])
    assert [one["rollout_id"] for one in rest["cards"]] == [IDS[1], IDS[0]] and rest["next"] is None
    named = {(line["rollout_id"], line["entry"]) for line in accesses.readers_of(stored, "acme", IDS) if line["action"] == "search"}
    assert [one for one, _ in sorted(named, key=lambda one: (one[1], one[0]))] == [*IDS[2:], *IDS[:2]]  # each page's own


def test_a_word_in_a_tools_result_finds_the_card_and_says_what_is_not_indexed_yet(ask):
    status, found = ask("viewer", "GET", "/v1/cards", q='"$842M" grade<0.5')
    assert status == 200 and [one["rollout_id"] for one in found["cards"]] == [IDS[4]] and found["not_indexed"] == 0


def test_a_query_with_faults_is_told_all_of_them_with_their_places(ask):
    status, told = ask("viewer", "GET", "/v1/cards", q="kindd:eval grade<many")
    assert status == 400
    assert [(one["where"], one["cure"]) for one in told["faults"]] == [
        ("character 1", "did you mean 'kind'?; in quotes, to look for the words: \"kindd:eval\""),
        ("character 12", "such as 0.5"),
    ]
    assert ask("viewer", "GET", "/v1/cards", after="nonsense")[1]["error"] == "the page cursor is none that this store gave"
    assert ask("viewer", "GET", "/v1/cards", limit=0)[0] == 400


def test_one_card_comes_whole_and_the_reading_is_noted(ask, stored):
    status, told = ask("viewer", "GET", f"/v1/cards/{IDS[4]}")
    assert status == 200 and told["state"] == "graded"
    card = told["stored"]["card"]
    assert card["rollout"]["answer"] == "The operating margin was 13.4%." and card["versions"]["checkpoint"] == "tiny/120"
    assert [one["grade"]["grader"]["version"] for one in told["stored"]["grades"]] == ["1", "2"]
    assert [(one["kind"], one["id"], one["known"]) for one in told["lineage"]] == [
        ("checkpoint", "tiny/120", False), ("dataset", "d1", False), ("tool_set", "t1", False), ("grader", "numeric/1", False)
    ]  # fmt: skip
    assert ("viewer", IDS[4], 1) in read_by(stored, "read")


@pytest.mark.parametrize("path", [f"/v1/cards/{IDS[1]}", "/v1/cards/nothing"])
def test_a_card_that_is_not_there_or_anothers_is_one_and_the_same_404(ask, path):
    status, told = ask("admin", "GET", path, tenant="beta")
    assert status == 404 and told["error"] == f"no card has the id {path.rpartition('/')[2]}"


def test_a_card_with_half_a_character_in_it_is_told_all_the_same(ask, stored):
    card = make_card("half", tenant="beta")
    card.rollout.turns[0].calls = (ToolCall("c", "search", {"query": "\ud83d"}),)
    insert_cards(stored, [RecordedCard(card, NOW)])
    status, told = ask("viewer", "GET", "/v1/cards/half", tenant="beta")
    assert status == 200 and told["stored"]["card"]["rollout"]["turns"][0]["calls"][0]["arguments"] == {"query": "\ud83d"}


@pytest.mark.parametrize("format_", ["jsonl", "csv", "otlp", "parquet"])
def test_an_export_holds_the_tenants_cards_and_names_them_in_the_access_log_first(ask, stored, format_):
    before = len(read_by(stored, "export"))
    status, body = ask("viewer", "GET", "/v1/cards/export", q="kind:production", format=format_)
    assert status == 200 and b"secret-run" not in body
    if format_ == "jsonl":
        assert [json.loads(line)["card"]["rollout_id"] for line in body.splitlines()] == IDS[::-1]
    elif format_ != "parquet":
        assert all(one.encode() in body for one in IDS)
    else:
        assert body[:4] == body[-4:] == b"PAR1"
    assert read_by(stored, "export")[: len(read_by(stored, "export")) - before] == [("viewer", "kind:production", 5)]
    assert ask("operator", "GET", "/v1/cards/export", q="grade<", format=format_)[0] == 400


def test_an_export_by_words_holds_cards_that_no_word_found_before(ask, stored):
    new = make_card("not-indexed", tenant="beta")
    new.rollout.answer = "Zanzibar."
    insert_cards(stored, [RecordedCard(new, NOW)])
    assert ask("viewer", "GET", "/v1/cards", q="zanzibar", tenant="beta")[1]["cards"] == []
    status, body = ask("viewer", "GET", "/v1/cards/export", q="zanzibar", tenant="beta")
    assert status == 200 and [json.loads(line)["card"]["rollout_id"] for line in body.splitlines()] == ["not-indexed"]


@pytest.mark.parametrize(("counted", "told"), [(4, (4, True)), (5, (5, False)), (6, (5, False))])
def test_there_are_more_only_where_there_are_more(ask, monkeypatch, counted, told):
    monkeypatch.setattr("observability.find.COUNTED", counted)
    page = ask("viewer", "GET", "/v1/cards", q="kind:production")[1]
    assert (page["count"], page["more"]) == told  # five are in the store


def test_an_export_is_noted_before_its_first_byte(stored, ask, monkeypatch):
    def fails(*_: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr("serving.cards_api.note", fails)
    status, body = ask("viewer", "GET", "/v1/cards/export", q="kind:production")
    assert status == 500 and IDS[0] not in str(body)


# --- what people say -------------------------------------------------------------------------------------------------------


def test_a_review_a_change_request_and_its_outcome_are_on_the_card(ask, stored):
    one = f"/v1/cards/{IDS[3]}"
    status, review = ask("reviewer", "POST", f"{one}/reviews", {"verdict": "coach", "note": "read the table first", "position": 1})
    assert status == 201 and (review["by"], review["position"], review["verdict"]) == ("reviewer", 1, "coach")
    status, change = ask("reviewer", "POST", f"{one}/changes", {"target": "dataset", "wanted": "a row with two tables"})
    assert status == 201 and (change["row_id"], change["outcome"]) == ("numerical-0412", None)
    assert [one["id"] for one in ask("viewer", "GET", "/v1/changes", target="dataset")[1]] == [change["id"]]
    status, done = ask("reviewer", "POST", f"/v1/changes/{change['id']}/outcome", {"outcome": "done", "how": "row 0413"})
    assert status == 201 and done["outcome"]["how"] == "row 0413"
    assert ask("viewer", "GET", "/v1/changes", target="dataset")[1] == []
    told = ask("viewer", "GET", one)[1]
    assert told["state"] == "reviewed" and [each["note"] for each in told["reviews"]] == ["read the table first"]
    assert told["changes"][0]["outcome"]["outcome"] == "done"
    assert list(ledger.verify(stored, "acme")) == []


def test_what_is_wrong_with_a_review_is_told_at_once(ask):
    status, told = ask("reviewer", "POST", f"/v1/cards/{IDS[3]}/reviews", {"verdict": "coached", "note": "x" * 10_001})
    assert status == 400 and [one["where"] for one in told["faults"]] == ["verdict", "note"]
    assert (
        ask("reviewer", "POST", f"/v1/cards/{IDS[3]}/reviews", {"verdict": "accept", "position": 99})[1]["faults"][0]["where"] == "position"
    )
    assert ask("reviewer", "POST", "/v1/cards/nothing/reviews", {"verdict": "accept"})[0] == 404
    assert ask("reviewer", "POST", f"/v1/cards/{IDS[1]}/reviews", {"verdict": "accept"}, tenant="beta")[0] == 404
    assert ask("reviewer", "POST", "/v1/changes/99999999999999999999/outcome", {"outcome": "done"})[0] in (400, 404)
    assert ask("reviewer", "POST", f"/v1/cards/{IDS[3]}/reviews", {"verdict": "accept", "who": "me"})[0] == 400


def test_nothing_is_said_of_a_sealed_card(ask, stored):
    one = f"/v1/cards/{IDS[2]}"
    register(stored, GraderRef("numeric", "3", "h3"), {}, "code", "ann")
    graded = {"grader": "numeric@3", "reward": 0.5}
    assert ask("operator", "POST", f"{one}/grades", graded) == (201, {"added": True})
    assert ask("operator", "POST", f"{one}/grades", graded) == (201, {"added": False})
    assert ask("operator", "POST", f"{one}/grades", graded | {"grader": "numeric@4"})[0] == 400
    assert ask("approver", "POST", f"{one}/seal", {"why": "audited"})[0] == 204
    for role, path, body in (
        ("reviewer", "reviews", {"verdict": "accept"}),
        ("reviewer", "changes", {"target": "prompt", "wanted": "x"}),
        ("approver", "seal", {}),
        ("operator", "grades", graded),
        ("operator", "states", {"state": "blocked"}),
    ):
        status, told = ask(role, "POST", f"{one}/{path}", body)
        assert status == 409 and told["error"].startswith(f"{IDS[2]} is sealed"), path
    assert ask("viewer", "GET", one)[1]["state"] == "sealed"
    assert [line["rollout_id"] for line in ask("viewer", "GET", "/v1/cards", q="state:sealed")[1]["cards"]] == [IDS[2]]
    graded_there = ask("operator", "POST", f"/v1/cards/{IDS[0]}/grades", graded, tenant="beta")
    assert graded_there == (201, {"added": True})  # beta's own card of an id that acme has too
    assert len(ask("viewer", "GET", f"/v1/cards/{IDS[0]}")[1]["stored"]["grades"]) == 1


def test_a_job_is_followed_before_it_has_a_card(ask):
    path = "/v1/cards/not-yet"
    assert ask("operator", "POST", f"{path}/states", {"state": "opened"}) == (201, {"added": True})
    assert ask("operator", "POST", f"{path}/states", {"state": "needs_human", "why": "which quarter?"}) == (201, {"added": True})
    assert ask("operator", "POST", f"{path}/states", {"state": "needs_human", "why": "which quarter?"}) == (201, {"added": False})
    told = ask("viewer", "GET", path)[1]
    assert (told["state"], told["stored"], [one["why"] for one in told["states"]]) == ("needs_human", None, ["", "which quarter?"])
    assert ask("operator", "POST", f"{path}/states", {"state": "sealed"})[0] == 400


def test_a_guard_flags_cards_over_http(ask, stored):
    flagged = {"cards": [IDS[0], IDS[1]], "name": "length", "why": "512 tokens of one word"}
    assert ask("operator", "POST", "/v1/queue/flags", flagged) == (201, {"added": 2})
    assert ask("operator", "POST", "/v1/queue/flags", flagged) == (201, {"added": 0})
    assert ask("operator", "POST", "/v1/queue/flags", flagged | {"cards": [IDS[0], "none"]})[0] == 404
    assert ask("operator", "POST", "/v1/queue/flags", flagged | {"cards": []})[0] == 400
    waiting = ask("reviewer", "GET", "/v1/queue", reason="flag:length")[1]["waiting"]
    assert [(one["rollout_id"], one["why"]) for one in waiting] == [(IDS[0], flagged["why"]), (IDS[1], flagged["why"])]
    assert read_by(stored, "queue flagged")[0] == ("operator", "length", 2)


def test_the_queue_is_filled_and_empties_by_reviews(ask, stored):
    status, filled = ask("operator", "POST", "/v1/queue", {"shares": {"eval": 0.02}})
    assert status == 200 and filled["put"]["low_grade"] == 1
    assert ask("operator", "POST", "/v1/queue", {})[1]["put"] == {}
    told = ask("reviewer", "GET", "/v1/queue", reason="low_grade")[1]
    assert [(one["rollout_id"], one["why"]) for one in told["waiting"]] == [(IDS[4], "numeric@2 gave 0, which is below 0.5")]
    assert ["low_grade", 1, 0] in told["progress"]
    assert ask("reviewer", "POST", f"/v1/cards/{IDS[4]}/reviews", {"verdict": "reject"})[0] == 201
    told = ask("reviewer", "GET", "/v1/queue", reason="low_grade")[1]
    assert told["waiting"] == [] and ["low_grade", 0, 1] in told["progress"]
    assert ask("operator", "POST", "/v1/queue", {"at_most": 1})[0] == 400
    assert len(read_by(stored, "queue filled")) == 2
    less = {"shares": {}, "at_least": 0, "most_low": 0, "apart": 2}
    status, told = ask("operator", "POST", "/v1/queue", less)
    assert status == 400 and [one["where"] for one in told["faults"]] == ["at_least", "most_low", "apart"]
    assert ask("operator", "POST", "/v1/queue", {"shares": {"eva": 2}})[1]["faults"][0]["cure"] == "did you mean 'eval'?"


def test_a_view_is_a_query_with_a_name(ask, stored):
    assert ask("reviewer", "PUT", "/v1/views/low", {"query": "grade<0.5"})[0] == 200
    assert [one["rollout_id"] for one in ask("viewer", "GET", "/v1/cards", q="@low")[1]["cards"]] == [IDS[4]]
    assert read_by(stored, "search")[0] == ("viewer", "@low: grade<0.5", 1)  # what it stood for: it may be changed tomorrow
    assert ask("viewer", "GET", "/v1/cards/export", q="@low")[0] == 200 and read_by(stored, "export")[0] == ("viewer", "@low: grade<0.5", 1)
    status, told = ask("reviewer", "PUT", "/v1/views/worse", {"query": "grade<low"})
    assert status == 400 and told["faults"][0]["where"] == "character 1"
    assert [(one["name"], one["by"]) for one in ask("viewer", "GET", "/v1/views")[1]] == [("low", "reviewer")]
    assert ask("viewer", "GET", "/v1/views", tenant="beta")[1] == []
    assert ask("viewer", "GET", "/v1/cards", q="@lov")[1]["cure"] == "did you mean 'low'?"
    assert ask("reviewer", "DELETE", "/v1/views/low")[0] == 204
    assert ask("reviewer", "DELETE", "/v1/views/low")[0] == 404


# --- who may ----------------------------------------------------------------------------------------------------------------

MAY = [
    ("viewer", "GET", "/v1/cards", None),
    ("viewer", "GET", f"/v1/cards/{IDS[0]}", None),
    ("viewer", "GET", "/v1/cards/export", None),
    ("reviewer", "POST", f"/v1/cards/{IDS[0]}/reviews", {"verdict": "accept"}),
    ("reviewer", "POST", f"/v1/cards/{IDS[0]}/changes", {"target": "prompt", "wanted": "shorter"}),
    ("approver", "POST", f"/v1/cards/{IDS[0]}/seal", {}),
    ("operator", "POST", "/v1/cards/x/states", {"state": "opened"}),
    ("operator", "POST", "/v1/cards/x/grades", {"grader": "n@1", "reward": 1}),
    ("reviewer", "GET", "/v1/queue", None),
    ("operator", "POST", "/v1/queue", {}),
    ("operator", "POST", "/v1/queue/flags", {"cards": ["x"], "name": "n", "why": ""}),
    ("reviewer", "PUT", "/v1/views/a", {"query": ""}),
    ("reviewer", "DELETE", "/v1/views/a", None),
    ("reviewer", "POST", "/v1/changes/1/outcome", {"outcome": "done"}),
]
"""The least role that may, but for the operator and the reviewer, of whom neither is more."""
REFUSED = {
    "viewer": (),
    "reviewer": ("viewer", "operator"),
    "approver": ("viewer", "reviewer", "operator"),
    "operator": ("viewer", "approver"),
}


@pytest.mark.parametrize(("least", "method", "path", "body"), MAY)
def test_a_role_that_is_too_little_is_refused_and_changes_nothing(ask, stored, least, method, path, body):
    entries = ledger.size(stored, "acme")
    for role in REFUSED[least]:
        status, told = ask(role, method, path, body)
        assert status == 403 and "this takes the scope" in told["error"]
    assert ledger.size(stored, "acme") == entries
