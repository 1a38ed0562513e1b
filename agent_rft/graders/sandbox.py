"""Code that others wrote, run where it can reach nothing: bubblewrap with no network, no files, no environment, and limits.

Starting a sandbox takes tens of milliseconds, so a pool of them is kept warm. Each runs one grading at a time, in a fresh
fork of its first process (`sandbox_worker`), and is replaced after so many, or after one that did not end by itself.
Without bubblewrap nothing is run: limits alone isolate nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import queue
import selectors
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, cast

import msgspec

from agent_rft.contracts.errors import InfraError, UserError
from agent_rft.graders.deadline import longest_wait, seconds_left
from agent_rft.graders.sandbox_worker import LAST_OF_PRINTED, MOST_FILES, SCRATCH
from agent_rft.graders.seccomp import MACHINES, filter_program

WORKER = Path(__file__).with_name("sandbox_worker.py")
SYSTEM = ("/usr/bin", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/share", "/bin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache")
"""What programs need of the machine. /usr as a whole is not among them: images keep applications in it."""
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": SCRATCH, "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"}
"""The same everywhere: nothing comes from the environment around. The fixed hash seed makes gradings repeatable."""
SCRATCH_BYTES = 64 << 20
USES = 500
"""Gradings before a sandbox is replaced."""
START_SECONDS = 60.0
GRACE_SECONDS = 15.0
"""How much longer than its limit a grading may take to be reported before the sandbox itself counts as hung."""
LISTENED_SECONDS = 1.0
CURE = (
    "install bubblewrap 0.7 or newer (Debian, Ubuntu: apt-get install bubblewrap) and allow user namespaces "
    "(sysctl user.max_user_namespaces above 0; Ubuntu 24.04: kernel.apparmor_restrict_unprivileged_userns=0 or an AppArmor "
    "profile for bwrap; in Docker: --security-opt seccomp=unconfined --security-opt systempaths=unconfined)"
)

ErrorKind = Literal["crash", "timeout", "memory", "output", "protocol", "due"]
"""protocol: the sandbox did not do its work, which code in it cannot bring about. due: the grade was due before any limit was
broken, which says nothing of the code. The others are its own doing."""


class SandboxLimits(msgspec.Struct, frozen=True):
    """Of one grading. No new processes at all: memory and time are those of one."""

    seconds: float = 120.0
    """By the clock; and of processor time, counted over all threads."""
    memory_bytes: int = 2 << 30
    """Address space."""
    output_bytes: int = 1 << 20
    """The answer and everything printed."""
    threads: int = 64
    file_bytes: int = 32 << 20
    open_files: int = 64


DEFAULT_LIMITS = SandboxLimits()
"""What OpenAI's graders get."""


class Outcome(msgspec.Struct, frozen=True):
    value: Any = None
    """What the function returned; of a program, what it printed."""
    error: ErrorKind | None = None
    what: str = ""
    """Why there is no value, in a line."""
    details: str = ""
    """The traceback, or the last of what was printed."""
    seconds: float = 0.0
    """Inside the sandbox: waiting for a free one is not counted."""


class Sandbox:
    """As many gradings at once as there are `workers`, from any number of threads; further ones wait. None goes on after it is due."""

    def __init__(self, workers: int | None = None, uses: int = USES) -> None:
        self.workers = workers or len(os.sched_getaffinity(0))
        self._command, self._uses = sandbox_command(), uses
        # One thread that outlives every sandbox starts them all: the kernel ends a child when the *thread* that started it ends.
        self._starter = ThreadPoolExecutor(1, "sandbox-starter")
        self._seats: queue.SimpleQueue[Future[_Worker]] = queue.SimpleQueue()
        self._closed = False
        first = self._start()
        try:
            first.result()
        except InfraError as error:
            self._starter.shutdown()
            raise UserError(f"the sandbox for graded code does not start: {error.what}", CURE) from error
        for seat in (first, *(self._start() for _ in range(self.workers - 1))):
            self._seats.put(seat)

    def __reduce__(self) -> tuple[type[Sandbox], tuple[int, int]]:
        """Sent to another process, it is one of its own there."""
        return Sandbox, (self.workers, self._uses)

    def run(self, source: str, call: str, payload: Sequence[Any] | None, limits: SandboxLimits = DEFAULT_LIMITS) -> Outcome:
        """Python: `source` is run, then its function `call` with the payload as arguments, and its value comes back as JSON.
        Without a payload nothing is called: whether the source defines the function is all that is asked."""
        return self._run({"command": None, "source": source, "call": call, "payload": payload}, limits)

    def run_program(self, command: Sequence[str], file: str, source: str, stdin: str, limits: SandboxLimits = DEFAULT_LIMITS) -> Outcome:
        """Any language: `source` lies as `file` in the working folder, `command` reads `stdin`, and what it prints comes back."""
        return self._run({"command": list(command), "files": {file: source, ".stdin": stdin}, "stdin": ".stdin"}, limits)

    def close(self) -> None:
        """Waits for gradings under way."""
        self._closed = True
        for _ in range(self.workers):
            with contextlib.suppress(InfraError):
                self._seats.get().result().end()
        self._starter.shutdown()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _start(self) -> Future[_Worker]:
        return self._starter.submit(_Worker, self._command, self._uses)

    def _run(self, request: dict[str, Any], limits: SandboxLimits) -> Outcome:
        if self._closed:
            raise RuntimeError("the sandbox is closed")
        body, worker = json.dumps(request).encode(), None
        try:
            seat = self._seats.get(timeout=longest_wait())
        except queue.Empty:
            return Outcome(error="protocol", what=f"none of {self.workers} sandboxes was free before the grade was due")
        try:
            worker = seat.result()
            in_time = msgspec.structs.replace(limits, seconds=min(limits.seconds, seconds_left()))
            outcome = worker.grade(body, in_time, is_program=request["command"] is not None)
            if outcome.error == "timeout" and in_time.seconds < limits.seconds:
                return Outcome(error="due", what=f"it had not ended after {outcome.seconds:.3g} s, when the grade was due")
            return outcome
        except InfraError as error:
            return Outcome(error="protocol", what=error.what)
        finally:
            if worker and worker.usable:
                self._seats.put(seat)
            else:
                if worker:
                    worker.end()
                self._seats.put(self._start())


class _Worker:
    """One sandbox. Made in the starter's thread, used by one thread at a time."""

    def __init__(self, command: Sequence[str], uses: int) -> None:
        """Raises InfraError where it does not come up."""
        self._uses_left, self._healthy = uses, True
        orders, self._orders = os.pipe()
        self._reports, reports = os.pipe()
        pipe = subprocess.PIPE
        inside = [*command, str(orders), str(reports), filter_program(platform.machine()).hex(), *_packages().values()]
        self._process = subprocess.Popen(
            inside, stdin=pipe, stdout=pipe, stderr=pipe, pass_fds=(orders, reports), env={}, start_new_session=True
        )
        os.close(orders)
        os.close(reports)
        self._streams = [stream for stream in (self._process.stdin, self._process.stdout, self._process.stderr) if stream]
        self._stdin, self._stdout, self._stderr = (stream.fileno() for stream in self._streams)
        for descriptor in (self._stdin, self._stdout, self._stderr, self._reports):
            os.set_blocking(descriptor, False)
        exchange = _Exchange(b"", self._stdin, (self._stdout, self._stderr), self._reports, 1 << 16)
        ready = exchange.hold(START_SECONDS)
        if not ready.get("ready"):
            self.end()
            raise InfraError("sandbox", exchange.text(self._stderr).strip() or f"it was not ready within {START_SECONDS:g} s")

    @property
    def usable(self) -> bool:
        return self._healthy and self._uses_left > 0

    def grade(self, request: bytes, limits: SandboxLimits, is_program: bool) -> Outcome:
        self._uses_left -= 1
        self._healthy = False  # until this grading has ended by itself
        framed = len(request).to_bytes(8, "big") + request
        try:
            os.write(self._orders, msgspec.json.encode(limits) + b"\n")
        except BrokenPipeError:
            raise InfraError("sandbox", "it ended between two gradings") from None
        exchange = _Exchange(framed, self._stdin, (self._stdout, self._stderr), self._reports, limits.output_bytes)
        report = exchange.hold(limits.seconds + GRACE_SECONDS)
        said, printed = exchange.heard[self._stdout], exchange.text(self._stderr)[-LAST_OF_PRINTED:]
        if exchange.flooded:
            return Outcome(error="output", what=f"it put out more than {limits.output_bytes:,} bytes")
        if not report:
            raise InfraError("sandbox", "it ended or hung in the middle of a grading")
        self._healthy = report["clean"] and not report["ended"] and report["status"] >= 0 and not exchange.unsent
        outcome = _broken(report, limits) or (_printed(report["status"], said) if is_program else _returned(said))
        return msgspec.structs.replace(outcome, details=outcome.details or (printed if outcome.error else ""), seconds=report["seconds"])

    def end(self) -> None:
        """Whatever it is doing; returns when nothing runs in it any more."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._orders, b"\n")
        try:
            self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for stream in self._streams:
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        os.close(self._orders)
        os.close(self._reports)


class _Exchange:
    """One request out and everything that comes back, until the keeper reports; no side waits for the other with a full pipe."""

    def __init__(self, request: bytes, stdin: int, streams: Sequence[int], reports: int, most: int) -> None:
        self.unsent, self.flooded = memoryview(request), False
        self.heard: dict[int, bytearray] = {stream: bytearray() for stream in streams}
        self._stdin, self._reports, self._most = stdin, reports, most

    def text(self, stream: int) -> str:
        return self.heard[stream].decode(errors="replace")

    def hold(self, seconds: float) -> dict[str, Any]:
        """The keeper's report; empty where none came, or where more was put out than allowed."""
        deadline, report = time.monotonic() + seconds, bytearray()
        with selectors.DefaultSelector() as waiting:
            for stream in (*self.heard, self._reports):
                waiting.register(stream, selectors.EVENT_READ)
            if self.unsent:
                waiting.register(self._stdin, selectors.EVENT_WRITE)
            while not report.endswith(b"\n") and not self.flooded and (left := deadline - time.monotonic()) > 0:
                for key, _ in waiting.select(min(left, LISTENED_SECONDS)):
                    if key.fd == self._stdin:
                        self._send(waiting)
                    elif key.fd != self._reports:
                        self._listen(key.fd, waiting)
                    elif not (part := os.read(self._reports, 1 << 16)):
                        report.clear()
                        deadline = 0.0
                    else:
                        report += part
            for stream in self.heard if report else ():  # the fork has ended: what is in the pipes now is all
                while not self.flooded and stream in waiting.get_map() and self._listen(stream, waiting):
                    pass
        return {} if self.flooded or not report.endswith(b"\n") else cast(dict[str, Any], json.loads(report))

    def _send(self, waiting: selectors.BaseSelector) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.unsent = self.unsent[os.write(self._stdin, self.unsent[: 1 << 16]) :]
            if self.unsent:
                return
        waiting.unregister(self._stdin)

    def _listen(self, stream: int, waiting: selectors.BaseSelector) -> bool:
        """False where nothing more is there now."""
        try:
            part = os.read(stream, 1 << 16)
        except BlockingIOError:
            return False
        if not part:
            waiting.unregister(stream)
        self.heard[stream] += part
        self.flooded = sum(len(heard) for heard in self.heard.values()) > self._most
        return bool(part)


# --- what a report means ----------------------------------------------------------------------------------------------


def _broken(report: dict[str, Any], limits: SandboxLimits) -> Outcome | None:
    """The limit that was broken, by what the keeper saw and how the fork ended."""
    ended, status = report["ended"], report["status"]
    if ended == "timeout" or status == -signal.SIGXCPU:
        return Outcome(error="timeout", what=f"it took longer than {limits.seconds:g} s")
    if ended == "files":
        return Outcome(error="output", what=f"it made more than {MOST_FILES:,} files")
    if status == -signal.SIGKILL:
        return Outcome(error="memory", what="it was killed by the kernel")
    return Outcome(error="crash", what=f"it was ended by {signal.Signals(-status).name}") if status < 0 else None


def _returned(said: bytearray) -> Outcome:
    """The fork's own words. Graded code could have written them too, so they can only ever speak of itself."""
    try:
        told = json.loads(said)
    except (ValueError, RecursionError):
        return Outcome(error="crash", what="it ended before its function returned")
    if isinstance(told, dict) and "value" in told:
        return Outcome(value=cast(dict[str, Any], told)["value"])
    told = cast(dict[str, Any], told) if isinstance(told, dict) else {}
    kind = "memory" if told.get("error") == "memory" else "crash"
    what, details = (_sendable(str(told.get(key, ""))) for key in ("what", "details"))
    return Outcome(error=kind, what=what, details=details)


def _sendable(text: str) -> str:
    """Half a surrogate pair, which code can put into its own words, cannot be written anywhere as UTF-8."""
    return text.encode(errors="backslashreplace").decode()


def _printed(status: int, said: bytearray) -> Outcome:
    if status:
        return Outcome(error="crash", what=f"it ended with code {status}")
    return Outcome(value=said.decode(errors="replace"))


# --- the command ------------------------------------------------------------------------------------------------------


_AS_USER = ("--unshare-all", "--unshare-user", "--uid", "1000", "--gid", "1000", "--cap-drop", "ALL")
_AS_ROOT = (
    *("--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"),
    *("--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"),
)
"""A user namespace that root makes leaves its processes root outside, who may write to /proc/sys without any capability.
So root makes none; the worker takes a user of its own and loses the two capabilities by that, before it reads anything."""


def sandbox_command() -> list[str]:
    """Up to the worker's own arguments. UserError where this machine cannot run it."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise UserError("graded code runs in bubblewrap only, and 'bwrap' is not installed", CURE)
    if platform.machine() not in MACHINES:
        raise UserError(f"graded code is not run on {platform.machine()}", f"use one of {', '.join(MACHINES)}")
    python = os.path.realpath(sys.executable)
    return [
        bwrap,
        *(_AS_ROOT if os.geteuid() == 0 else _AS_USER),
        *("--hostname", "sandbox", "--die-with-parent", "--as-pid-1", "--clearenv"),
        *(word for name, value in ENVIRONMENT.items() for word in ("--setenv", name, value)),
        *_bound([*SYSTEM, *_python_folders()]),
        *(word for path, inside in _packages().items() for word in ("--ro-bind", path, inside)),
        *("--ro-bind", str(WORKER), "/worker.py", "--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"),
        *("--perms", "0777", "--size", str(SCRATCH_BYTES), "--tmpfs", SCRATCH, "--remount-ro", "/", "--chdir", SCRATCH),
        *("--", python, "-s", "-S", "-P", "-B", "/worker.py"),
    ]


def _bound(paths: Sequence[str]) -> list[str]:
    """Read-only, each once; what is a link on this machine is one inside."""
    words: list[str] = []
    for path in dict.fromkeys(paths):
        if os.path.islink(path) and path in SYSTEM:
            words += ["--symlink", os.readlink(path), path]
        elif os.path.exists(path):
            parents = [str(parent) for parent in reversed(Path(path).parents[:-1])]  # made by itself, bwrap would close them to others
            words += [*(word for parent in parents for word in ("--dir", parent)), "--ro-bind", path, path]
    return words


def _python_folders() -> list[str]:
    """This interpreter's own: graders run under the Python that the rest runs under."""
    return [os.path.join(os.path.realpath(prefix), part) for prefix in {sys.base_prefix, sys.base_exec_prefix} for part in ("bin", "lib")]


def _packages() -> dict[str, str]:
    """What is installed beside this package: graders may import numpy and the like. Inside it has a place of its own, since an
    environment may lie where the sandbox has its scratch folder."""
    paths = sysconfig.get_paths()
    return {path: f"/packages{at}" for at, path in enumerate(sorted({paths["purelib"], paths["platlib"]}))}
