"""How graders reach other servers: what is tried again and for how long, and where they never go."""

import gc
import http.server
import json
import pickle
import threading
import time
from contextlib import contextmanager

import pytest

from agent_rft.contracts.errors import InfraError
from agent_rft.contracts.retries import NoAnswer, TryAgain
from agent_rft.graders.wire import Pace, Wire, origin_of, persist


@contextmanager
def server(answer):
    """Each POST is answered by answer(number, headers, body) -> (status, headers, body)."""
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            seen.append((dict(self.headers), body, time.monotonic()))
            status, headers, reply = answer(len(seen), self.headers, body)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(reply))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_):
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.daemon_threads = True
    thread = threading.Thread(target=running.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_port}", seen
    finally:
        running.shutdown()
        running.server_close()
        thread.join()


def quick(**options):
    return Wire(**{"budget_seconds": 5.0, "backoff_seconds": 0.001, **options})


# --- the budget, on a clock of its own ------------------------------------------------------------------------------------


class Time:
    """A clock that moves when somebody sleeps on it."""

    def __init__(self) -> None:
        self.now, self.slept = 100.0, []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def tried(time: Time, attempt, budget: float, **due):
    return persist(
        attempt, part="judge", budget_seconds=budget, backoff_seconds=1, clock=time.clock, sleep=time.sleep, spread=lambda: 1.0, **due
    )


def test_it_is_tried_again_with_doubling_pauses_until_it_works():
    clock, answers = Time(), iter([TryAgain("down"), TryAgain("down"), TryAgain("down"), b"up"])

    def attempt(_):
        answer = next(answers)
        if isinstance(answer, TryAgain):
            raise answer
        return answer

    assert tried(clock, attempt, budget=60) == b"up"
    assert clock.slept == [1, 2, 4]


def test_it_is_given_up_before_a_pause_that_would_outlast_the_budget():
    clock, left = Time(), []

    def attempt(seconds):
        left.append(seconds)
        raise TryAgain("503")

    with pytest.raises(InfraError, match=r"judge: 503; 4 attempts, 10 s of trying again are allowed"):
        tried(clock, attempt, budget=10)
    assert clock.slept == [1, 2, 4]  # 7 s; the next pause of 8 s would end after 15
    assert left == [float("inf"), 9, 7, 3]


def test_a_first_attempt_that_takes_long_leaves_the_whole_budget():
    clock, tries = Time(), []

    def attempt(_):
        tries.append(clock.now)
        clock.now += 50
        raise TryAgain("timed out")

    with pytest.raises(InfraError, match="2 attempts"):
        tried(clock, attempt, budget=10)  # failed at 150, paused 1 s, failed again at 201


def test_nothing_is_begun_that_would_end_after_the_grade_is_due():
    clock, left = Time(), []

    def attempt(seconds):
        left.append(seconds)
        clock.now += 2
        raise TryAgain("503")

    with pytest.raises(NoAnswer, match="judge: 503; 2 attempts, and the grade is due"):
        tried(clock, attempt, budget=60, due_seconds=7)
    assert left == [7, 4]  # due at 107; asked at 100 and, after 2 s and a pause of 1 s, at 103; at 105 the next pause of 2 s ends too late


def test_a_budget_that_ends_first_is_what_is_told():
    clock = Time()
    with pytest.raises(NoAnswer, match="1 attempt, 0 s of trying again"):
        tried(clock, lambda _: _raise(TryAgain("503")), budget=0, due_seconds=100)


def test_without_a_budget_there_is_one_attempt():
    clock = Time()
    with pytest.raises(InfraError, match="1 attempt, 0 s"):
        tried(clock, lambda _: (_ for _ in ()).throw(TryAgain("503")), budget=0)
    assert clock.slept == []


def test_the_server_is_given_the_time_it_asks_for_or_given_up():
    clock, answers = Time(), iter([TryAgain("429", pause_seconds=20)])
    assert tried(clock, lambda _: _raise(next(answers, None)), budget=60) is None
    assert clock.slept == [20]
    with pytest.raises(InfraError, match="429; 1 attempt"):
        tried(clock, lambda _: _raise(TryAgain("429", pause_seconds=3600)), budget=60)


def _raise(error):
    if error:
        raise error


def test_a_mistake_is_not_tried_again():
    clock = Time()
    with pytest.raises(InfraError, match="no such model"):
        tried(clock, lambda _: _raise(InfraError("judge", "no such model")), budget=60)
    assert clock.slept == []


def test_requests_are_spread_over_the_seconds():
    clock = Time()
    pace = Pace(2, clock.clock, clock.sleep)
    for _ in range(3):
        pace.wait()
    clock.now += 10
    pace.wait()
    assert clock.slept == [0.5, 0.5]  # at 100, 100.5, 101; then nobody had asked for long


# --- over HTTP ------------------------------------------------------------------------------------------------------------


def test_what_is_posted_arrives_as_json_with_its_headers():
    with server(lambda *_: (200, {}, b'{"score": 1}')) as (url, seen), quick() as wire:
        assert wire.post(f"{url}/grade", {"a": "ü"}, {"Authorization": "Bearer x"}) == b'{"score": 1}'
    [(headers, body, _)] = seen
    assert (headers["Content-Type"], headers["Authorization"], json.loads(body)) == ("application/json", "Bearer x", {"a": "ü"})


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_trouble_that_may_pass_is_tried_again(status):
    with server(lambda number, *_: (status if number < 3 else 200, {}, b"ok")) as (url, seen), quick() as wire:
        assert wire.post(url, {}) == b"ok"
        assert len(seen) == 3


@pytest.mark.parametrize("status", [301, 307, 400, 401, 403, 404, 413, 422])
def test_what_will_not_pass_fails_at_once_and_shows_what_was_said(status):
    headers = {"Location": "http://127.0.0.1:1/"}
    with server(lambda *_: (status, headers, b"no such model")) as (url, seen), quick() as wire:
        with pytest.raises(InfraError, match=f"answered {status}: no such model") as caught:
            wire.post(f"{url}/secret?token=abc", {})
        assert len(seen) == 1
        assert caught.value.part == url, "no path and no query: they may hold secrets"
        assert "abc" not in str(caught.value)


def test_retry_after_is_honoured():
    with server(lambda number, *_: (429 if number == 1 else 200, {"Retry-After": "1"}, b"ok")) as (url, seen), quick() as wire:
        wire.post(url, {})
    assert seen[1][2] - seen[0][2] >= 1.0


def test_a_server_that_hangs_or_is_not_there_is_given_up():
    hold = threading.Event()
    with server(lambda *_: (hold.wait(5), (200, {}, b""))[1]) as (url, _), quick(budget_seconds=0.05) as wire:
        with pytest.raises(InfraError, match=r"no answer within 0\.\d+ s; \d attempts?, 0\.05 s of trying again"):
            wire.post(url, {}, timeout=0.05)
        hold.set()
    with quick(budget_seconds=0.01) as wire, pytest.raises(InfraError, match=r"Connect call failed|no answer within"):
        wire.post("http://127.0.0.1:9/", {})


def test_no_more_than_allowed_are_at_one_server_at_once_and_nobody_is_lost():
    here, most, lock = 0, 0, threading.Lock()

    def answer(*_):
        nonlocal here, most
        with lock:
            here += 1
            most = max(most, here)
        time.sleep(0.02)
        with lock:
            here -= 1
        return 200, {}, b"ok"

    replies = []
    with server(answer) as (url, seen), quick(concurrency=3) as wire:
        threads = [threading.Thread(target=lambda: replies.append(wire.post(url, {}))) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
    assert (len(replies), len(seen), most) == (12, 12, 3)


def test_closing_lets_go_of_everybody_who_waits():
    hold, failed = threading.Event(), []
    with server(lambda *_: (hold.wait(30), (200, {}, b""))[1]) as (url, seen):
        wire = quick(budget_seconds=60)

        def ask():
            try:
                wire.post(url, {})
            except InfraError as error:
                failed.append(str(error))

        asking = threading.Thread(target=ask)
        asking.start()
        while not seen:
            time.sleep(0.005)
        began = time.monotonic()
        wire.close()
        asking.join(20)
        hold.set()
        assert time.monotonic() - began < 15
        assert len(failed) == 1 and "closed" in failed[0]
        with pytest.raises(InfraError, match="closed"):
            wire.post(url, {})
        assert not [thread for thread in threading.enumerate() if thread.name == "graders-wire"]


def test_closing_wakes_who_pauses_between_two_tries():
    failed = threading.Event()
    with server(lambda *_: (503, {"Retry-After": "30"}, b"")) as (url, seen):
        wire = quick(budget_seconds=60)

        def ask():
            with pytest.raises(InfraError, match="closed"):
                wire.post(url, {})
            failed.set()

        threading.Thread(target=ask).start()
        while not seen:
            time.sleep(0.005)
        wire.close()
        assert failed.wait(5)


def test_a_wire_that_nobody_closed_leaves_no_thread():
    with server(lambda *_: (200, {}, b"ok")) as (url, _):
        wire = quick()
        wire.post(url, {})
        del wire
        gc.collect()
    assert not [thread for thread in threading.enumerate() if thread.name == "graders-wire"]


def test_in_another_process_it_is_a_wire_of_its_own():
    with server(lambda *_: (200, {}, b"ok")) as (url, _), quick(concurrency=7) as wire:
        wire.post(url, {})
        with pickle.loads(pickle.dumps(wire)) as copy:
            assert copy.post(url, {}) == b"ok"
            assert copy._recipe == wire._recipe
    assert isinstance(pickle.loads(pickle.dumps(Pace(5))), Pace)


def test_an_answer_without_end_is_cut_short():
    with server(lambda *_: (200, {}, b"x" * 5000)) as (url, _), quick(max_reply_bytes=1000) as wire:
        with pytest.raises(InfraError, match="longer than 1000 bytes"):
            wire.post(url, {})


def test_half_a_surrogate_pair_does_not_stop_the_question():
    with server(lambda *_: (200, {}, b"ok")) as (url, seen), quick() as wire:
        assert wire.post(url, {"said": "a\ud800b"}) == b"ok"
    assert json.loads(seen[0][1]) == {"said": "a?b"}


@pytest.mark.parametrize("payload", [float("nan"), {"x": object()}])
def test_what_is_no_json_is_an_error_and_not_sent(payload):
    with server(lambda *_: (200, {}, b"ok")) as (url, seen), quick() as wire:
        with pytest.raises(InfraError, match="cannot be written as JSON"):
            wire.post(url, payload)
        assert not seen


def test_a_header_that_would_split_the_request_is_not_sent():
    with server(lambda *_: (200, {}, b"ok")) as (url, seen), quick() as wire:
        with pytest.raises(InfraError, match="cannot be asked"):
            wire.post(url, {}, {"X-Key": "a\r\nHost: elsewhere"})
        assert not seen


# --- where graders never go ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://host/x", "gopher://host:70/", "data:text/plain,x", "/etc/passwd", "", "http://"]
)
def test_only_web_addresses_are_asked(url):
    with quick() as wire, pytest.raises(InfraError):
        wire.post(url, {})


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data/", "http://[fe80::1]/", "http://[::ffff:169.254.169.254]/",
        "http://2852039166/", "http://0xa9fea9fe/",  # 169.254.169.254 as one number
    ],
)  # fmt: skip
def test_a_link_local_address_is_refused_however_it_is_written(url):
    with quick() as wire, pytest.raises(InfraError, match=r"link-local|not a canonical"):
        wire.post(url, {})


def test_a_name_that_leads_to_a_link_local_address_is_refused(monkeypatch):
    found = [{"hostname": "x", "host": "169.254.169.254", "port": 80, "family": 2, "proto": 0, "flags": 0}]

    async def resolve(*_, **__):
        return found

    monkeypatch.setattr("aiohttp.ThreadedResolver.resolve", resolve)
    with quick() as wire, pytest.raises(InfraError, match="link-local"):
        wire.post("http://judge.example/", {})


def test_an_origin_holds_no_secret():
    assert origin_of("https://user:pass@host/path?key=1#x") == "https://host"
