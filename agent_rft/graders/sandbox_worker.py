"""Runs inside the sandbox as its process 1: each grading in a fresh fork of this one. Needs the standard library only.

Five pipes lead out. The keeper (this process) takes a grading's limits from one and reports on another how it ended. The
fork takes the request from standard input and answers on standard output; what the graded code prints comes on standard
error. The keeper never touches a request or an answer, so no fork inherits anything of an earlier one. It cannot be read,
stopped or killed by a fork: it is process 1, and not dumpable.
"""

from __future__ import annotations

import ctypes
import json
import linecache
import os
import resource
import select
import shutil
import signal
import sys
import time
import traceback
import types
from collections.abc import Callable
from typing import Any, NoReturn

PRELOADED = ("collections", "datetime", "decimal", "difflib", "fractions", "itertools", "math", "random", "re", "statistics", "string")
"""What graders commonly import: loaded once here, and inherited."""
SCRATCH = "/tmp"
MOST_FILES = 10_000
"""Empty files cost the kernel memory that the size of the scratch folder does not count."""
WATCH_SECONDS = 0.05
FIRST_USER, USERS = 2_000_000_000, 100_000_000
"""Where root starts the sandbox, it takes a user of its own that nobody else is, one of so many."""
DUMPABLE, NO_NEW_PRIVILEGES, SECCOMP, SECCOMP_FILTER = 4, 38, 22, 2
LAST_OF_PRINTED = 4_000


class FilterProgram(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))


# --- the keeper -------------------------------------------------------------------------------------------------------


def keep(orders: int, reports: int, confine: Callable[[], None]) -> None:
    """One grading after another until nobody orders any more, or an empty order ends it."""
    _report(reports, {"ready": True})
    with open(orders, encoding="utf-8", closefd=False) as incoming:
        while order := incoming.readline().strip():
            limits: dict[str, Any] = json.loads(order)
            began = time.monotonic()
            pid = os.fork()
            if pid == 0:
                os.close(orders)
                os.close(reports)
                _grade_and_leave(limits, confine)
            why = _watch(pid, limits, orders)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            seconds = time.monotonic() - began
            _report(reports, {"ended": why, "status": status, "seconds": seconds, "clean": _wipe()})


def _watch(pid: int, limits: dict[str, Any], orders: int) -> str:
    """Waits for a grading's end. Which limit it broke where it had to be ended, else nothing.

    Whatever comes on the orders meanwhile, their end included, says that nobody waits for the grading any more. When this
    process exits the kernel ends all others in here. (bubblewrap's own --die-with-parent is lost by a change of user.)
    """
    ended, deadline = os.pidfd_open(pid), time.monotonic() + limits["seconds"]
    try:
        while not (heard := select.select([ended, orders], [], [], WATCH_SECONDS)[0]):
            scratch = os.statvfs(SCRATCH)
            broken = "timeout" if time.monotonic() > deadline else "files" if scratch.f_files - scratch.f_ffree > MOST_FILES else ""
            if broken:
                os.kill(pid, signal.SIGKILL)
                return broken
        if orders in heard:
            sys.exit()
        return ""
    finally:
        os.close(ended)


def _wipe() -> bool:
    """False where something is left, such as folders nested beyond what can be removed: then this sandbox is spent."""
    try:
        for entry in os.scandir(SCRATCH):
            shutil.rmtree(entry) if entry.is_dir(follow_symlinks=False) else os.unlink(entry)
    except (OSError, RecursionError):
        return False
    return True


def _report(reports: int, what: dict[str, Any]) -> None:
    os.write(reports, json.dumps(what).encode() + b"\n")


# --- one grading, in a fork of its own --------------------------------------------------------------------------------


def _grade_and_leave(limits: dict[str, Any], confine: Callable[[], None]) -> NoReturn:
    status = 1
    try:
        _limit(limits)
        confine()
        request: dict[str, Any] = json.loads(_read(int.from_bytes(_read(8), "big")))
        if request["command"]:
            _become(request)
        answers = os.dup(1)
        os.dup2(2, 1)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        _write(answers, _called(request))
        sys.stdout.flush()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _limit(limits: dict[str, Any]) -> None:
    seconds = int(limits["seconds"]) + 1
    for kind, value in (
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_NPROC, limits["threads"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))  # told first, then killed


def _called(request: dict[str, Any]) -> bytes:
    """The function's value as JSON, or why there is none."""
    source, name, error = request["source"], request["call"], None
    linecache.cache["<source>"] = (len(source), None, source.splitlines(keepends=True), "<source>")
    try:
        module = sys.modules["graded"] = types.ModuleType("graded")  # dataclasses and pickle look a class's module up there
        defined: dict[str, Any] = vars(module)
        exec(compile(source, "<source>", "exec", dont_inherit=True), defined)
        if not callable(defined.get(name)):
            raise NameError(f"the source defines no function '{name}'")
        value = defined[name](*request["payload"]) if request["payload"] is not None else None
        return json.dumps({"value": value}, default=_plain).encode()
    except MemoryError:
        error = {"error": "memory", "what": "MemoryError", "details": ""}
    except BaseException as raised:
        error = {"error": "crash", **_told(raised)}
    return json.dumps(error).encode()


def _told(raised: BaseException) -> dict[str, str]:
    """From the source's own first line on; how it came to be called is of no use to its author."""
    trace = raised.__traceback__
    while trace and trace.tb_frame.f_code.co_filename != "<source>":
        trace = trace.tb_next
    lines = traceback.format_exception(type(raised), raised, trace)
    what = traceback.format_exception_only(raised)[-1].strip()
    return {"what": what[:LAST_OF_PRINTED], "details": "".join(lines)[-LAST_OF_PRINTED:]}


def _plain(value: Any) -> Any:
    """numpy's numbers are numbers."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no JSON")


def _become(request: dict[str, Any]) -> NoReturn:
    """Another program in this process's place: what it prints is the answer."""
    for name, text in request["files"].items():
        with open(os.path.join(SCRATCH, name), "w", encoding="utf-8", errors="surrogatepass") as file:
            file.write(text)
    os.dup2(os.open(os.path.join(SCRATCH, request["stdin"]), os.O_RDONLY), 0)
    os.execv(request["command"][0], request["command"])


def _read(size: int) -> bytes:
    """Exactly so much of the request: standard input is not to be read ahead."""
    parts: list[bytes] = []
    while size and (part := os.read(0, min(size, 1 << 20))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


# --- start ------------------------------------------------------------------------------------------------------------


def _confinement(program: bytes) -> Callable[[], None]:
    """What a fork does before it reads anything: from then on the kernel refuses it the listed system calls."""
    kernel = ctypes.CDLL(None, use_errno=True)
    described = FilterProgram(len(program) // 8, program)

    def confine() -> None:
        for call in ((NO_NEW_PRIVILEGES, 1, 0, 0, 0), (SECCOMP, SECCOMP_FILTER, ctypes.byref(described), 0, 0)):
            if kernel.prctl(*call):
                raise OSError(ctypes.get_errno(), "prctl")

    return confine


def _try_once(confine: Callable[[], None]) -> None:
    """A kernel that takes no filter must be found out before the first grading."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            confine()
            os.fork()
        except BlockingIOError:
            status = 0
        finally:
            os._exit(status)
    if os.waitpid(pid, 0)[1]:
        sys.exit("the kernel takes no seccomp filter")


def _leave_root() -> None:
    """Nothing in here may be root outside: root owns what the kernel lets its owner write, capabilities or not."""
    if os.getuid() == 0:
        user = FIRST_USER + int.from_bytes(os.urandom(8), "big") % USERS
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    with open("/proc/self/status", encoding="utf-8") as status:
        told = dict(line.split(":", 1) for line in status)
    rights = any(int(told[kind], 16) for kind in ("CapPrm", "CapEff", "CapAmb"))
    is_root_outside = os.stat("/proc/sys/kernel").st_uid == os.getuid()
    if rights or is_root_outside or int(told["NoNewPrivs"]) != 1:
        sys.exit("it keeps rights that graded code must not have")


def main() -> None:
    orders, reports, program = int(sys.argv[1]), int(sys.argv[2]), bytes.fromhex(sys.argv[3])
    if os.getpid() != 1:
        sys.exit("this runs inside the sandbox only, as its first process")
    _leave_root()
    if ctypes.CDLL(None).prctl(DUMPABLE, 0, 0, 0, 0):  # after the change of user, which undoes it
        sys.exit("the kernel lets this process be read")
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # process 1 is spared every signal that it has no handler for
    sys.path += sys.argv[4:]
    for name in PRELOADED:
        __import__(name)
    confine = _confinement(program)
    _try_once(confine)
    keep(orders, reports, confine)


if __name__ == "__main__":
    main()
