"""A judge that dies, hangs or is asked by many at once: no score where there is no verdict, told in time, and paid for once."""

import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from agent_rft.contracts.errors import InfraError
from agent_rft.graders.deadline import due_within
from agent_rft.graders.judge import ScoreModelGrader
from agent_rft.graders.judge_server import JudgeServer
from agent_rft.graders.multi import MultiGrader
from agent_rft.graders.reply_cache import Replies
from agent_rft.graders.scripted_judge import read_script
from agent_rft.graders.spec import JudgeMessage
from agent_rft.graders.wire import Wire
from serving.judge import running_judge
from serving.server import free_port

MESSAGES = (JudgeMessage("user", "Answer: {{sample.output_text}}"),)
SERVER_FLAGS = {"model_grader_server_error", "model_grader_server_error_details"}


def judging(server, **options):
    return ScoreModelGrader("quality", "judge-1", MESSAGES, server, **options)


def timed(grader, answer="13.4%"):
    began = time.monotonic()
    return grader.grade({}, {"output_text": answer}), time.monotonic() - began


@contextmanager
def judge_process(folder, rules):
    """`rft judge`, as a user starts it."""
    script, port = folder / "script.json", free_port()
    script.write_text(json.dumps({"rules": rules}))
    command = [sys.executable, "-m", "agent_rft", "judge", "--script", str(script), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as judge:
        try:
            _wait_for(lambda: asked(port) == 0)
            yield judge, port
        finally:
            judge.kill()


def asked(port):
    """How often it was asked; None before it is up."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return json.loads(answer.read())["asked"]
    except OSError:
        return None


def _wait_for(met):
    give_up = time.monotonic() + 120
    while not met():
        assert time.monotonic() < give_up
        time.sleep(0.02)


@contextmanager
def silent_server():
    """Accepts whoever comes (the kernel does) and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"


# --- it dies, it hangs ------------------------------------------------------------------------------------------------


def test_a_judge_killed_in_the_middle_of_a_grading_gives_no_score_within_the_budget(tmp_path):
    with judge_process(tmp_path, [{"score": 1, "delay": 60}]) as (judge, port), Wire(budget_seconds=0.5, backoff_seconds=0.1) as wire:
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(timed, judging(JudgeServer(f"http://127.0.0.1:{port}/v1", wire)))
            _wait_for(lambda: asked(port) == 1)
            judge.kill()  # SIGKILL
            killed = time.monotonic()
            grade, _ = waiting.result(timeout=20)
        told_after = time.monotonic() - killed
    assert grade.reward is None and set(grade.errors) == SERVER_FLAGS
    assert f"127.0.0.1:{port} gave no answer" in grade.errors["model_grader_server_error"]
    assert told_after < 5  # 0.5 s of trying again


def test_a_judge_that_accepts_and_never_answers_gives_no_score_within_its_time_and_the_budget():
    with silent_server() as url, Wire(budget_seconds=0.5, backoff_seconds=0.1) as wire:
        grade, seconds = timed(judging(JudgeServer(url, wire, timeout_seconds=0.3)))
    assert grade.reward is None and set(grade.errors) == SERVER_FLAGS
    assert "no answer within" in grade.errors["model_grader_server_error_details"]
    assert 0.3 <= seconds < 5


@pytest.mark.parametrize("samples", [1, 3])
def test_a_hanging_judge_is_given_up_before_the_grade_is_due_however_long_it_may_take_otherwise(samples):
    """With several samples as well: each is asked in a thread of its own, and those must know of it too."""
    with silent_server() as url, Wire(budget_seconds=60) as wire, due_within(0.4):
        grade, seconds = timed(judging(JudgeServer(url, wire, timeout_seconds=60), samples=samples))
    assert grade.reward is None and set(grade.errors) == SERVER_FLAGS
    assert "1 attempt, and the grade is due" in grade.errors["model_grader_server_error_details"]
    assert seconds < 5


def test_judges_one_after_another_share_the_time_that_is_left():
    """A multi asks its graders in turn: two that hang may not take twice the time."""
    with silent_server() as url, Wire(budget_seconds=60) as wire, due_within(0.4):
        both = {key: judging(JudgeServer(url, wire, timeout_seconds=60)) for key in ("a", "b")}
        grade, seconds = timed(MultiGrader(both, "a + b"))
    assert grade.reward is None
    assert set(grade.errors) == {f"{key}.{flag}" for key in ("a", "b") for flag in SERVER_FLAGS}
    assert seconds < 5


def test_who_waits_for_a_turn_at_the_judge_is_told_before_the_grade_is_due():
    with silent_server() as url, Wire(budget_seconds=60, concurrency=1) as wire:
        server = JudgeServer(url, wire, timeout_seconds=60)
        first = threading.Thread(target=timed, args=(judging(server),), daemon=True)
        first.start()
        _wait_for(lambda: not next(iter(wire._places.values()))._value if wire._places else False)
        with due_within(0.2):
            grade, _ = timed(judging(server))
        assert "was not asked" in grade.errors["model_grader_server_error_details"]
        wire.close()
        first.join(10)


# --- many ask the same ----------------------------------------------------------------------------------------------------


class Slow:
    """Posts that wait until they are let go; the given ones fail."""

    def __init__(self, failing=()):
        self.failing, self.posts, self.go, self._lock = set(failing), 0, threading.Event(), threading.Lock()

    def post(self, url, payload, headers=None, timeout=60.0):
        with self._lock:
            self.posts += 1
            number = self.posts
        assert self.go.wait(20)
        if number in self.failing:
            raise InfraError("http://j", "503; 3 attempts")
        content = json.dumps({"result": 1.0, "steps": []})
        usage = {"prompt_tokens": 100, "completion_tokens": 10}
        return json.dumps({"choices": [{"message": {"content": content}}], "model": "m", "usage": usage}).encode()


def asked_at_once(posts, answers):
    grader = judging(JudgeServer("http://j/v1", posts, cache=Replies()))
    with ThreadPoolExecutor(len(answers)) as pool:
        waiting = [pool.submit(grader.grade, {}, {"output_text": answer}) for answer in answers]
        _wait_for(lambda: posts.posts >= len(set(answers)))
        time.sleep(0.05)  # whoever would ask a second time has had the time to
        before = posts.posts
        posts.go.set()
        return [one.result(20) for one in waiting], before


def test_a_question_that_many_have_at_once_is_asked_and_paid_for_once():
    posts = Slow()
    grades, _ = asked_at_once(posts, ["a"] * 6 + ["b"] * 2)
    assert posts.posts == 2
    assert [grade.reward for grade in grades] == [1.0] * 8
    tokens = [grade.parts["model_grader_token_usage_per_model"].get("m", {"total_tokens": 0})["total_tokens"] for grade in grades]
    assert sorted(tokens) == [0] * 6 + [110, 110]  # each reply's 100 + 10 once


def test_a_failure_is_nobody_elses_those_who_waited_ask_themselves_and_all_at_once():
    posts = Slow(failing=[1])
    grades, before = asked_at_once(posts, ["a"] * 4)
    assert before == 1, "one asked while the others waited"
    assert sorted(str(grade.reward) for grade in grades) == ["1.0", "1.0", "1.0", "None"]
    [failed] = [grade for grade in grades if grade.reward is None]
    assert failed.errors["model_grader_server_error_details"] == "503; 3 attempts"
    assert 2 <= posts.posts <= 4  # a late one may find the reply that another has just kept


def test_a_dead_judge_costs_those_who_wait_two_budgets_and_not_one_each(tmp_path):
    """Eight that took their turns would be told after eight budgets."""
    rules = [{"status": 503}]
    with running_judge(read_script(json.dumps({"rules": rules}))) as url, Wire(budget_seconds=0.6, backoff_seconds=0.2) as wire:
        grader = judging(JudgeServer(url, wire, cache=Replies()))
        with ThreadPoolExecutor(8) as pool:
            told = list(pool.map(lambda _: timed(grader), range(8)))
    assert all(grade.reward is None and set(grade.errors) == SERVER_FLAGS for grade, _ in told)
    assert max(seconds for _, seconds in told) < 4 * 0.6
