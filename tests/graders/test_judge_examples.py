"""The example judges and the endpoint, against the example script: each case's reward and flags, worked out by hand in its `why`."""

import json
from pathlib import Path

import pytest

from agent_rft.graders.endpoint import EndpointGrader
from agent_rft.graders.judge import LabelModelGrader, ScoreModelGrader
from agent_rft.graders.judge_server import JudgeServer
from agent_rft.graders.scripted_judge import read_script
from agent_rft.graders.spec import Endpoint, LabelModel, ScoreModel, read_spec
from agent_rft.graders.wire import Pace, Wire
from serving.judge import running_judge

EXAMPLES = Path(__file__).parents[2] / "examples"


def cases(name):
    lines = (EXAMPLES / "graders" / f"{name}.cases.jsonl").read_text().splitlines()
    return [pytest.param(name, case, id=f"{name}: {case['why']}") for case in map(json.loads, lines)]


@pytest.fixture(scope="module")
def graders():
    """Built from their files, with the judge at its own address."""
    script = read_script((EXAMPLES / "judges" / "figures.json").read_text())
    with running_judge(script) as url, Wire(budget_seconds=0.03, backoff_seconds=0.01) as wire:
        server = JudgeServer(url, wire)
        yield {name: built(name, server, url.removesuffix("/v1"), wire) for name in ("score_model", "label_model", "endpoint")}


def built(name, server, host, wire):
    spec = read_spec(json.loads((EXAMPLES / "graders" / f"{name}.json").read_text()))
    match spec:
        case ScoreModel():
            low, high = spec.range
            options = {"score_range": (low, high), "sampling": spec.sampling_params, "pass_threshold": spec.pass_threshold}
            return ScoreModelGrader(spec.name, spec.model, spec.input, server, **options)
        case LabelModel():
            return LabelModelGrader(spec.name, spec.model, spec.input, server, labels=spec.labels, passing_labels=spec.passing_labels)
        case Endpoint():
            url = spec.url.replace("http://127.0.0.1:8601", host)
            return EndpointGrader(
                spec.name, url, wire, headers=spec.headers, pace=Pace(spec.rate_limit or 1e9), pass_threshold=spec.pass_threshold
            )


@pytest.mark.parametrize(("name", "case"), [*cases("score_model"), *cases("label_model"), *cases("endpoint")])
def test_each_case_gets_what_was_worked_out_by_hand(graders, name, case):
    grade = graders[name].grade(case["item"], case["sample"])
    if "errors" in case:
        assert (grade.reward, grade.passed, list(grade.errors)) == (None, None, case["errors"])
    else:
        assert grade.errors == {} and grade.reward == pytest.approx(case["reward"], abs=1e-9)


def test_the_score_passes_from_its_threshold_on(graders):
    item = {"prompt": "The margin?", "reference_answer": "13.4%"}
    passed = [
        graders["score_model"].grade(item, {"output_text": text}).passed for text in ("13.4%, as the filing says", "13.4%", "about 13%")
    ]
    assert passed == [True, True, False]  # 10, 8 and 3, with 8 to pass


def test_every_flag_of_a_judge_has_a_case():
    flags = {flag for name in ("score_model", "label_model") for param in cases(name) for flag in param.values[1].get("errors", [])}
    assert flags == {
        "model_grader_server_error", "model_grader_server_error_details", "model_grader_refusal_error", "model_grader_parse_error",
        "invalid_variable_error",
    }  # fmt: skip
