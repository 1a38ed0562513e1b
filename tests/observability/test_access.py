"""Roles and keys: what each may, what a key looks like, and what no name may be."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observability.access import (
    ROLES,
    SCOPES,
    Caller,
    KeyText,
    allowed,
    digest_of,
    faults_of_name,
    faults_of_role,
    faults_of_scopes,
    is_secret_of,
    person_at_the_machine,
    read_key,
)


def test_what_each_role_may():
    assert {role: " ".join(scope for scope in SCOPES if scope in may) for role, may in ROLES.items()} == {
        "viewer": "read export",
        "reviewer": "read export review",
        "approver": "read export review approve",
        "agent": "run",  # an agent's program reads nobody's cards
        "operator": "read export ingest run operate",  # who runs the store does not judge its cards
        "admin": "read export review approve ingest run operate admin",
    }


@given(role=st.sampled_from(sorted(ROLES)), narrowed=st.none() | st.lists(st.sampled_from([*SCOPES, "tool:search", "tool:", "root", ""])))
def test_a_key_may_never_more_than_its_owners_role(role, narrowed):
    may = allowed(role, narrowed)
    tools = {"tool:search"} if "run" in ROLES[role] else set()
    assert may <= ROLES[role] | tools and (narrowed is None or may <= set(narrowed))


def test_a_role_that_is_none_may_nothing():
    assert allowed("owner", None) == allowed("owner", ["read"]) == frozenset()
    assert not Caller("t", "n", "viewer", allowed("viewer", ["ingest"]), "k").may("ingest")


def test_a_key_comes_back_from_its_text_and_nothing_else_is_one():
    key = KeyText("0123456789abcdef", "ab" * 32)
    assert read_key(f" {key}\n") == key and str(key) == f"rft_0123456789abcdef_{'ab' * 32}"
    for other in ("", "rft", "rft__", "rft_a_", "rft__b", "rft_a_b_c", "sk_a_b", "secret", "rft_\x00_a", "rft_a_\u00e9"):
        assert read_key(other) is None


@given(st.text())
def test_whatever_is_sent_as_a_key_is_one_or_none(text):
    key = read_key(text)
    assert key is None or text.strip() == str(key)


def test_the_digest_of_a_secret_is_its_sha_256():
    assert digest_of("abc") == hashlib.sha256(b"abc").hexdigest()
    assert is_secret_of("abc", digest_of("abc")) and not is_secret_of("abd", digest_of("abc"))
    assert is_secret_of("\ud800", digest_of("?")), "half a surrogate pair is no crash"


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "ann ",
        " ann",
        "ann  b",
        "a\nb",
        "a\x1b[31m",
        "a\u202eb",
        "x" * 101,
        "root@cli",
        "Root@CLI",
        "root＠ｃｌｉ",
        "root@\u0441li",
    ],
)
def test_names_that_nobody_may_have(name):
    assert len(list(faults_of_name("name", name))) == 1


@pytest.mark.parametrize("name", ["ann", "Ann Lee", "ann@example.org", "Zoë", "安", "x" * 100])
def test_names_that_people_have(name):
    assert not list(faults_of_name("name", name))


def test_faults_name_the_nearest_that_would_be_right():
    assert [str(fault) for fault in faults_of_role("reviewr")] == ["role: there is no role 'reviewr' (did you mean 'reviewer'?)"]
    assert [fault.what for fault in faults_of_scopes(["approve", "raed", "read"], "reviewer")] == [
        "'approve' is more than the role reviewer may",
        "there is no scope 'raed'",
    ]


def test_a_tools_scope_is_any_tools_for_who_may_run_and_nobody_elses():
    assert not list(faults_of_scopes(["tool:search", "tool:a.b-c_1"], "agent"))
    assert [str(fault) for fault in faults_of_scopes(["tol:search", "tool:", "tool:a b", "runs"], "agent")] == [
        "scopes: there is no scope 'tol:search' (did you mean 'tool:search'?)",
        "scopes: there is no scope 'tool:' (tool:NAME, as in tool:search)",
        "scopes: there is no scope 'tool:a b' (tool:NAME, as in tool:search)",
        "scopes: there is no scope 'runs' (did you mean 'run'?)",
    ]
    assert [fault.what for fault in faults_of_scopes(["tool:search"], "viewer")] == ["'tool:search' is more than the role viewer may"]


def test_a_key_that_names_tools_calls_these_and_no_others():
    def of(*scopes):
        return Caller("t", "n", "agent", allowed("agent", scopes or None), "k")

    assert of().may_call("search") and of("run").may_call("read")
    assert of("tool:search").may_call("search") and not of("tool:search").may("run")
    assert not of("tool:search").may_call("read") and not of("run", "tool:search").may_call("read")
    assert not Caller("t", "n", "viewer", allowed("viewer", ["tool:search"]), "k").may_call("search")


def test_a_person_at_the_machine_cannot_be_mistaken_for_a_user():
    assert person_at_the_machine("acme", "bob").name == "bob@cli"
    assert list(faults_of_name("name", person_at_the_machine("acme", "bob").name))
