"""Users, keys and sessions, on both databases: who is let in, until when, and that every change of it stands in the access log."""

from __future__ import annotations

import datetime as dt
import json

import pytest
import sqlalchemy as sa

from agent_rft.contracts.errors import FaultsFound, UserError
from observability import ledger, users
from observability.access import Caller, person_at_the_machine
from observability.accesses import reading
from observability.store import Store
from observability.tables import api_keys

NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)
ME = person_at_the_machine("acme", "bob")


def key_of(store: Store, name: str = "ann", **how: object) -> users.NewKey:
    return users.new_key(store, ME, name, NOW, **how)  # pyright: ignore[reportArgumentType]


@pytest.fixture
def ann(peoples_store: Store) -> Store:
    """A store with one reviewer."""
    users.add_user(peoples_store, ME, "ann", "reviewer", NOW)
    return peoples_store


def caller(store: Store, key: users.NewKey, at: dt.datetime = NOW) -> Caller | None:
    return users.caller_of_key(store, key.text, at)


def test_a_key_lets_its_owner_in_with_what_their_role_may(ann):
    key = key_of(ann)
    found = caller(ann, key)
    assert found == Caller("acme", "ann", "reviewer", frozenset({"read", "export", "review"}), key.id)
    assert caller(ann, key_of(ann, scopes=["read"])).scopes == {"read"}  # pyright: ignore[reportOptionalMemberAccess]


def test_the_store_has_no_key_that_would_open_it(ann):
    key = key_of(ann)
    with ann.reading() as connection:
        dumped = json.dumps([[str(value) for value in row] for row in connection.execute(sa.select(api_keys))])
    assert key.id in dumped and key.text.rpartition("_")[2] not in dumped


def test_every_key_that_is_not_good_is_refused_alike(ann):
    good, revoked, short = key_of(ann), key_of(ann), key_of(ann, expires_at=NOW + HOUR)
    users.revoke_key(ann, ME, revoked.id, NOW)
    secret = good.text.rpartition("_")[2]
    wrong = f"rft_{good.id}_{'0' * 64}"
    for text in (wrong, f"rft_0000_{secret}", f"rft_{revoked.id}_{secret}", revoked.text, "", "x", "rft__", "rft_\x00_a"):
        assert users.caller_of_key(ann, text, NOW) is None, text
    assert caller(ann, short) and not caller(ann, short, NOW + HOUR), "the moment it ends it is over"
    users.disable_user(ann, ME, "ann", NOW)
    assert caller(ann, good) is None
    users.enable_user(ann, ME, "ann", NOW)
    assert caller(ann, good)


def test_a_role_that_is_taken_away_takes_what_its_keys_may(ann):
    key = key_of(ann, scopes=["review"])
    users.change_role(ann, ME, "ann", "viewer", NOW)
    assert caller(ann, key).scopes == frozenset()  # pyright: ignore[reportOptionalMemberAccess]


def test_a_rotated_key_is_good_for_the_overlap_and_no_longer(ann):
    old = key_of(ann, scopes=["read"], expires_at=NOW + 48 * HOUR)
    new = users.rotate_key(ann, ME, old.id, NOW, 24 * HOUR)
    assert caller(ann, old, NOW + 23 * HOUR) and not caller(ann, old, NOW + 24 * HOUR)
    assert caller(ann, new).scopes == {"read"} and new.expires_at == NOW + 48 * HOUR  # pyright: ignore[reportOptionalMemberAccess]
    at_once = users.rotate_key(ann, ME, new.id, NOW, dt.timedelta())
    assert caller(ann, new) is None and caller(ann, at_once)
    with pytest.raises(UserError, match="ended already"):
        users.rotate_key(ann, ME, new.id, NOW)
    late = users.rotate_key(ann, ME, at_once.id, NOW, 1000 * HOUR)
    assert not caller(ann, at_once, NOW + 48 * HOUR), "an overlap does not make a key live longer than it was made for"
    assert caller(ann, late)


def test_a_key_is_rotated_once_and_its_successor_lives_as_long_as_it_was_made_for(ann):
    forever = key_of(ann)
    new = users.rotate_key(ann, ME, forever.id, NOW, 24 * HOUR)
    with pytest.raises(UserError, match=f"{forever.id} was rotated already, to {new.id}"):
        users.rotate_key(ann, ME, forever.id, NOW + HOUR)
    assert users.rotate_key(ann, ME, new.id, NOW + HOUR).expires_at is None
    assert caller(ann, new, NOW + 24 * HOUR)


def test_a_session_may_what_its_key_may_and_ends_with_it(ann):
    key = key_of(ann, scopes=["read"])
    session = users.open_session(ann, caller(ann, key), NOW)  # pyright: ignore[reportArgumentType]
    assert caller(ann, session).scopes == {"read"}  # pyright: ignore[reportOptionalMemberAccess]
    assert caller(ann, session, NOW + 11 * HOUR) and not caller(ann, session, NOW + 12 * HOUR)
    with pytest.raises(UserError, match="that is a session, not a key"):
        users.open_session(ann, caller(ann, session), NOW)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="is a session"):
        users.rotate_key(ann, ME, session.id, NOW)
    users.revoke_key(ann, ME, key.id, NOW)
    assert caller(ann, session) is None


def test_signing_out_ends_the_session_and_not_the_key(ann):
    key = key_of(ann)
    session = users.open_session(ann, caller(ann, key), NOW)  # pyright: ignore[reportArgumentType]
    users.close_session(ann, caller(ann, session), NOW)  # pyright: ignore[reportArgumentType]
    assert caller(ann, session) is None and caller(ann, key)


@pytest.mark.parametrize("name", ["ann", "ANN", "Ann"])
def test_one_person_is_one_user_of_a_tenant(ann, name):
    users.disable_user(ann, ME, "ann", NOW)
    with pytest.raises(UserError, match="tenant acme has a user ann already"):
        users.add_user(ann, ME, name, "approver", NOW)
    users.add_user(ann, person_at_the_machine("other", "bob"), name, "viewer", NOW)


def test_all_that_is_wrong_with_a_new_user_is_told_at_once(ann):
    with pytest.raises(FaultsFound) as error:
        users.add_user(ann, person_at_the_machine(" ", "bob"), "a\nb", "boss", NOW)
    assert [fault.where for fault in error.value.faults] == ["tenant", "name", "role"]
    for scopes in (["approve"], [], ["nothing"]):
        with pytest.raises(FaultsFound, match="no such key can be made for ann"):
            key_of(ann, scopes=scopes)
    with pytest.raises(UserError, match="would never open anything"):
        key_of(ann, expires_at=NOW)
    with pytest.raises(UserError, match="did you mean 'ann'"):
        key_of(ann, "anne")


def test_another_tenants_users_and_keys_are_not_there(ann):
    key, stranger = key_of(ann), person_at_the_machine("other", "eve")
    assert users.users_of(ann, "other") == [] and users.keys_of(ann, "other") == []
    for work in (
        lambda: users.revoke_key(ann, stranger, key.id, NOW),
        lambda: users.rotate_key(ann, stranger, key.id, NOW),
        lambda: users.change_role(ann, stranger, "ann", "viewer", NOW),
        lambda: users.disable_user(ann, stranger, "ann", NOW),
        lambda: users.new_key(ann, stranger, "ann", NOW),
    ):
        with pytest.raises(UserError, match="tenant other has no"):
            work()
    assert caller(ann, key) and reading(ann, "other") == []


def test_every_change_stands_in_the_log_and_the_ledger_vouches_for_it(ann):
    key = key_of(ann)
    session = users.open_session(ann, caller(ann, key), NOW)  # pyright: ignore[reportArgumentType]
    newer = users.rotate_key(ann, ME, key.id, NOW)
    users.close_session(ann, caller(ann, session), NOW)  # pyright: ignore[reportArgumentType]
    users.revoke_key(ann, ME, newer.id, NOW)
    users.revoke_key(ann, ME, newer.id, NOW)  # is no second change
    users.change_role(ann, ME, "ann", "viewer", NOW)
    assert [(line.by, line.action, line.subject) for line in reversed(reading(ann, "acme"))] == [
        ("bob@cli", "add user", "ann as reviewer"),
        ("bob@cli", "new key", f"{key.id} of ann"),
        ("ann", "sign in", session.id),
        ("bob@cli", "rotate key", f"{key.id} of ann to {newer.id}"),
        ("ann", "sign out", session.id),
        ("bob@cli", "revoke key", f"{newer.id} of ann"),
        ("bob@cli", "change role", "ann to viewer"),
    ]
    assert list(ledger.verify(ann, "acme")) == [] and ledger.size(ann, "acme") == 7


def test_a_store_is_nobodys_until_somebody_is_added(peoples_store):
    assert not users.anybody(peoples_store)
    users.add_user(peoples_store, ME, "ann", "admin", NOW)
    assert users.anybody(peoples_store)
