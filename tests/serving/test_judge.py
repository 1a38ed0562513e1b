"""The scripted judge over real HTTP, where a model would be."""

import json
import sys
import time
import urllib.error
import urllib.request

import pytest

from agent_rft.graders.scripted_judge import read_script
from serving.judge import running_judge
from serving.server import running_server

SCRIPT = json.dumps({
    "rules": [
        {"when": "busy", "in": "all", "status": 429, "retry_after": 7},
        {"when": "slow", "in": "all", "delay": 0.2, "score": 0.5},
        {"score": 1},
    ]
})  # fmt: skip


@pytest.fixture(scope="module")
def judge():
    with running_judge(read_script(SCRIPT)) as url:
        yield url


def ask(url, text):
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]}).encode()
    request = urllib.request.Request(f"{url}/chat/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=5) as response:
        return response.status, json.loads(response.read())


def test_it_answers_as_a_chat_endpoint_does(judge):
    status, completion = ask(judge, "hello")
    assert (status, completion["object"], completion["model"]) == (200, "chat.completion", "m")
    [choice] = completion["choices"]
    assert (choice["finish_reason"], json.loads(choice["message"]["content"])) == ("stop", {"steps": [], "result": 1.0})
    assert set(completion["usage"]) == {"prompt_tokens", "completion_tokens", "total_tokens"}


def test_a_failure_comes_with_its_status_and_retry_after(judge):
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(judge, "busy")
    assert (caught.value.code, caught.value.headers["Retry-After"]) == (429, "7")


def test_a_delay_is_waited(judge):
    began = time.monotonic()
    ask(judge, "slow")
    assert time.monotonic() - began >= 0.2


def test_health_tells_how_often_it_was_asked():
    with running_judge(read_script(SCRIPT)) as url:
        ask(url, "a")
        with urllib.request.urlopen(f"{url.removesuffix('/v1')}/health", timeout=5) as response:
            assert json.loads(response.read()) == {"status": "ok", "asked": 1}


def test_it_runs_as_a_server_of_its_own():
    code = (
        "import sys; from agent_rft.graders.scripted_judge import ScriptedJudge, read_script; from serving.judge import judge_app; "
        "from serving.server import serve; serve(judge_app(ScriptedJudge(read_script(sys.argv[2]))), '127.0.0.1', int(sys.argv[1]))"
    )
    with running_server(lambda port: [sys.executable, "-c", code, str(port), SCRIPT]) as server:
        assert ask(f"{server.base_url}/v1", "hello")[0] == 200
