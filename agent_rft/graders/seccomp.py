"""The system calls that graded code is refused, as the filter program that the kernel runs (classic BPF).

Namespaces and limits leave two gaps that this closes. New processes would each get the whole memory limit anew, and could
outlive their grading; threads are allowed. Shared memory, message queues and keyrings belong to no process, so what one
grading puts there the next could read.
"""

from __future__ import annotations

import errno
import struct

MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""What the kernel calls the two machines that the numbers below are for."""

NUMBERS: dict[str, dict[str, int]] = {
    "x86_64": {
        "clone": 56, "fork": 57, "vfork": 58, "clone3": 435,
        "shmget": 29, "semget": 64, "msgget": 68, "mq_open": 240, "add_key": 248, "request_key": 249, "keyctl": 250,
        "memfd_create": 319, "memfd_secret": 447,
        "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311,
        "unshare": 272, "setns": 308, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323,
        "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427,
    },
    "aarch64": {
        "clone": 220, "clone3": 435,
        "shmget": 194, "semget": 190, "msgget": 186, "mq_open": 180, "add_key": 217, "request_key": 218, "keyctl": 219,
        "memfd_create": 279, "memfd_secret": 447,
        "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271,
        "unshare": 97, "setns": 268, "bpf": 280, "perf_event_open": 241, "userfaultfd": 282,
        "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427,
    },
}  # fmt: skip

REFUSALS = {"clone": errno.EAGAIN, "fork": errno.EAGAIN, "vfork": errno.EAGAIN, "clone3": errno.ENOSYS}
"""Everything else is EPERM. EAGAIN reads as "no more processes"; ENOSYS makes the C library fall back from clone3, whose
flags a filter cannot see, to clone, whose flags it can."""

LOAD, JUMP_EQUAL, JUMP_AT_LEAST, JUMP_BITS, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER_AT, MACHINE_AT, FIRST_ARGUMENT_AT = 0, 4, 16
"""Where the kernel lays the call's number, its machine and the low half of its first argument."""
ALLOW, KILL, FAIL_WITH = 0x7FFF0000, 0x80000000, 0x00050000
CLONE_THREAD = 0x00010000
SECOND_NUMBERING = 0x40000000
"""From here on x86_64 has every call a second time (x32)."""


def filter_program(machine: str) -> bytes:
    """For `prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, …)`: 8 bytes an instruction."""
    numbers = NUMBERS[machine]
    program = [
        _step(LOAD, MACHINE_AT),
        _step(JUMP_EQUAL, MACHINES[machine], 1, 0),
        _step(RETURN, KILL),
        _step(LOAD, NUMBER_AT),
        _step(JUMP_AT_LEAST, SECOND_NUMBERING, 0, 1),
        _step(RETURN, KILL),
    ]
    for name in numbers.keys() - {"clone"}:
        program += [_step(JUMP_EQUAL, numbers[name], 0, 1), _step(RETURN, FAIL_WITH | REFUSALS.get(name, errno.EPERM))]
    program += [
        _step(JUMP_EQUAL, numbers["clone"], 0, 3),
        _step(LOAD, FIRST_ARGUMENT_AT),
        _step(JUMP_BITS, CLONE_THREAD, 1, 0),
        _step(RETURN, FAIL_WITH | REFUSALS["clone"]),
        _step(RETURN, ALLOW),
    ]
    return b"".join(program)


def _step(code: int, value: int, if_so: int = 0, if_not: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_so, if_not, value)
