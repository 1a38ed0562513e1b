"""OpenAI's own Python client against this server: its base URL is all that changes."""

import json
import sys
from pathlib import Path

import pytest

from serving.server import running_server

openai = pytest.importorskip("openai")
TOY = Path(__file__).parent / "toy_server.py"
GRADER = {"type": "string_check", "name": "same", "input": "{{sample.output_text}}", "reference": "{{item.answer}}", "operation": "eq"}


@pytest.fixture(scope="module")
def server():
    with running_server(lambda port: [sys.executable, str(TOY), str(port)]) as running:
        yield running


@pytest.fixture(params=["", "/v1"])
def graders(server, request):
    with openai.OpenAI(base_url=server.base_url + request.param, api_key=server.bearer, max_retries=0) as client:
        yield client.fine_tuning.alpha.graders


def test_a_grader_runs(graders):
    told = graders.run(grader=GRADER, model_sample="a bear", item={"answer": "a bear"})
    assert (told.reward, told.sub_rewards, told.api_model_grader_token_usage_per_model) == (1.0, {}, {})
    assert (told.metadata.name, told.metadata.type, told.metadata.token_usage) == ("same", "string_check", None)
    assert not any(told.metadata.errors.model_dump().values())


def test_every_key_that_the_client_knows_is_there(graders):
    """Its own model of the answer, read strictly: only `reward` may be null where OpenAI's is not."""
    raw = json.loads(graders.with_raw_response.run(grader=GRADER, model_sample="x", item={"answer": "x"}).text)
    told = type(graders.run(grader=GRADER, model_sample="x", item={"answer": "x"})).model_validate(raw, strict=True)
    assert told.reward == 1.0


def test_a_failed_grader_reads_as_no_reward_with_its_flag(graders):
    told = graders.run(grader=GRADER, model_sample="a bear")
    assert told.reward is None and told.metadata.errors.invalid_variable_error is True


def test_a_grader_is_validated(graders):
    assert graders.validate(grader=GRADER).grader.model_dump() == GRADER


def test_a_faulty_grader_raises_with_every_fault(graders):
    with pytest.raises(openai.BadRequestError) as caught:
        graders.validate(grader={**GRADER, "operation": "equals", "refrence": "x"})
    assert (caught.value.code, caught.value.type, caught.value.param) == ("invalid_grader", "invalid_request_error", "grader.refrence")
    assert "did you mean 'reference'?" in str(caught.value) and "grader.operation" in str(caught.value)


def test_a_wrong_key_is_an_authentication_error(server):
    with openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            client.fine_tuning.alpha.graders.validate(grader=GRADER)
