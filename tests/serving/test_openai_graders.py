"""OpenAI's grader endpoints, over real HTTP: the published shapes key by key, and where we differ on purpose."""

import json
import time
import urllib.request
from pathlib import Path

import pytest

from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.datasets.filings import TOOLS
from agent_rft.graders.judge import ScoreModelGrader
from agent_rft.graders.judge_server import JudgeServer
from agent_rft.graders.pure import build_pure
from agent_rft.graders.samples import sample_of_text
from agent_rft.graders.scripted_judge import read_script
from agent_rft.graders.spec import ScoreModel
from agent_rft.graders.wire import Wire
from serving.app import create_app
from serving.judge import running_judge
from serving.tools.corpus import CorpusTools

EXAMPLES = Path(__file__).parents[2] / "examples"
PURE = ("string_check", "text_similarity", "numeric", "schema", "f1_set", "trajectory", "multi", "stack")
GRADERS = [path for path in sorted((EXAMPLES / "graders").glob("*.json")) if json.loads(path.read_text())["type"] in PURE]
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


# --- the example graders ----------------------------------------------------------------------------------------------


def samples_of(sample, grader):
    """The sample, and where a text alone says as much to this grader, that text."""
    yield sample
    text = sample.get("output_text")
    if (
        "output_tools" not in json.dumps(grader)
        and isinstance(text, str)
        and all(sample_of_text(text).get(key, "absent") == value for key, value in sample.items())
    ):
        yield text


@pytest.mark.parametrize("path", GRADERS, ids=lambda path: path.stem)
def test_each_example_gets_over_http_what_its_case_file_says(ask, path):
    grader = json.loads(path.read_text())
    assert ask(VALIDATE, {"grader": grader}) == (200, {"grader": grader})
    for line in path.with_suffix(".cases.jsonl").read_text().splitlines():
        case = json.loads(line)
        for sample in samples_of(case["sample"], grader):
            status, told = ask(RUN, {"grader": grader, "item": case["item"], "model_sample": sample})
            metadata = told["metadata"]
            assert (status, metadata["type"], set(metadata["errors"])) == (200, grader["type"], set(ALL_CLEAR))
            if "errors" in case:
                assert (told["reward"], list(metadata["error_details"])) == (None, case["errors"]), case["why"]
                assert all(metadata["errors"][flag.rpartition(".")[2]] is True for flag in case["errors"])
            else:
                assert told["reward"] == pytest.approx(case["reward"], abs=1e-6), case["why"]
                assert metadata["errors"] == ALL_CLEAR


def test_texts_alone_reach_most_of_the_examples():
    both = 0
    for path in GRADERS:
        grader = json.loads(path.read_text())
        for line in path.with_suffix(".cases.jsonl").read_text().splitlines():
            both += len(list(samples_of(json.loads(line)["sample"], grader))) == 2
    assert both > 20


@pytest.mark.parametrize("path", sorted((EXAMPLES / "graders" / "refused").glob("*.json")), ids=lambda path: path.stem)
def test_a_refused_example_is_told_with_every_fault(ask, path):
    example = json.loads(path.read_text())
    status, told = ask(VALIDATE, {"grader": example["grader"]})
    assert (status, set(told), set(told["error"])) == (400, {"error"}, {"message", "type", "param", "code"})
    assert all(f"  {where}: " in told["error"]["message"] for where in example["faults"])
    assert (told["error"]["type"], told["error"]["code"]) == ("invalid_request_error", "invalid_grader")
    assert told["error"]["param"] in example["faults"]
    status, run = ask(RUN, {"grader": example["grader"], "model_sample": "x"})
    if "flags" in example:  # it fits the schema: it runs, and fails with its flag
        raised = {flag: True for flag in example["flags"]}
        assert (status, run["reward"], run["metadata"]["errors"]) == (200, None, {**ALL_CLEAR, **raised})
    else:
        assert (status, run) == (400, told)


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
LABELS = {**JUDGE, "type": "label_model", "labels": ["good", "bad"], "passing_labels": ["good"]}
COSINE = {"type": "text_similarity", "name": "c", "input": "{{sample.output_text}}", "reference": "x", "evaluation_metric": "cosine"}
ENDPOINT = {"type": "endpoint", "name": "e", "url": "http://example.com/grade"}


@pytest.mark.parametrize(
    ("grader", "flag", "configure"),
    [
        (PYTHON, "python_grader_server_error", "configure a sandbox"),
        (JUDGE, "model_grader_server_error", "configure a judge"),
        (LABELS, "model_grader_server_error", "configure a judge"),
        (COSINE, "model_grader_server_error", "embeddings endpoint"),
        (ENDPOINT, "other_error", "may call the endpoints of others"),
    ],
    ids=lambda value: value.get("type") if isinstance(value, dict) else None,
)
def test_what_this_server_was_not_given_is_a_flag_that_says_what_to_configure(ask, grader, flag, configure):
    assert ask(VALIDATE, {"grader": grader})[0] == 200
    status, told = ask(RUN, {"grader": grader, "model_sample": "x"})
    assert (status, told["reward"]) == (200, None)
    assert [name for name, value in told["metadata"]["errors"].items() if value is True] == [flag]
    assert configure in told["metadata"]["error_details"][flag]


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
    ("act", "what"),
    [
        (lambda ref: 1 / 0, "ZeroDivisionError('division by zero')"),
        (lambda ref: time.sleep(1), "no grade within 0.2 s"),
        (lambda ref: Grade(ref, 1.5), "reward 1.5 is not a number from 0 to 1"),
        (lambda ref: Grade(ref, float("nan")), "reward nan is not a number from 0 to 1"),
    ],
    ids=["raises", "hangs", "above one", "no number"],
)
def test_a_grader_that_misbehaves_gives_no_score(ask_with, act, what):
    body = {"grader": SAME, "model_sample": "x"}
    status, told = ask_with(RUN, body, build=lambda spec: Misbehaves(act), grade_deadline_seconds=0.2)
    assert (status, told["reward"], told["metadata"]["error_details"]) == (200, None, {"other_error": what})
    assert told["metadata"]["errors"] == {**ALL_CLEAR, "other_error": True}


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
    assert told["metadata"]["token_usage"] == {key: used["big"][key] + used["small"][key] for key in used["big"]}
    assert told["metadata"]["sampled_model_name"] is None
    # 7 of 0 to 10 is 7 for the formula; the other 7 is cut to 1; 7 / 10 * 1
    assert told["reward"] == pytest.approx(0.7)
    assert (alone["reward"], alone["metadata"]["scores"]) == (pytest.approx(0.7), {"score": 7.0})
    assert alone["metadata"]["sampled_model_name"] == "big"
    assert alone["metadata"]["token_usage"] == alone["model_grader_token_usage_per_model"]["big"]


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
