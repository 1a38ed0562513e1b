"""Azure's endpoint grader, over real HTTP: what it sends, how its score is read, and that no failure is a score."""

import http.server
import json
import pickle
import socket
import threading
from contextlib import contextmanager

import pytest

from agent_rft.graders.endpoint import EndpointGrader
from agent_rft.graders.wire import Pace, Wire

SAMPLE = {"output_text": "13.4%", "rollout_id": "0199-abc"}
ITEM = {"reference_answer": "13.4%"}


@contextmanager
def endpoint(*answers):
    """Each POST gets the next (status, body); the last one stays."""
    seen, left = [], list(answers)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            seen.append((self.path, dict(self.headers), json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            status, body = left.pop(0) if len(left) > 1 else left[0]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_port}/grade", seen
    finally:
        running.shutdown()
        running.server_close()
        thread.join()


@pytest.fixture(scope="module")
def wire():
    with Wire(budget_seconds=0.05, backoff_seconds=0.01) as wire:
        yield wire


def test_it_posts_sample_item_and_trace_id_with_its_headers_and_takes_the_score(wire):
    with endpoint((200, b'{"score": 0.8}')) as (url, seen):
        grade = EndpointGrader("mine", url, wire, headers={"X-Functions-Key": "k"}).grade(ITEM, SAMPLE)
    assert (grade.reward, grade.passed, grade.parts, grade.errors) == (0.8, True, {"score": 0.8}, {})
    [(path, headers, body)] = seen
    assert (path, headers["X-Functions-Key"]) == ("/grade", "k")
    assert body == {"sample": SAMPLE, "item": ITEM, "trace_id": "0199-abc"}


def test_the_threshold_is_on_the_endpoints_scale_and_its_range_is_mapped_onto_zero_to_one(wire):
    with endpoint((200, b'{"score": 8}')) as (url, _):
        grade = EndpointGrader("mine", url, wire, pass_threshold=8, score_range=(0, 10)).grade(ITEM, SAMPLE)
        assert (grade.reward, grade.passed, grade.parts["score"]) == (0.8, True, 8.0)
        assert EndpointGrader("mine", url, wire, pass_threshold=8.5, score_range=(0, 10)).grade(ITEM, SAMPLE).passed is False


def test_a_score_outside_the_range_is_no_score_and_says_what_to_set(wire):
    with endpoint((200, b'{"score": 8}')) as (url, _):
        grade = EndpointGrader("mine", url, wire).grade(ITEM, SAMPLE)
    assert grade.reward is None
    assert grade.errors == {"other_error": "its score 8 is not from 0 to 1: give the grader the range of its scores"}


@pytest.mark.parametrize(
    "answer",
    [
        (200, b"{}"), (200, b""), (200, b"1"), (200, b'{"score": "1"}'), (200, b'{"score": null}'), (200, b'{"score": true}'),
        (200, b'{"score": 1e999}'), (200, b"\xff"), (200, b"<html>"),
        (400, b'{"score": 1}'), (401, b""), (404, b""),
        (302, b'{"score": 1}'),
    ],
)  # fmt: skip
def test_no_failure_is_a_score(wire, answer):
    with endpoint(answer) as (url, _):
        grade = EndpointGrader("mine", url, wire).grade(ITEM, SAMPLE)
    assert (grade.reward, grade.passed) == (None, None)
    assert list(grade.errors) == ["other_error"] and grade.errors["other_error"]


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_one_that_is_asked_until_the_budget_is_spent_has_a_flag_of_its_own(wire, status):
    with endpoint((status, b'{"score": 1}')) as (url, seen):
        grade = EndpointGrader("mine", url, wire).grade(ITEM, SAMPLE)
    assert (grade.reward, grade.passed, list(grade.errors)) == (None, None, ["unresponsive_reward_error"])
    why = grade.errors["unresponsive_reward_error"]  # the last try may have had too little time left for an answer
    assert (f"answered {status}" in why or "no answer within" in why) and len(seen) > 1


def test_so_has_one_that_nobody_runs_or_that_takes_too_long(wire):
    nobody = EndpointGrader("mine", "http://127.0.0.1:9/grade", wire).grade(ITEM, SAMPLE)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/grade"
        slow = EndpointGrader("mine", url, wire, timeout_seconds=0.05).grade(ITEM, SAMPLE)
    assert list(nobody.errors) == list(slow.errors) == ["unresponsive_reward_error"]
    assert "no answer within 0.0" in slow.errors["unresponsive_reward_error"]


def test_trouble_that_passes_is_not_noticed(wire):
    with endpoint((503, b""), (200, b'{"score": 1}')) as (url, seen):
        assert EndpointGrader("mine", url, wire).grade(ITEM, SAMPLE).reward == 1.0
        assert len(seen) == 2


@pytest.mark.parametrize("url", ["file:///etc/passwd", "http://169.254.169.254/latest", "nowhere"])
def test_an_address_that_graders_may_not_reach_is_no_score(wire, url):
    assert "other_error" in EndpointGrader("mine", url, wire).grade(ITEM, SAMPLE).errors


def test_errors_show_no_secret_of_the_address(wire):
    with endpoint((404, b"no")) as (url, _):
        assert "s3cret" not in str(EndpointGrader("mine", f"{url}?code=s3cret", wire).grade(ITEM, SAMPLE).errors)


def test_the_rate_limit_is_kept_by_all_threads_together(wire):
    class Counting:
        count = 0

        def wait(self):
            self.count += 1

    pace = Counting()
    with endpoint((503, b""), (200, b'{"score": 1}')) as (url, _):
        grader = EndpointGrader("mine", url, wire, pace=pace)
        grader.grade(ITEM, SAMPLE)
        grader.grade(ITEM, SAMPLE)
    assert pace.count == 3, "a request that failed counts too"


def test_the_hash_covers_address_range_and_threshold_and_no_secret():
    refs = [
        EndpointGrader("mine", "http://a/x", Wire()).ref,
        EndpointGrader("mine", "http://a/y", Wire()).ref,
        EndpointGrader("mine", "http://a/x", Wire(), score_range=(0, 10)).ref,
        EndpointGrader("mine", "http://a/x", Wire(), pass_threshold=0.9).ref,
    ]
    assert len({ref.hash for ref in refs}) == 4
    assert EndpointGrader("mine", "http://a/x", Wire(), headers={"Key": "k"}).ref == refs[0]


def test_it_says_that_it_waits_and_can_be_sent_to_another_process():
    grader = EndpointGrader("mine", "http://a/x", Wire(), pace=Pace(5))
    assert grader.waits
    assert pickle.loads(pickle.dumps(grader)).ref == grader.ref


def test_an_item_that_is_no_json_is_no_score(wire):
    assert "other_error" in EndpointGrader("mine", "http://127.0.0.1:9", wire).grade({"x": float("nan")}, SAMPLE).errors
