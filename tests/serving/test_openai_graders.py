"""OpenAI's grader endpoints, over real HTTP: the published shapes key by key, and where we differ on purpose."""

import json
import time
import urllib.request
from contextlib import closing

import pytest

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.datasets.filings import TOOLS
from agent_rft.graders.judge import ScoreModelGrader
from agent_rft.graders.judge_server import JudgeServer
from agent_rft.graders.pure import build_pure
from agent_rft.graders.python_grader import PythonGrader
from agent_rft.graders.registry import Services, build_grader
from agent_rft.graders.sandbox import Outcome
from agent_rft.graders.scripted_judge import read_script
from agent_rft.graders.spec import ScoreModel
from agent_rft.graders.wire import Wire
from serving.app import create_app
from serving.judge import running_judge
from serving.tools.corpus import CorpusTools

RUN, VALIDATE = "/fine_tuning/alpha/graders/run", "/fine_tuning/alpha/graders/validate"

SAME = {"type": "string_check", "name": "same", "input": "{{sample.output_text}}", "reference": "{{item.answer}}", "operation": "eq"}
ALL_CLEAR = {
    "formula_parse_error": False,
    "sample_parse_error": False,
    "truncated_observation_error": False,
    "unresponsive_reward_error": False,
    "invalid_variable_error": False,
    "other_error": False,
    "python_grader_server_error": False,
    "python_grader_server_error_type": None,
    "python_grader_runtime_error": False,
    "python_grader_runtime_error_details": None,
    "model_grader_server_error": False,
    "model_grader_refusal_error": False,
    "model_grader_parse_error": False,
    "model_grader_server_error_details": None,
}
"""As OpenAI publishes them."""


def app(**options):
    return create_app(CorpusTools({"a": "b"}, TOOLS), {}, "secret", max_body_bytes=100_000, **options)


@pytest.fixture(scope="module")
def ask(in_thread, post):
    with in_thread(app()) as url:
        yield lambda path, body, bearer="secret": post(url + path, body, bearer)


@pytest.fixture(scope="module")
def services():
    with closing(Services()) as services:
        try:
            assert services.sandbox
        except UserError as error:
            pytest.skip(f"no sandbox here: {error.what}")
        yield services


@pytest.fixture
def ask_with(in_thread, post):
    """One POST to a server with these options of its own."""

    def asked(path, body, **options):
        with in_thread(app(**options)) as url:
            return post(url + path, body, "secret")

    return asked


# --- the published shapes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_a_run_has_every_published_key(ask, prefix):
    status, told = ask(prefix + RUN, {"grader": SAME, "item": {"answer": "a bear"}, "model_sample": "a bear"})
    assert 0 <= told["metadata"].pop("execution_time") < 5
    assert (status, told) == (
        200,
        {
            "reward": 1.0,
            "metadata": {
                "name": "same",
                "type": "string_check",
                "errors": ALL_CLEAR,
                "scores": {},
                "token_usage": None,
                "sampled_model_name": None,
                "error_details": {},
            },
            "sub_rewards": {},
            "model_grader_token_usage_per_model": {},
        },
    )


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_a_valid_grader_comes_back_as_it_was_given(ask, prefix):
    """Not as we read it: `neq` stays."""
    grader = {**SAME, "operation": "neq"}
    assert ask(prefix + VALIDATE, {"grader": grader}) == (200, {"grader": grader})


def test_a_sample_that_is_json_fills_output_json(ask):
    grader = {**SAME, "input": "{{sample.output_json.who}}"}
    assert ask(RUN, {"grader": grader, "item": {"answer": "a bear"}, "model_sample": '{"who": "a bear"}'})[1]["reward"] == 1.0
    assert ask(RUN, {"grader": grader, "item": {"answer": "a bear"}, "model_sample": "who"})[1]["reward"] == 0.0


def test_a_multi_tells_what_each_of_its_graders_gave(ask):
    half = {"type": "multi", "graders": {"a": SAME, "b": {**SAME, "operation": "ne"}}, "calculate_output": "(a + b) / 2"}
    told = ask(RUN, {"grader": half, "item": {"answer": "x"}, "model_sample": "x"})[1]
    # a: equal, 1; b: not unequal, 0; (1 + 0) / 2
    assert (told["reward"], told["sub_rewards"], told["metadata"]["scores"]) == (0.5, {"a": 1.0, "b": 0.0}, {"score": 0.5})


# --- failures -------------------------------------------------------------------------------------------------------


WITHOUT_DETAILS = (
    "formula_parse_error",
    "sample_parse_error",
    "truncated_observation_error",
    "unresponsive_reward_error",
    "invalid_variable_error",
    "other_error",
    "model_grader_refusal_error",
    "model_grader_parse_error",
)


class Fails:
    ref = GraderRef("fails", "1", "abc")

    def __init__(self, errors):
        self._errors = errors

    def grade(self, item, sample):
        return Grade(self.ref, None, errors=self._errors)


@pytest.mark.parametrize(
    ("errors", "set_ones"),
    [
        *(({flag: "why"}, {flag: True}) for flag in WITHOUT_DETAILS),
        (
            {"python_grader_server_error": "gone", "python_grader_server_error_type": "protocol"},
            {"python_grader_server_error": True, "python_grader_server_error_type": "protocol"},
        ),
        (
            {"python_grader_runtime_error": "crash", "python_grader_runtime_error_details": "line 3"},
            {"python_grader_runtime_error": True, "python_grader_runtime_error_details": "line 3"},
        ),
        (
            {"model_grader_server_error": "503", "model_grader_server_error_details": "overloaded"},
            {"model_grader_server_error": True, "model_grader_server_error_details": "overloaded"},
        ),
        (
            {"model_grader_server_error": "in short"},
            {"model_grader_server_error": True, "model_grader_server_error_details": "in short"},
        ),
        (
            {"a.model_grader_parse_error": "?", "b.c.invalid_variable_error": "?"},
            {"model_grader_parse_error": True, "invalid_variable_error": True},
        ),
        ({"a_flag_of_our_own": "?"}, {"other_error": True}),
        ({}, {"other_error": True}),
    ],
    ids=str,
)
def test_each_flag_is_raised_and_no_other(ask_with, errors, set_ones):
    status, told = ask_with(RUN, {"grader": SAME, "model_sample": "x"}, build=lambda spec: Fails(errors))
    assert (status, told["reward"], told["metadata"]["errors"]) == (200, None, {**ALL_CLEAR, **set_ones})
    assert told["metadata"]["error_details"] == (errors or {"other_error": "no reward, and no reason given"})


PYTHON = {"type": "python", "name": "p", "source": "def grade(sample, item):\n    return 1.0"}
JUDGE = {"type": "score_model", "name": "j", "model": "m", "input": [{"role": "user", "content": "{{sample.output_text}}"}]}


def test_in_a_multi_each_part_says_what_it_lacks(ask):
    multi = {"type": "multi", "graders": {"same": SAME, "code": PYTHON, "judge": JUDGE}, "calculate_output": "same + code + judge"}
    told = ask(RUN, {"grader": multi, "item": {"answer": "x"}, "model_sample": "x"})[1]
    assert list(told["metadata"]["error_details"]) == ["code.python_grader_server_error", "judge.model_grader_server_error"]
    assert [flag for flag, value in told["metadata"]["errors"].items() if value is True] == [
        "python_grader_server_error",
        "model_grader_server_error",
    ]


class Misbehaves:
    ref = GraderRef("misbehaves", "1", "abc")

    def __init__(self, act):
        self._act = act

    def grade(self, item, sample):
        return self._act(self.ref)


@pytest.mark.parametrize(
    ("act", "flag", "what"),
    [
        (lambda ref: 1 / 0, "other_error", "ZeroDivisionError('division by zero')"),
        (lambda ref: time.sleep(1), "unresponsive_reward_error", "no grade within 0.2 s"),
        (lambda ref: Grade(ref, 1.5), "other_error", "reward 1.5 is not a number from 0 to 1"),
        (lambda ref: Grade(ref, float("nan")), "other_error", "reward nan is not a number from 0 to 1"),
    ],
    ids=["raises", "hangs", "above one", "no number"],
)
def test_a_grader_that_misbehaves_gives_no_score(ask_with, act, flag, what):
    body = {"grader": SAME, "model_sample": "x"}
    status, told = ask_with(RUN, body, build=lambda spec: Misbehaves(act), grade_deadline_seconds=0.2)
    assert (status, told["reward"], told["metadata"]["error_details"]) == (200, None, {flag: what})
    assert told["metadata"]["errors"] == {**ALL_CLEAR, flag: True}


# --- judges ---------------------------------------------------------------------------------------------------------


def test_tokens_of_judges_are_counted_by_model_and_in_all(ask_with):
    """Two judges of one multi, on the scripted judge: one gives 7 of 0 to 10, one 1 of 0 to 1."""
    multi = {
        "type": "multi",
        "graders": {"wide": {**JUDGE, "range": [0, 10], "model": "big"}, "narrow": {**JUDGE, "model": "small"}},
        "calculate_output": "wide / 10 * narrow",
    }
    script = read_script(json.dumps({"rules": [{"when": "", "in": "all", "score": 7}]}))
    with running_judge(script) as url, Wire(budget_seconds=1, backoff_seconds=0.01) as wire:
        server = JudgeServer(url, wire)

        def build(spec):
            if isinstance(spec, ScoreModel):
                return ScoreModelGrader(spec.name, spec.model, spec.input, server, score_range=(spec.range[0], spec.range[1]))
            return build_pure(spec, build)

        told = ask_with(RUN, {"grader": multi, "model_sample": "x"}, build=build)[1]
        alone = ask_with(RUN, {"grader": multi["graders"]["wide"], "model_sample": "y"}, build=build)[1]
    used = told["model_grader_token_usage_per_model"]
    assert set(used) == {"big", "small"}
    assert set(used["big"]) == {"prompt_tokens", "total_tokens", "completion_tokens", "cached_tokens"}
    assert used["big"]["total_tokens"] > 0
    assert told["metadata"]["token_usage"] == used["big"]["total_tokens"] + used["small"]["total_tokens"]
    assert told["metadata"]["sampled_model_name"] is None
    # 7 of 0 to 10 is 7 for the formula; the other 7 is cut to 1; 7 / 10 * 1
    assert told["reward"] == pytest.approx(0.7)
    assert (alone["reward"], alone["metadata"]["scores"]) == (pytest.approx(0.7), {"score": 7.0})
    assert alone["metadata"]["sampled_model_name"] == "big"
    assert alone["metadata"]["token_usage"] == alone["model_grader_token_usage_per_model"]["big"]["total_tokens"]


# --- python sources -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("around", "where"),
    [
        (lambda python: python, "grader.source"),
        (
            lambda python: {"type": "multi", "graders": {"code": python, "same": SAME}, "calculate_output": "code"},
            "grader.graders.code.source",
        ),
        (lambda python: {"type": "stack", "correctness": {"grader": python}}, "grader.correctness.grader.source"),
    ],
    ids=["alone", "in a multi", "in a stack"],
)
@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("def grade(sample, item) return 1", "SyntaxError: expected ':'"),
        ("def score(sample, item):\n    return 1", "NameError: the source defines no function 'grade'"),
        ("import nothing_like_it\ndef grade(sample, item):\n    return 1", "ModuleNotFoundError: No module named 'nothing_like_it'"),
    ],
    ids=["syntax", "no function", "no module"],
)
def test_one_that_does_not_run_is_told_at_validation(ask_with, services, around, where, source, what):
    def build(spec):
        return build_grader(spec, services)

    right, wrong = around(PYTHON), around({**PYTHON, "source": source})
    assert ask_with(VALIDATE, {"grader": right}, build=build) == (200, {"grader": right})
    status, told = ask_with(VALIDATE, {"grader": wrong}, build=build)
    assert (status, told["error"]["code"], told["error"]["param"]) == (400, "invalid_grader", where)
    assert f"  {where}: {what} (define grade(sample, item)" in told["error"]["message"]


class Broken:
    """A sandbox that does not do its work."""

    def run(self, *arguments):
        return Outcome(error="protocol", what="it ended or hung in the middle of a grading")


def test_a_sandbox_that_fails_or_is_missing_says_nothing_of_the_source(ask_with):
    wrong = {"grader": {**PYTHON, "source": "def grade("}}
    assert ask_with(VALIDATE, wrong, build=lambda spec: PythonGrader(spec.source, Broken())) == (200, wrong)
    assert ask_with(VALIDATE, wrong) == (200, wrong)


# --- requests that are none -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({}, None, "Object missing required field `grader`"),
        ({"grader": SAME}, None, "Object missing required field `model_sample`"),
        ({"grader": "numeric", "model_sample": "x"}, "grader", "grader: Expected `object`, got `str`"),
        ({"grader": SAME, "model_sample": 3}, "model_sample", "model_sample: Expected `str | object`, got `int`"),
        ({"grader": SAME, "model_sample": "x", "item": [1]}, "item", "item: Expected `object | null`, got `array`"),
        ({"grader": {}, "model_sample": "x"}, "grader.type", "grader is no usable grader\n  grader.type: is missing"),
        (b"{", None, "the body: Input data was truncated"),
        (b'{"grader": ' + b"[" * 50_000, None, "the body is nested too deep"),
    ],
    ids=str,
)
def test_a_broken_request_is_refused_in_openais_error_shape(ask, body, param, message):
    status, told = ask(RUN, body)
    code = told["error"].pop("code")
    assert (status, code) == (400, "invalid_grader" if param == "grader.type" else None)
    assert told["error"].pop("message").startswith(message)
    assert told == {"error": {"type": "invalid_request_error", "param": param}}


def test_graders_nested_beyond_reason_are_refused(ask):
    grader = SAME
    for _ in range(120):
        grader = {"type": "multi", "graders": {"a": {"type": "stack", "correctness": {"grader": grader}}}, "calculate_output": "a"}
    status, told = ask(RUN, {"grader": grader, "model_sample": "x"})
    assert (status, told["error"]["message"]) == (400, "grader is no usable grader\n  grader: is nested too deep")


def test_too_large_a_body_is_refused(ask):
    status, told = ask(RUN, {"grader": SAME, "model_sample": "x" * 100_000})
    assert (status, told["error"]["type"]) == (413, "invalid_request_error")


@pytest.mark.parametrize("path", [RUN, VALIDATE, f"/v1{RUN}", f"/v1{VALIDATE}"])
@pytest.mark.parametrize("bearer", ["", "wrong"])
def test_nobody_comes_in_without_the_bearer(ask, path, bearer):
    status, told = ask(path, {"grader": SAME, "model_sample": "x"}, bearer)
    assert (status, told["error"]["code"]) == (401, "invalid_api_key")
    assert "TOOL_BEARER" in told["error"]["message"]


def test_the_openapi_document_describes_both(in_thread):
    with in_thread(app()) as url, urllib.request.urlopen(f"{url}/schema/openapi.json") as answer:
        document = json.loads(answer.read())
    assert {RUN, VALIDATE, f"/v1{RUN}", f"/v1{VALIDATE}"} <= document["paths"].keys()
    run = document["paths"][f"/v1{RUN}"]["post"]
    assert run["security"] == [{"bearer": []}] and {"200", "400", "401"} <= run["responses"].keys()
    shown = document["components"]["schemas"]["RunResponse"]["properties"]
    assert set(shown) == {"reward", "metadata", "sub_rewards", "model_grader_token_usage_per_model"}


def test_the_openapi_document_is_the_same_each_time_it_is_made(in_thread):
    """Examples that a library makes up would be others for each server, and making them half of an app's start."""
    with in_thread(app()) as url, urllib.request.urlopen(f"{url}/schema/openapi.json") as answer:
        first = answer.read()
    with in_thread(app()) as url, urllib.request.urlopen(f"{url}/schema/openapi.json") as answer:
        assert answer.read() == first
