"""A supervisor's SIGTERM stops a command at whatever moment it comes, and whoever started the command."""

from __future__ import annotations

import errno
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent_rft.cli import main

ROOT = Path(__file__).resolve().parents[1]
COMMAND = """
import argparse, asyncio, os, signal, sys, time
if sys.argv[2] == "deaf":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
from agent_rft import cli

class Deaf:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0)

def says_ready():
    print("ready", flush=True)

async def waits():
    says_ready()
    await asyncio.sleep(20)

def in_a_loop():
    asyncio.run(waits())

def outside_of_one():
    says_ready()
    time.sleep(20)

def in_a_finalizer():
    Deaf()
    time.sleep(20)

class Parser:
    def parse_known_args(self, argv):
        return argparse.Namespace(run=lambda _: globals()[sys.argv[1]]()), []

cli.parser = Parser
sys.exit(cli.main([]))
"""


def start(moment: str, ears: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", COMMAND, moment, ears]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def assert_stopped(running: subprocess.Popen[str], began: float) -> None:
    _, said = running.communicate(timeout=30)
    assert running.returncode == 130, said
    assert "stopped" in said
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("ears", ["hears", "deaf"], ids=["from a terminal", "in the background of a script, so deaf to Ctrl-C"])
@pytest.mark.parametrize("moment", ["in_a_loop", "outside_of_one"])
def test_a_sigterm_stops_it(moment: str, ears: str):
    running = start(moment, ears)
    assert running.stdout
    assert running.stdout.readline() == "ready\n"
    began = time.monotonic()
    running.terminate()
    assert_stopped(running, began)


def test_a_sigterm_that_python_drops_in_a_finalizer_is_heard_all_the_same():
    assert_stopped(start("in_a_finalizer", "hears"), time.monotonic())


@pytest.mark.parametrize(
    ("left", "told"),
    [(["versions.json"], "`make resume RUN='{runs}/r'` goes on"), ([], "nothing had begun: the same command begins anew")],
    ids=["under way", "before it began, its folder gone"],
)
def test_who_stops_a_training_run_is_told_how_this_one_goes_on(
    left: list[str], told: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    runs = tmp_path / "meine Läufe"

    async def stopped(*_: object, **__: object) -> None:
        for name in left:
            (runs / "r" / name).touch()
        raise KeyboardInterrupt

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("agent_rft.commands.train._train", stopped)
    assert main(["train", "research_tiny", f"run.folder={runs}", "run.id=r"]) == 130
    assert f"error: stopped; {told.format(runs=runs)}\n" in capsys.readouterr().err
    assert (runs / "r").exists() is bool(left)


def test_a_full_disk_is_one_line_and_no_trace(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "runs/r/prior.png")

    monkeypatch.setattr("agent_rft.commands.train.train", full)
    assert main(["train"]) == 4
    assert capsys.readouterr().err.startswith(
        "error: infrastructure: there is no room on the disk for runs/r/prior.png\n  cure: make room;"
    )
