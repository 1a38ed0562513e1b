"""A user's mistake gets one clear message that says the cure, exit code 1 or 2, and never a stack trace."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from sqlalchemy.exc import OperationalError

from agent_rft.cli import main

ROOT = Path(__file__).resolve().parents[1]
ROW = {"id": "a", "prompt": "What was the revenue?", "reference_answer": "$842M"}


class Ended(NamedTuple):
    code: int
    stdout: str
    stderr: str


Rft = Callable[..., Ended]


@pytest.fixture
def rft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Rft]:
    """A command in this process and the test's folder: what it does not catch itself, fails the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # `main` sets its own, which is for a process of its own
    at_a_stop = signal.getsignal(signal.SIGTERM)
    yield lambda *words: Ended(main(list(words)), *capfd.readouterr())
    signal.signal(signal.SIGTERM, at_a_stop)


def in_a_process(*words: str, folder: Path) -> Ended:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "agent_rft", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False)
    return Ended(done.returncode, done.stdout, done.stderr)


def refused(ended: Ended, *told: str) -> None:
    assert ended.code in (1, 2), ended
    assert ended.stderr.startswith("error: ")
    assert "Traceback" not in ended.stdout + ended.stderr
    for words in told:
        assert words in ended.stderr


def write(path: Path, *rows: dict | str) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.fixture
def train(rft: Rft, tmp_path: Path):
    """`rft train` on these files."""

    def run(train_rows: list, val_rows: list, *overrides: str) -> Ended:
        files = write(tmp_path / "train.jsonl", *train_rows), write(tmp_path / "val.jsonl", *val_rows)
        return rft("train", f"task.train={files[0]}", f"task.val={files[1]}", *overrides)

    return run


def test_a_row_without_an_id(train):
    refused(train([{"prompt": "Q?", "reference_answer": "1"}], [{**ROW, "id": "b"}]), "train.jsonl:1", "id")


def test_an_id_twice_across_files(train):
    refused(train([ROW], [{**ROW, "prompt": "another"}]), "val.jsonl:1", "train.jsonl:1", "'a'")


def test_a_broken_json_line_and_every_other_fault_at_once(train):
    broken = train([ROW, '{"id": "b", ', {"id": "c", "prompt": ""}], [{**ROW, "id": "d", "prompt": "x"}])
    refused(broken, "train.jsonl:2", "train.jsonl:3")


def test_an_unknown_tool_in_a_row(train):
    tool = {"type": "function", "function": {"name": "serch", "parameters": {}}}
    refused(train([{**ROW, "tools": [tool]}], [{**ROW, "id": "b", "prompt": "x"}]), "train.jsonl:1", "serch", "did you mean 'search'?")


def test_a_misspelt_key(rft: Rft):
    refused(rft("train", "algorithm.kl_cof=0.02"), "kl_cof", "did you mean 'kl_coef'?")


def test_a_group_of_one(rft: Rft):
    refused(rft("train", "algorithm.group_size=1"), "algorithm.group_size", "8 is usual")


def test_a_missing_corpus_folder(rft: Rft):
    refused(rft("serve", "tools.corpus=nowhere"), "corpus folder nowhere is missing", "make data")


def test_a_missing_corpus_is_told_by_train_too(train):
    refused(train([ROW], [{**ROW, "id": "b", "prompt": "x"}], "tools.corpus=nowhere"), "corpus folder nowhere is missing", "make data")


def test_a_port_in_use(tmp_path: Path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("Revenue: $842M")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused(in_a_process("serve", "tools.corpus=docs", "--port", str(port), folder=tmp_path), str(port), "in use", "serving.port=")


def test_a_model_folder_that_is_not_there(train, tmp_path: Path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("Revenue: $842M")
    refused(train([ROW], [{**ROW, "id": "b", "prompt": "x"}], "model.path=models/none", "tools.corpus=docs"), "models/none")


def test_cases_that_are_not_cases(rft: Rft, tmp_path: Path):
    write(tmp_path / "cases.jsonl", {"item": {}}, "{")
    refused(rft("grade", "--grader", "numeric", "--cases", "cases.jsonl"), "cases.jsonl:1", "cases.jsonl:2")
    refused(rft("grade", "--grader", "numerc", "--cases", "cases.jsonl"), "did you mean 'numeric'?")
    refused(rft("grade", "--grader", "numeric", "--cases", "none.jsonl"), "none.jsonl")


def test_runs_and_cards_that_are_not_there(rft: Rft):
    refused(rft("resume", "no-such-run"), "no-such-run", "settings.yaml")
    refused(rft("card", "show", "0190"), "0190")


def test_a_grader_that_nobody_has_activated(train, tmp_path: Path):
    grader = write(tmp_path / "loose.json", {"type": "numeric", "name": "numeric", "tolerance": 0.01})
    (tmp_path / "filings").mkdir()
    (tmp_path / "filings" / "a.txt").write_text("Revenue was $842M.")
    found = train(
        [ROW],
        [{**ROW, "id": "b", "prompt": "And the margin?"}],
        f"grader.file={grader}",
        "tools.corpus=filings",
        f"model.path={ROOT}/models/research-tiny",
    )
    refused(found, "is not registered, and not active", "grader.allow_inactive=true")
    assert [held.name for held in (tmp_path / "runs").iterdir()] == ["cards.db"], "what was refused leaves no run behind"


def test_a_store_that_goes_away_meanwhile_is_told_in_a_line(tmp_path, capsys, monkeypatch):
    def gone(*_: object) -> None:
        raise OperationalError("SELECT 1", {}, Exception("server closed the connection")) from Exception("server closed the connection")

    monkeypatch.setattr("agent_rft.commands.cards.list_cards", gone)
    assert main(["card", "list", "--store", f"sqlite:///{tmp_path}/cards.db"]) == 4
    assert "server closed the connection\n  is its server up" in capsys.readouterr().err
