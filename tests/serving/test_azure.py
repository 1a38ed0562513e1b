"""Azure's endpoint-grader and tool-call shapes, over real HTTP: who is told what, and what throws a rollout away."""

import json
import time
import urllib.request

import pytest

from agent_rft.contracts.errors import InfraError
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.messages import ToolSpec
from agent_rft.graders.endpoint import EndpointGrader
from agent_rft.graders.wire import Wire
from serving.app import create_app
from serving.tools.context import current_call

SPEC = ToolSpec(
    "note", "Adds a line to the rollout's notes.", {"type": "object", "required": ["line"], "properties": {"line": {"type": "string"}}}
)
CALL = {
    "type": "function_call",
    "id": "fc_1",
    "call_id": "call_1",
    "name": "note",
    "arguments": '{"line": "x"}',
    "trace_id": "trace_a",
    "item": {},
}


class Notes:
    """Keeps state per rollout, as a sandboxed tool would; and fails on purpose."""

    specs = (SPEC,)
    version = "1"

    def __init__(self):
        self.kept = {}

    def call(self, name, arguments):
        if arguments.get("line") == "break":
            raise ConnectionError("the store is gone")
        if arguments.get("line") == "secret":
            return "Error: that file is not yours", "policy_denied"
        if not isinstance(arguments.get("line"), str):
            return "Error: line must be a string", "model_error"
        key = current_call.get()
        self.kept.setdefault(key.rollout_id, []).append(arguments["line"])
        return "\n".join(self.kept[key.rollout_id]), None


class Exact:
    ref = GraderRef("exact", "1", "abc")

    def grade(self, item, sample):
        return Grade(self.ref, 1.0 if sample["output_text"] == item["reference_answer"] else 0.0)


class Acts:
    ref = GraderRef("acts", "1", "abc")

    def grade(self, item, sample):
        acts = {
            "fails": lambda: Grade(self.ref, None, errors={"model_grader_refusal_error": "it will not"}),
            "hangs": lambda: time.sleep(1),
            "no number": lambda: Grade(self.ref, float("nan")),
            "above one": lambda: Grade(self.ref, 2.0),
            "raises": lambda: (_ for _ in ()).throw(InfraError("judge", "unreachable")),
            "trace": lambda: Grade(self.ref, 1.0 if sample["rollout_id"] == "trace_a" else 0.0),
        }
        return acts[sample["output_text"]]()


@pytest.fixture
def url(in_thread):
    graders = {"exact": Exact(), "acts": Acts()}
    with in_thread(
        create_app(Notes(), graders, "secret", call_deadline_seconds=1, grade_deadline_seconds=0.2, max_body_bytes=20_000)
    ) as url:
        yield url


@pytest.fixture
def ask(url, post):
    return lambda path, body, bearer="secret": post(url + path, body, bearer)


# --- graders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("said", "score"), [("13.4%", 1.0), ("12%", 0.0)])
def test_a_sample_is_scored(ask, said, score):
    body = {"sample": {"output_text": said}, "item": {"reference_answer": "13.4%"}, "trace_id": "trace_a"}
    assert ask("/azure/graders/exact", body) == (200, {"score": score})


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("fails", "model_grader_refusal_error: it will not"),
        ("hangs", "unresponsive_reward_error: no grade within 0.2 s"),
        ("no number", "other_error: reward nan is not a number from 0 to 1"),
        ("above one", "other_error: reward 2.0 is not a number from 0 to 1"),
        ("raises", "other_error: judge: unreachable"),
    ],
)
def test_a_failed_grader_is_a_5xx_without_a_score_so_that_the_rollout_is_thrown_away(ask, kind, what):
    status, told = ask("/azure/graders/acts", {"sample": {"output_text": kind}, "item": {}, "trace_id": "t"})
    assert (status, told) == (503, {"infra_error": {"part": "grader:acts", "what": what}})


def test_the_grader_is_told_the_rollouts_id(ask):
    assert ask("/azure/graders/acts", {"sample": {"output_text": "trace"}, "item": {}, "trace_id": "trace_a"}) == (200, {"score": 1.0})


def test_our_own_endpoint_grader_is_such_a_client(url):
    """The other end of the protocol, from this repository: a score passes, and a failure is no score."""
    with Wire(budget_seconds=0.7, backoff_seconds=0.01) as wire:
        grader = EndpointGrader("mine", f"{url}/azure/graders/exact", wire, headers={"Authorization": "Bearer secret"})
        assert grader.grade({"reference_answer": "x"}, {"output_text": "x"}).reward == 1.0
        failed = grader.grade({}, {"output_text": "x"})
    assert failed.reward is None and set(failed.errors) == {"unresponsive_reward_error"}


def test_an_unknown_grader_is_named_with_the_nearest(ask):
    status, told = ask("/azure/graders/exakt", {"sample": {}, "item": {}, "trace_id": "t"})
    assert (status, told["detail"]) == (404, "there is no grader named 'exakt'; did you mean 'exact'?")


# --- tools ----------------------------------------------------------------------------------------------------------


def test_a_call_is_answered_in_the_shape_of_its_output(ask):
    assert ask("/azure/tools", CALL) == (200, {"type": "function_call_output", "call_id": "call_1", "id": "fc_1", "output": "x"})


def test_state_is_kept_by_trace(ask):
    for trace, line in [("trace_a", "1"), ("trace_b", "2"), ("trace_a", "3")]:
        status, told = ask("/azure/tools", {**CALL, "trace_id": trace, "arguments": json.dumps({"line": line})})
        assert status == 200
    assert told["output"] == "1\n3"


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"arguments": "{}"}, "model_error", "Error: line must be a string"),
        ({"arguments": "{"}, "model_error", "Error: line is required: arguments must be a JSON object"),
        ({"arguments": "[1]"}, "model_error", "Error: line is required: arguments must be a JSON object"),
        ({"arguments": "[" * 9000}, "model_error", "Error: line is required: arguments must be a JSON object"),
        ({"name": "notes"}, "model_error", "Error: there is no tool named notes; did you mean 'note'?"),
        ({"arguments": '{"line": "secret"}'}, "policy_denied", "Error: that file is not yours"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_the_models_mistake_is_a_4xx_without_output_which_the_model_is_shown(ask, change, kind, message):
    assert ask("/azure/tools", {**CALL, **change}) == (422, {"error": {"type": kind, "message": message}})


def test_a_failed_tool_is_a_5xx_so_that_the_rollout_is_thrown_away(ask):
    status, told = ask("/azure/tools", {**CALL, "arguments": '{"line": "break"}'})
    assert (status, told["infra_error"]["part"]) == (503, "tool:note")
    assert "the store is gone" in told["infra_error"]["what"] and "3 attempts" in told["infra_error"]["what"]


# --- requests that are none -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/azure/tools", b"{"),
        ("/azure/tools", {"name": "note"}),
        ("/azure/tools", {**CALL, "type": "function_call_output"}),
        ("/azure/tools", {**CALL, "arguments": {"line": "x"}}),
        ("/azure/graders/exact", b"{"),
        ("/azure/graders/exact", {"item": {}}),
        ("/azure/graders/exact", {"sample": "x", "item": {}}),
    ],
    ids=str,
)
def test_a_broken_request_is_the_calling_programs_mistake(ask, path, body):
    assert ask(path, body)[0] == 400


@pytest.mark.parametrize("path", ["/azure/tools", "/azure/graders/exact"])
def test_size_and_bearer_are_held_as_on_the_other_routes(ask, path):
    body = {**CALL, "sample": {"output_text": "x"}}
    assert ask(path, body, "")[0] == ask(path, body, "wrong")[0] == 401
    assert ask(path, {**body, "item": {"x": "x" * 20_000}})[0] == 413


def test_the_openapi_document_tells_the_three_outcomes(url):
    with urllib.request.urlopen(f"{url}/schema/openapi.json") as answer:
        paths = json.loads(answer.read())["paths"]
    assert {"200", "422", "503"} <= paths["/azure/tools"]["post"]["responses"].keys()
    assert {"200", "503"} <= paths["/azure/graders/{name}"]["post"]["responses"].keys()
