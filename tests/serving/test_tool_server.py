"""The wire contract, against a real server in a process of its own."""

import json
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from serving.server import running_server

TOY = Path(__file__).parent / "toy_server.py"


@pytest.fixture(scope="module")
def server():
    with running_server(lambda port: [sys.executable, str(TOY), str(port)]) as running:
        yield running


def ask(server, path, body=None, bearer=None, method=None):
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {server.bearer if bearer is None else bearer}", "Content-Type": "application/json"}
    request = urllib.request.Request(server.base_url + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_a_call_is_answered_with_its_output_and_call_id(server):
    call = {"arguments": {"path": "filings/atlas-10k-2024.html"}, "call_id": "c1", "rollout_id": "r1"}
    output = "Atlas fiscal 2024\nrevenue: $400M\ngross margin: 28.7%"
    assert ask(server, "/tools/read", call) == (200, {"output": output, "call_id": "c1", "error": None})


def test_the_seeds_smoke_test_works_as_written(server):
    """The short form, without a rollout id."""
    status, answer = ask(server, "/search", {"arguments": {"query": "Henderson Q3 2025 operating margin"}, "call_id": "test-001"})
    assert status == 200 and answer["call_id"] == "test-001"
    assert answer["output"].startswith("filings/henderson-10q-2025-q3.html (score 0.") and "operating margin: 13.4%" in answer["output"]


@pytest.mark.parametrize(
    ("tool", "arguments", "told"),
    [
        ("search", {}, "Error: query is required"),
        ("search", {"query": "  "}, "Error: query is required"),
        ("search", {"query": None}, "Error: query is required"),
        ("search", {"query": ["a"]}, "Error: query must be a string"),
        ("search", "Henderson", "Error: query is required: arguments must be a JSON object"),
        ("search", None, "Error: query is required: arguments must be a JSON object"),
        ("read", {"path": "nowhere"}, "Error: no document at nowhere; search or list to find paths"),
        ("serch", {"query": "x"}, "Error: there is no tool named serch; did you mean 'search'?"),
        ("a%2Fb", {}, "Error: there is no tool named a/b; one of: list, read, search"),
    ],
)
def test_the_models_mistake_is_an_answer_that_says_what_to_change(server, tool, arguments, told):
    assert ask(server, f"/tools/{tool}", {"arguments": arguments, "call_id": "c"}) == (
        200,
        {"output": told, "call_id": "c", "error": "model_error"},
    )


def test_the_same_call_delivered_twice_is_answered_twice_the_same(server):
    call = {"arguments": {"prefix": "filings/h"}, "call_id": "c", "rollout_id": "r"}
    assert ask(server, "/tools/list", call) == ask(server, "/tools/list", call)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"arguments": {}}',
        b'{"arguments": {}, "call_id": 7}',
        b'{"call_id": "c", "rollout_id": 7}',
        b'{"call_id": "\xff"}',
        b'{"call_id": "c", "arguments": ' + b"[" * 50_000,
    ],
    ids=lambda body: body[:40].decode(errors="replace"),
)
def test_a_broken_request_is_the_calling_programs_mistake(server, body):
    status, answer = ask(server, "/tools/search", body)
    assert status == 400
    assert answer["detail"].startswith('the body must be JSON like {"arguments": {...}, "call_id": "...", "rollout_id": "..."}: ')


@pytest.mark.parametrize("path", ["/tools/search", "/search", "/grade", "/tools"])
@pytest.mark.parametrize("bearer", ["", "wrong"])
def test_nobody_comes_in_without_the_bearer(server, path, bearer):
    body = None if path == "/tools" else {"arguments": {}, "call_id": "c", "item": {}, "sample": {}}
    status, answer = ask(server, path, body, bearer=bearer)
    assert (status, answer["status_code"]) == (401, 401)
    assert "TOOL_BEARER" in answer["detail"]


def test_too_large_a_body_is_refused(server):
    status, answer = ask(server, "/search", {"arguments": {"query": "x" * 100_000}, "call_id": "c"})
    assert (status, answer["detail"]) == (413, "the body is larger than 100000 bytes")


def test_other_paths_and_methods(server):
    assert ask(server, "/tools/search", method="GET")[0] == 405
    assert ask(server, "/toolsx", {"call_id": "c"})[0] == 404
    assert ask(server, "/nothing")[0] == 404


def test_health_names_the_versions_and_needs_no_bearer(server):
    status, health = ask(server, "/health", bearer="")
    assert (status, health["status"], health["tools"]["names"]) == (200, "ok", ["search", "list", "read"])
    assert len(health["tools"]["version"]) == 16
    assert health["graders"] == {"exact": {"version": "1", "hash": "abc"}} and health["store"] == "none"


def test_tools_are_listed_as_a_model_is_told_about_them(server):
    status, listed = ask(server, "/tools")
    assert status == 200
    assert [tool["function"]["name"] for tool in listed["tools"]] == ["search", "list", "read"]


def test_the_openapi_document_describes_every_route(server):
    status, document = ask(server, "/schema/openapi.json")
    assert status == 200
    assert {"/tools", "/tools/{name}", "/search", "/list", "/read", "/grade", "/health"} <= document["paths"].keys()
    request = document["paths"]["/search"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert request["required"] == ["call_id"]
    assert request["properties"]["arguments"]["required"] == ["query"]


def test_a_sample_is_graded_by_the_grader_named_or_the_first(server):
    case = {"item": {"reference_answer": "13.4%"}, "sample": {"output_text": "13.4%"}}
    grade = {
        "grader": {"name": "exact", "version": "1", "hash": "abc"},
        "reward": 1.0,
        "passed": None,
        "parts": {"said": "13.4%"},
        "errors": {},
    }
    assert ask(server, "/grade", case) == (200, grade)
    assert ask(server, "/grade", {**case, "grader": "exact", "rollout_id": "r"}) == (200, grade)


def test_a_grader_that_fails_gives_no_score(server):
    status, grade = ask(server, "/grade", {"item": {}, "sample": {"output_text": "x"}})
    assert (status, grade["reward"], grade["errors"]) == (200, None, {"other_error": "KeyError('reference_answer')"})


def test_an_unknown_grader_is_refused_with_the_nearest_name(server):
    status, answer = ask(server, "/grade", {"item": {}, "sample": {}, "grader": "exakt"})
    assert (status, answer["detail"]) == (400, "there is no grader named 'exakt'; did you mean 'exact'?")
