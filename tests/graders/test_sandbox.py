"""What graded code cannot do, what is said of it when it tries, and that others are served meanwhile."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agent_rft.contracts.errors import UserError
from agent_rft.graders import sandbox as module
from agent_rft.graders.deadline import due_within
from agent_rft.graders.sandbox import Sandbox, SandboxLimits

LIMITS, SHORT = SandboxLimits(seconds=20.0), SandboxLimits(seconds=1.0)
SCRIBBLE = "import os\ndef f():\n for file in range(3, 64):\n  try: os.write(file, b'nonsense')\n  except OSError: pass"


def run(sandbox, body, *payload, limits=LIMITS):
    """The body of a function f(*args), indented by one blank."""
    return sandbox.run(f"import ctypes, os, socket, subprocess, threading, time\ndef f(*args):\n {body}", "f", payload, limits)


def started_or_skipped(**options) -> Sandbox:
    try:
        return Sandbox(**options)
    except UserError as error:
        pytest.skip(f"no sandbox here: {error.what}")


# --- what it is for ---------------------------------------------------------------------------------------------------


def test_a_value_comes_back_as_json_would_carry_it(sandbox):
    outcome = run(sandbox, "return {'sum': args[0] + args[1], 'pair': (1, None)}", 2, 3)
    assert (outcome.value, outcome.error) == ({"sum": 5, "pair": [1, None]}, None)


def test_what_is_installed_can_be_imported_and_its_numbers_are_numbers(sandbox):
    assert run(sandbox, "import numpy; return [numpy.float32(0.5), numpy.int64(3), numpy.bool_(True)]").value == [0.5, 3, True]


def test_a_program_reads_and_prints(sandbox):
    outcome = sandbox.run_program(["/bin/sh", "answer.sh"], "answer.sh", 'read name\necho "hello $name"', "world\n")
    assert (outcome.value, outcome.error) == ("hello world\n", None)


def test_a_large_request_passes_whole(sandbox):
    text = "é\ud800" * 500_000  # far more than a pipe holds, and a lone surrogate as models write them
    assert run(sandbox, "return [len(args[0]), args[0][-1] == chr(0xd800)]", text).value == [1_000_000, True]


def test_a_crash_is_told_with_the_line(sandbox):
    outcome = run(sandbox, "return 1 / args[0]", 0)
    assert (outcome.error, outcome.what) == ("crash", "ZeroDivisionError: division by zero")
    assert outcome.details.splitlines()[1].strip() == 'File "<source>", line 3, in f'


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("def f(:", "SyntaxError: invalid syntax"),
        ("g = 1", "NameError: the source defines no function 'f'"),
        ("def f(): return object()", "TypeError: object has no JSON"),
        ("import sys\ndef f(): sys.exit(0)", "SystemExit: 0"),
        ("import os\ndef f(): os._exit(0)", "it ended before its function returned"),
        (f"{SCRIBBLE}\n os._exit(0)", "it ended before its function returned"),
        ("import os\ndef f(): os.abort()", "it was ended by SIGABRT"),
    ],
)
def test_whatever_code_does_to_itself_is_its_own_crash(sandbox, source, what):
    outcome = sandbox.run(source, "f", [])
    assert (outcome.value, outcome.error, outcome.what) == (None, "crash", what)


# --- what it keeps in ---------------------------------------------------------------------------------------------------


def test_no_network_not_even_this_machines_own(sandbox):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert socket.create_connection(("127.0.0.1", port), 1)  # out here it answers
        outcome = run(sandbox, "socket.create_connection(('127.0.0.1', args[0]), 1)", port)
    assert (outcome.error, outcome.what) == ("crash", "ConnectionRefusedError: [Errno 111] Connection refused")
    outcome = run(sandbox, "socket.create_connection(('192.0.2.1', 80), 1)")
    assert (outcome.error, outcome.what) == ("crash", "OSError: [Errno 101] Network is unreachable")


def test_no_files_outside(sandbox, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    for path in (secret, __file__, "/etc/passwd", "/etc/hostname"):
        assert os.path.exists(path)
        assert run(sandbox, "open(args[0])", str(path)).what.startswith("FileNotFoundError")


def test_nothing_of_the_environment(monkeypatch):
    monkeypatch.setenv("API_KEY", "s3cret")
    started = started_or_skipped(workers=1)
    with started:
        variables = started.run_program(["/usr/bin/env"], "unused", "", "").value
    assert set(variables.split()) == {f"{name}={value}" for name, value in module.ENVIRONMENT.items()} | {"PWD=/tmp"}


def test_the_kernels_settings_and_the_keeper_are_closed_to_it(sandbox):
    """Opened only, never written: if this failed, nothing would have been changed."""
    paths = [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/vm/swappiness",
        "/proc/1/oom_score_adj",
        "/proc/1/mem",
        "/proc/1/fd/0",
        "/x",
        "/dev/x",
    ]
    body = "\n ".join(
        ["closed = []", "for path in args:", "    try: os.close(os.open(path, os.O_RDWR | (os.O_CREAT if path.endswith('x') else 0)))",
         "    except OSError: closed.append(path)", "return closed"],
    )  # fmt: skip
    assert run(sandbox, body, *paths).value == paths


def test_it_holds_no_right_and_is_root_nowhere(sandbox):
    status = run(sandbox, "return dict(line.split(':', 1) for line in open('/proc/self/status'))").value
    assert [int(status[kind], 16) for kind in ("CapPrm", "CapEff", "CapAmb")] == [0, 0, 0]
    assert (status["NoNewPrivs"].strip(), status["Seccomp"].strip()) == ("1", "2")
    assert run(sandbox, "return os.stat('/proc/sys/kernel').st_uid == os.getuid()").value is False


def test_a_fork_bomb_does_not_get_its_first_fork(sandbox):
    assert run(sandbox, "while True: os.fork()").what == "BlockingIOError: [Errno 11] Resource temporarily unavailable"
    assert run(sandbox, "subprocess.run(['/bin/true'])").what == "BlockingIOError: [Errno 11] Resource temporarily unavailable"


def test_threads_may_be_started_but_not_without_end(sandbox):
    start = "for _ in range(args[0]): threading.Thread(target=time.sleep, args=(9,), daemon=True).start()\n return True"
    assert run(sandbox, start, 8).value is True
    outcome = run(sandbox, f"threading.stack_size(32768)\n {start}", 10_000)
    assert (outcome.error, outcome.what) == ("crash", "RuntimeError: can't start new thread")


def test_ten_gigabytes_are_not_to_be_had(sandbox):
    assert run(sandbox, "return len(bytearray(10 * 2**30))").error == "memory"
    assert run(sandbox, "import mmap; mmap.mmap(-1, 10 * 2**30)").what == "OSError: [Errno 12] Cannot allocate memory"
    assert run(sandbox, "return len(bytearray(2**20))").value == 2**20


@pytest.mark.parametrize("loop", ["while True: pass", "time.sleep(60)", "os.kill(os.getpid(), 19)"])
def test_an_endless_loop_a_long_sleep_and_a_stopped_process_end_with_their_time(sandbox, loop):
    outcome = run(sandbox, loop, limits=SHORT)
    assert (outcome.error, outcome.what) == ("timeout", "it took longer than 1 s")
    assert 1.0 <= outcome.seconds < 10.0


@pytest.mark.parametrize("flood", ["print('x' * 10**6)", "os.write(1, b'x' * 10**6)", "os.write(2, b'x' * 10**6)"])
def test_a_gigabyte_of_output_ends_at_the_first_megabyte(sandbox, flood):
    outcome = run(sandbox, f"for _ in range(1000): {flood}")
    assert (outcome.error, outcome.what) == ("output", "it put out more than 1,048,576 bytes")


def test_a_value_beyond_the_limit_and_a_flood_of_files_are_output_too(sandbox):
    assert run(sandbox, "return 'x' * 10**7").error == "output"
    assert run(sandbox, "for i in range(10**6): open(f'/tmp/{i}', 'w').close()").what == "it made more than 10,000 files"


def test_the_scratch_folder_is_small(sandbox):
    body = "\n ".join(["for i in range(100):", "    with open(f'/tmp/{i}', 'wb') as file: file.write(bytes(2**20))"])
    assert run(sandbox, body).what == "OSError: [Errno 28] No space left on device"


# --- nothing of one grading in the next -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def single():
    """One worker, so that the next grading runs where the last one did."""
    started = started_or_skipped(workers=1)
    with started:
        yield started


def test_files_do_not_persist(single):
    assert run(
        single, "os.makedirs('/tmp/a/b'); open('/tmp/a/b/c', 'w').write('mine'); os.symlink('/', '/tmp/d'); return os.listdir('/tmp')"
    ).value
    assert run(single, "return os.listdir('/tmp')").value == []


def test_folders_too_deep_to_remove_cost_the_worker_and_not_the_next_grading(single):
    assert run(single, "for _ in range(3000): os.mkdir('d'); os.chdir('d')\n return True").value is True
    assert run(single, "return os.listdir('/tmp')").value == []


def test_modules_do_not_persist(single):
    assert run(single, "import json, math; math.pi = json.dumps = 3; return math.pi").error == "crash"  # its own answer needs json.dumps
    assert run(single, "import math; math.pi = 3; return math.pi").value == 3
    assert run(single, "import math; return math.pi").value > 3.1


def test_memory_that_belongs_to_no_process_is_refused(single):
    calls = "c.shmget(7, 4096, 0o1666), c.msgget(7, 0o1666), c.semget(7, 1, 0o1666), c.mq_open(b'/q', 66, 0o666, None)"
    assert run(single, f"c = ctypes.CDLL(None); return [{calls}, c.memfd_create(b'm', 0)]").value == [-1, -1, -1, -1, -1]


def test_the_text_of_an_earlier_rollout_is_nowhere_in_memory(single):
    """The words are put together in the fork only: neither scanning code nor its source holds them whole."""
    scan = "\n ".join(
        ["wanted = args[0][::-1].encode()", "found = 0", "for line in open('/proc/self/maps'):",
         "    span, rights = line.split()[:2]", "    start, end = (int(x, 16) for x in span.split('-'))",
         "    if 'r' in rights and '[v' not in line: found += ctypes.string_at(start, end - start).count(wanted)",
         "return found"],
    )  # fmt: skip
    said = "the answer of rollout seventeen"
    kept = f"args[0][::-1].encode() + bytes(1)\n keep = {{}}; keep['text'] = args[0][::-1].encode()\n {scan}"
    assert run(single, kept, said[::-1]).value >= 1  # the scan finds what is there
    for size in (1, 10, 100, 1_000, 10_000):
        assert run(single, "return args[0]", [said] * size).value == [said] * size
    own = run(single, scan, said[::-1]).value
    with Sandbox(workers=1) as fresh:
        assert own == run(fresh, scan, said[::-1]).value  # only its own `wanted`, as in a sandbox that never heard it


def test_signals_do_not_reach_the_keeper(single):
    body = "for number in (1, 2, 9, 15, 19): os.kill(1, number)\n return True"
    assert run(single, body).value is True
    assert run(single, "return os.getpid() > 1").value is True


# --- the pool -----------------------------------------------------------------------------------------------------------


def test_others_are_served_while_one_hangs(sandbox):
    hung: list[object] = []
    thread = threading.Thread(target=lambda: hung.append(run(sandbox, "while True: pass", limits=SandboxLimits(seconds=3.0))))
    thread.start()
    time.sleep(0.2)
    began, served = time.monotonic(), 0
    while time.monotonic() - began < 1.0:
        assert run(sandbox, "return args[0]", served).value == served
        served += 1
    assert thread.is_alive() and served >= 5
    thread.join()
    assert hung[0].error == "timeout"


def test_many_threads_each_get_their_own_answer(sandbox):
    answers: dict[int, object] = {}

    def ask(number):
        answers[number] = run(sandbox, "return args[0] * 2", number).value

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: 2 * number for number in range(40)}


def test_a_worker_is_replaced_after_its_uses_and_outlives_the_thread_that_first_used_it():
    started = started_or_skipped(workers=1, uses=3)
    with started:
        numbers: list[str] = []
        for _ in range(7):
            thread = threading.Thread(target=lambda: numbers.append(run(started, "return os.getpid()").value))
            thread.start()
            thread.join()
    # Process numbers go up by one a grading, and begin anew with each sandbox: three, three, one.
    first = numbers[0]
    assert numbers == [first, first + 1, first + 2] * 2 + [first]


def children(pid: int) -> list[int]:
    return [int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]


def gone(pid: int, within: float = 5.0) -> bool:
    """Ended, even where nobody has taken notice yet."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def inside(sandbox: Sandbox) -> list[int]:
    """The first process of each of its idle sandboxes, as numbered out here."""
    seats = [sandbox._seats.get() for _ in range(sandbox.workers)]
    keepers = [keeper for seat in seats for keeper in children(seat.result()._process.pid)]
    for seat in seats:
        sandbox._seats.put(seat)
    return keepers


def test_a_sandbox_killed_from_outside_is_no_fault_of_the_code_and_is_replaced(single):
    (keeper,) = inside(single)
    os.kill(keeper, signal.SIGKILL)
    assert gone(keeper)
    assert run(single, "return 1").error == "protocol"
    assert run(single, "return 1").value == 1


def test_nothing_runs_on_where_too_much_output_ended_a_grading(single):
    (keeper,) = inside(single)
    flood = "threading.Thread(target=os.write, args=(1, bytes(10**7)), daemon=True).start()"
    assert run(single, f"{flood}\n while True: pass").error == "output"
    assert gone(keeper, within=0.1)


def test_nothing_runs_on_where_the_host_is_killed_in_the_middle_of_a_grading(single):
    code = "from agent_rft.graders.sandbox import *; Sandbox(1).run('def f():\\n while True: pass', 'f', [])"
    host = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    running: list[int] = []
    try:
        within = time.monotonic() + 20.0
        while len(running) < 3 and time.monotonic() < within:  # bubblewrap, the keeper and the grading
            time.sleep(0.05)
            first = children(host.pid)
            second = [pid for parent in first for pid in children(parent)]
            running = first + second + [pid for parent in second for pid in children(parent)]
        assert len(running) == 3
    finally:
        host.kill()
        host.wait()
    assert all(gone(pid) for pid in running)


def test_a_closed_sandbox_leaves_no_process():
    started = started_or_skipped(workers=2)
    keepers = inside(started)
    assert len(keepers) == 2
    started.close()
    assert all(gone(pid, within=0.1) for pid in keepers)
    with pytest.raises(RuntimeError, match="closed"):
        run(started, "return 1")


# --- where it cannot run ------------------------------------------------------------------------------------------------


def test_without_bubblewrap_nothing_is_run(monkeypatch):
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"'bwrap' is not installed\n  cure: .*apt-get install bubblewrap"):
        Sandbox()


def test_where_bubblewrap_does_not_start_it_says_why(monkeypatch, tmp_path):
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr(module.shutil, "which", lambda name: str(fake))
    with pytest.raises(UserError, match=r"does not start: bwrap: No permissions to create new namespace\n  cure: .*user namespaces"):
        Sandbox(workers=1)


def test_a_worker_outside_a_sandbox_refuses(tmp_path):
    fake = tmp_path / "bwrap"
    fake.write_text(
        '#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nshift\npython=$1\nshift 6\nexec "$python" -s -S -P -B "$WORKER" "$@"\n'
    )
    text = fake.read_text().replace("$WORKER", str(module.WORKER)).replace("shift 6", "shift 6")
    fake.write_text(text)
    fake.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.shutil, "which", lambda name: str(fake))
        with pytest.raises(UserError, match="runs inside the sandbox only"):
            Sandbox(workers=1)


# --- where the grade is due ---------------------------------------------------------------------------------------------


def test_code_ends_before_the_grade_is_due_and_who_finds_no_sandbox_free_is_told_so(single):
    def loops():
        with due_within(2.0):
            return single.run("def f():\n while True: pass", "f", [], LIMITS)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(loops)
        time.sleep(0.3)
        with due_within(0.2):
            turned_away = run(single, "return 1")
        ended = running.result(20)
    assert (turned_away.error, turned_away.what) == ("protocol", "none of 1 sandboxes was free before the grade was due")
    assert ended.error == "due" and "had not ended after 2" in ended.what, "not its own limit, which is 20 s"
    assert run(single, "return 1").value == 1
