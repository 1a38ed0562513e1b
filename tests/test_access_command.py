"""`rft user`, `rft key` and `rft access`: what a person types, sees, and finds in the log afterwards."""

from __future__ import annotations

import datetime as dt
import re
import runpy
from pathlib import Path

import pytest

from agent_rft.commands.access import me
from observability import users
from observability.accesses import reading
from observability.ingest import insert_cards
from observability.records import RecordedCard
from observability.store import Store, open_store

make_card = runpy.run_path(str(Path(__file__).parent / "observability/sample_cards.py"))["make_card"]
NOW = dt.datetime.now(dt.UTC)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = open_store(f"sqlite:///{tmp_path}/cards.db")
    insert_cards(store, [RecordedCard(make_card(one, tenant="default"), NOW) for one in ("card-1", "card-2")])
    return store


def key_in(told: str) -> str:
    return re.findall(r"rft_[0-9a-f]{16}_[0-9a-f]{64}", told)[0]


def test_a_user_is_added_with_a_key_that_opens_the_store_until_it_is_rotated_and_revoked(rft, store):
    code, told = rft("user", "add", "ann", "--role", "reviewer")
    first = key_in(told)
    assert code == 0 and "ann is a reviewer of tenant default now" in told
    assert users.caller_of_key(store, first, NOW).scopes == {"read", "export", "review"}
    code, told = rft("key", "rotate", first.split("_")[1], "--overlap", "0")
    assert code == 0 and users.caller_of_key(store, first, dt.datetime.now(dt.UTC)) is None
    second = key_in(told)
    assert users.caller_of_key(store, second, NOW)
    assert rft("key", "revoke", second.split("_")[1])[0] == 0 and users.caller_of_key(store, second, NOW) is None


def test_a_trainers_key_only_ingests(rft, store):
    rft("user", "add", "trainer", "--role", "operator")
    code, told = rft("key", "new", "trainer", "--scope", "ingest", "--days", "30")
    assert code == 0 and users.caller_of_key(store, key_in(told), NOW).scopes == {"ingest"}
    code, told = rft("key", "list", "--user", "trainer")
    assert code == 0 and "ingest" in told and "all its owner may" in told and key_in_full(store) not in told


def key_in_full(store: Store) -> str:
    return users.keys_of(store, "default")[0].id + "_"


def test_roles_change_and_users_are_disabled_and_enabled(rft, store):
    key = key_in(rft("user", "add", "ann", "--role", "viewer")[1])
    assert "ann is an approver" in rft("user", "role", "ann", "approver")[1]
    assert users.caller_of_key(store, key, NOW).role == "approver"
    assert rft("user", "disable", "ann")[0] == 0 and users.caller_of_key(store, key, NOW) is None
    assert "disabled" in rft("user", "list")[1]
    assert rft("user", "enable", "ann")[0] == 0 and users.caller_of_key(store, key, NOW)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("key", "new", "bob", "--days", "1e10"), "1e10 is not a number from 0 to 3,650"),
        (("key", "new", "bob", "--days", "nan"), "nan is not a number"),
        (("key", "rotate", "ab", "--overlap", "inf"), "inf is not a number from 0 to 720"),
        (("key", "rotate", "ab", "--overlap", "-5"), "-5 is not a number from 0 to 720"),
        (("access", "--after", "99999999999999999999"), "is not a number of the access log"),
        (("access", "--limit", "-1"), "-1 is not a number from 1"),
    ],
)
def test_a_number_that_cannot_be_is_refused_as_it_is_typed(rft, capfd, words, said):
    with pytest.raises(SystemExit, match="2"):
        rft(*words)
    told = capfd.readouterr().err
    assert said in told and "Traceback" not in told


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("user", "add", "Ann ", "--role", "boss"), ("name: 'Ann ' is no name", "role: there is no role 'boss' (one of: admin")),
        (("user", "add", "BOB", "--role", "viewer"), ("has a user bob already", "cure: change their role")),
        (("user", "role", "bobb", "viewer"), ("has no user bobb", "did you mean 'bob'?")),
        (("user", "disable", "bob", "--tenant", "acme"), ("tenant acme has no user bob", "rft user add NAME --role ROLE")),
        (
            ("key", "new", "bob", "--scope", "reed", "--scope", "admin"),
            ("there is no scope 'reed'", "'admin' is more than the role viewer"),
        ),
        (("key", "new", "bob", "--days", "0"), ("would never open anything",)),
        (("key", "revoke", "nope"), ("has no key nope", "rft key list")),
        (("access", "--card", "nope"), ("no card's id begins with 'nope'",)),
    ],
)
def test_a_mistake_is_one_clear_error_with_its_cure(rft, words, said):
    rft("user", "add", "bob", "--role", "viewer")
    code, told = rft(*words)
    assert code == 2 and all(one in told for one in said), told


def test_what_is_read_and_taken_out_at_the_machine_stands_in_the_log(rft, store, tmp_path):
    assert rft("card", "show", "card-1")[0] == 0
    assert rft("card", "export", "kind:eval", "--out", str(tmp_path / "cards.jsonl"))[0] == 0
    assert rft("ledger", "evidence", "id:card-2", "--case", "c1", "--by", "ann", "--out", str(tmp_path / "c1.zip"))[0] == 0
    who = me("default").name
    assert who.endswith("@cli")
    assert [(line.by, line.action, line.subject, line.cards) for line in reading(store, "default")] == [
        (who, "evidence", "c1: id:card-2", 1),
        (who, "export", "kind:eval", 2),
        (who, "read", "card-1", 1),
    ]
    code, told = rft("access", "--card", "card-1")
    assert code == 0 and "export" in told and "read" in told and "evidence" not in told
    assert "next page: --after" in rft("access", "--limit", "2")[1]
    assert rft("ledger", "verify")[0] == 0


def test_an_export_that_fails_half_way_leaves_no_file(rft, store, tmp_path, monkeypatch):
    def away(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("agent_rft.commands.cards.note", away)
    code, told = rft("card", "export", "kind:eval", "--out", str(tmp_path / "cards.jsonl"))
    assert code == 2 and "No space left" in told and not (tmp_path / "cards.jsonl").exists()
