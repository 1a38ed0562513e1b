"""The filter program, run by an interpreter of its own: which calls pass, which fail with what, which end the process."""

from __future__ import annotations

import errno
import struct

import pytest

from agent_rft.graders.seccomp import NUMBERS, filter_program

ALLOWED, KILLED = "allowed", "killed"
# From the kernel's headers (arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h): read, openat, execve.
HARMLESS = {"x86_64": (0, 257, 59), "aarch64": (63, 56, 221)}
MACHINE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def verdict(program: bytes, machine: int, number: int, first_argument: int = 0) -> str | int:
    """What the kernel would do: classic BPF as linux/bpf_common.h defines it, with the codes that filters use."""
    seen = struct.pack("=IIQQ", number, machine, 0, first_argument)
    steps = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    at = accumulator = 0
    while True:
        code, if_so, if_not, value = steps[at]
        at += 1
        if code == 0x20:  # BPF_LD | BPF_W | BPF_ABS
            (accumulator,) = struct.unpack_from("=I", seen, value)
        elif code == 0x06:  # BPF_RET | BPF_K
            return {0x7FFF0000: ALLOWED, 0x80000000: KILLED}.get(value, value & 0xFFFF)
        else:  # BPF_JMP with BPF_JEQ, BPF_JGE, BPF_JSET
            at += if_so if {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[code] else if_not


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_a_thread_may_start_and_a_process_may_not(machine):
    program, clone = filter_program(machine), NUMBERS[machine]["clone"]
    assert verdict(program, MACHINE[machine], clone, 0x3D0F00) == ALLOWED  # what glibc's pthread_create asks: CLONE_THREAD is 0x10000
    assert verdict(program, MACHINE[machine], clone, 0x1200011) == errno.EAGAIN  # what glibc's fork asks
    assert verdict(program, MACHINE[machine], NUMBERS[machine]["clone3"]) == errno.ENOSYS
    for name in {"fork", "vfork"} & NUMBERS[machine].keys():
        assert verdict(program, MACHINE[machine], NUMBERS[machine][name]) == errno.EAGAIN


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_what_outlives_a_process_is_refused_and_common_calls_pass(machine):
    program = filter_program(machine)
    for name in ("shmget", "msgget", "semget", "mq_open", "add_key", "keyctl", "memfd_create", "unshare", "ptrace", "io_uring_setup"):
        assert verdict(program, MACHINE[machine], NUMBERS[machine][name]) == errno.EPERM, name
    for number in HARMLESS[machine]:
        assert verdict(program, MACHINE[machine], number) == ALLOWED


def test_another_machines_numbering_ends_the_process():
    program = filter_program("x86_64")
    assert verdict(program, 0x40000003, 0) == KILLED  # i386 on the same processor, where 2 is fork
    assert verdict(program, MACHINE["x86_64"], 0x40000000 + 57) == KILLED  # fork by x32's number
    assert verdict(program, MACHINE["aarch64"], 220) == KILLED
