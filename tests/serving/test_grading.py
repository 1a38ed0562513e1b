"""Gradings of a server: so many at once, each by its deadline, and the reason told is that of whoever kept it waiting."""

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.datasets.filings import TOOLS
from agent_rft.graders.judge import ScoreModelGrader
from agent_rft.graders.judge_server import JudgeServer
from agent_rft.graders.registry import Judges, Services, build_grader
from agent_rft.graders.spec import JudgeMessage
from agent_rft.graders.wire import Wire
from serving.app import create_app
from serving.tools.corpus import CorpusTools

RUN = "/v1/fine_tuning/alpha/graders/run"
SAME = {"type": "string_check", "name": "same", "input": "{{sample.output_text}}", "reference": "x", "operation": "eq"}
JUDGED = {
    "type": "score_model",
    "name": "quality",
    "model": "judge",
    "input": [{"role": "user", "content": "Answer: {{sample.output_text}}"}],
}


class Stuck:
    """A grader that nothing can stop: it ends when it is let go, whatever deadline there is."""

    ref = GraderRef("stuck", "1", "abc")

    def __init__(self):
        self.go, self.under_way, self._lock = threading.Event(), 0, threading.Lock()

    def grade(self, item, sample):
        with self._lock:
            self.under_way += 1
        self.go.wait(20)
        return Grade(self.ref, 1.0)


class Prompt:
    ref = GraderRef("prompt", "1", "abc")

    def grade(self, item, sample):
        return Grade(self.ref, 1.0)


def app(graders, **options):
    return create_app(CorpusTools({"a": "b"}, TOOLS), {grader.ref.name: grader for grader in graders}, "secret", **options)


def ask(url, body):
    """Status, body and Retry-After."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Authorization": "Bearer secret", "Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.loads(answer.read()), None
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read()), error.headers["Retry-After"]


@pytest.fixture
def silent_judge():
    """Accepts whoever comes (the kernel does) and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"


def grading(name):
    return {"item": {}, "sample": {"output_text": "x"}, "grader": name}


def test_one_grading_too_many_is_told_to_come_again_while_tools_and_health_answer(in_thread):
    stuck = Stuck()
    with in_thread(app([stuck, Prompt()], grades_in_flight=2)) as url, ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(ask, f"{url}/grade", grading("stuck")) for _ in range(2)]
        _wait_for(lambda: stuck.under_way == 2)
        for path, body in (
            ("/grade", grading("prompt")),
            (RUN, {"grader": SAME, "model_sample": "x"}),
            ("/azure/graders/prompt", {"sample": {"output_text": "x"}, "item": {}}),
        ):
            status, told, again = ask(url + path, body)
            assert (status, again) == (503, "5"), path
            assert "2 gradings are under way, as many as serving.grades_in_flight allows" in json.dumps(told), path
        assert "message" in ask(url + RUN, {"grader": SAME, "model_sample": "x"})[1]["error"], "in OpenAI's shape of an error"
        assert ask(f"{url}/search", {"arguments": {"query": "b"}, "call_id": "c", "rollout_id": "r"})[0] == 200
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            assert answer.status == 200
        stuck.go.set()
        assert [(status, told["reward"]) for status, told, _ in (one.result(20) for one in waiting)] == [(200, 1.0)] * 2
        assert ask(f"{url}/grade", grading("prompt"))[0] == 200


def test_a_grading_that_nobody_waits_for_any_more_keeps_its_place_until_it_ends(in_thread):
    stuck = Stuck()
    with in_thread(app([stuck, Prompt()], grades_in_flight=1, grade_deadline_seconds=0.2)) as url:
        status, told, _ = ask(f"{url}/grade", grading("stuck"))
        assert (status, told["reward"], list(told["errors"].values())) == (200, None, ["no grade within 0.2 s"])
        assert ask(f"{url}/grade", grading("prompt"))[0] == 503
        stuck.go.set()
        _wait_for(lambda: ask(f"{url}/grade", grading("prompt"))[0] == 200)


def test_a_hanging_judge_is_the_reason_told_and_not_the_servers_deadline(in_thread, silent_judge):
    """By itself this judge may take minutes."""
    with Wire() as wire:
        grader = ScoreModelGrader("quality", "judge", (JudgeMessage("user", "{{sample.output_text}}"),), JudgeServer(silent_judge, wire))
        with in_thread(app([grader], grade_deadline_seconds=3.0)) as url:
            began = time.monotonic()
            status, told, _ = ask(f"{url}/grade", grading("quality"))
    assert (status, told["reward"], time.monotonic() - began < 20) == (200, None, True)
    assert told["errors"]["model_grader_server_error"] == f"{silent_judge.removesuffix('/v1')} gave no answer"
    assert "1 attempt, and the grade is due" in told["errors"]["model_grader_server_error_details"]


def test_so_it_is_where_the_grader_comes_as_json_and_in_a_multi(in_thread, silent_judge):
    services = Services(Judges(silent_judge), endpoints=False)
    multi = {"type": "multi", "graders": {"same": SAME, "judge": JUDGED}, "calculate_output": "same * judge"}
    build = lambda spec: build_grader(spec, services)  # noqa: E731
    with in_thread(app([], build=build, grade_deadline_seconds=1.0)) as url:
        _, told, _ = ask(url + RUN, {"grader": multi, "model_sample": "x"})
    services.close()
    assert told["reward"] is None
    flags = told["metadata"]["errors"]
    assert (flags["model_grader_server_error"], flags["other_error"], flags["unresponsive_reward_error"]) == (True, False, False)
    assert set(told["metadata"]["error_details"]) == {"judge.model_grader_server_error", "judge.model_grader_server_error_details"}


def _wait_for(met):
    give_up = time.monotonic() + 20
    while not met():
        assert time.monotonic() < give_up
        time.sleep(0.01)
