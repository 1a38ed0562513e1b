"""`rft suite`: models side by side, each try run once, whatever stops the command in between."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from litestar import Litestar, post
from litestar.exceptions import NotAuthorizedException

from agent_rft.cli import main
from agent_rft.commands.parts import console
from agent_rft.commands.suite import connections_for
from agent_rft.datasets.filings import TOOLS
from agent_rft.rollouts.in_process import ScriptedSampler
from observability.cards import count_cards
from observability.store import open_store
from serving.app import create_app
from serving.model_server import Faults, model_app
from serving.tools.corpus import CorpusTools

ROOT = Path(__file__).resolve().parents[1]
BEARER = "bearer-of-this-test"
LOOK = '<tool_call>{"name": "search", "arguments": {"query": "figures"}}</tool_call>'


class Speaker:
    """Looks once, then says what the function says of the question. `begun` has the seed of each rollout that was begun."""

    def __init__(self, says):
        self.says, self.begun = says, list[int]()

    def __call__(self, ask):
        if any(message.role == "tool" for message in ask.conversation):
            return self.says(ask.conversation[-4 if len(ask.conversation) > 4 else -3].content)
        self.begun.append(ask.seed)
        return LOOK


@pytest.fixture
def rft(capfd, monkeypatch):
    """The exit code, and all that was said."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # `main` sets its own, which is for a process of its own
    monkeypatch.setattr(console, "_width", 200)

    def run(*words):
        code = main(list(words))
        return code, "".join(capfd.readouterr())

    return run


@pytest.fixture
def rows(tmp_path):
    lines = (ROOT / "data/research/val.jsonl").read_text(encoding="utf-8").splitlines()[:4]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return {row["prompt"]: row["reference_answer"] for row in map(json.loads, lines)}


@pytest.fixture
def world(tmp_path, rows, in_thread, monkeypatch):
    """Words of the command for a world of toy tools, and `serving(name, speaker)`, a model's address while it is entered."""
    monkeypatch.setenv("TOOL_BEARER", BEARER)
    tools = CorpusTools({"filings/toy.html": "Heron Castings Q1 2025\nfree cash flow: $224M"}, TOOLS)

    @contextlib.contextmanager
    def serving(name, speaker, latency_seconds=0.0):
        app = model_app(lambda _: ScriptedSampler(speaker), name, faults=Faults(latency_seconds=latency_seconds))
        with in_thread(app) as address:
            yield f"{address}/v1#{name}"

    with in_thread(create_app(tools, {}, BEARER)) as served:
        given = (f"tools.url={served}", f"run.folder={tmp_path}/runs", f"task.val={tmp_path}/rows.jsonl")
        yield ("suite", *given, f"store.url=sqlite:///{tmp_path}/cards.db"), serving


def newest_scoreboard(tmp_path):
    return json.loads(max((tmp_path / "runs").glob("suite-*/scoreboard.json"), key=lambda file: file.stat().st_mtime).read_text())


def cards_in(tmp_path):
    with contextlib.closing(open_store(f"sqlite:///{tmp_path}/cards.db")) as store:
        return sum(count_cards(store, folder.name) for folder in (tmp_path / "runs").glob("suite-*"))


def test_models_stand_side_by_side_and_a_second_call_runs_nothing(rft, tmp_path, rows, world):
    """`knowing` is right of all four rows; `half` of the two whose answers come first."""
    words, serving = world
    half = list(rows.values())[:2]
    knowing, guessing = Speaker(rows.get), Speaker(lambda asked: rows[asked] if rows[asked] in half else "no idea")
    with serving("half", guessing) as one, serving("knowing", knowing) as two:
        models = ("--of", one, "--of", two, "-k", "3")
        code, said = rft(*words, *models)
        assert code == 0, said
        assert "0 of 12 tries are kept, 12 to run" in said
        board = newest_scoreboard(tmp_path)
        assert [(model["rows"], model["tries"], model["reward"]["estimate"]) for model in board["scoreboard"]["models"]] == [
            (4, 12, 0.5), (4, 12, 1.0)
        ]  # fmt: skip
        [versus] = board["scoreboard"]["versus"]
        assert (versus["improved"], versus["regressed"], versus["d_reward"]["estimate"]) == (2, 0, 0.5)
        assert len(set(knowing.begun)) == 12 and sorted(knowing.begun) == sorted(guessing.begun), "both draw the same luck"
        assert cards_in(tmp_path) == 24
        code, again = rft(*words, *models)
        assert code == 0 and again.count("12 of 12 tries are kept, 0 to run") == 2
        assert len(knowing.begun) == len(guessing.begun) == 12
        assert newest_scoreboard(tmp_path)["scoreboard"] == board["scoreboard"] and cards_in(tmp_path) == 24


def test_after_kill_9_no_try_is_run_twice_and_none_is_without_its_card(rft, tmp_path, rows, world):
    words, serving = world
    speaker = Speaker(rows.get)
    with serving("slow", speaker, latency_seconds=0.05) as model:
        command = [sys.executable, "-m", "agent_rft", *words, "--of", model, "-k", "12", "--in-flight", "3"]
        killed = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "TOOL_BEARER": BEARER}, stdout=subprocess.DEVNULL)
        until = time.monotonic() + 180
        while len(speaker.begun) < 20 and time.monotonic() < until:
            time.sleep(0.005)
        killed.kill()
        killed.wait()
        [tries] = (tmp_path / "runs" / "suite").glob("*/tries.jsonl")
        kept = {json.loads(line)["kept"]["seed"] for line in tries.read_bytes().split(b"\n")[:-1]}
        assert 10 <= len(kept) < 48, "it was killed in the middle"
        time.sleep(0.3)  # what the server had been asked before, it has answered by now
        before = len(speaker.begun)
        code, said = rft(*words, "--of", model, "-k", "12")
        assert code == 0, said
    assert f"{len(kept)} of 48 tries are kept, {48 - len(kept)} to run" in said
    asked_again = speaker.begun[before:]
    assert len(asked_again) == 48 - len(kept) and not {seed % 2**31 for seed in kept} & set(asked_again)
    assert cards_in(tmp_path) == 48
    assert newest_scoreboard(tmp_path)["scoreboard"]["models"][0]["reward"]["estimate"] == 1.0


def test_a_model_that_infrastructure_spoilt_is_told_and_counted_and_nothing_of_it_is_kept(rft, tmp_path, rows, world):
    words, serving = world
    speaker = Speaker(rows.get)
    with serving("one", speaker) as model:
        code, said = rft(*words, "--of", model, "--of", model.replace("#one", "#other"), "-k", "1")
    assert code == 4 and "4 of 4 rollouts failed (model 4)" in said and "there is no model 'other' here" in said
    assert "mend that; then the same command again runs these alone" in said
    sound, spoilt = newest_scoreboard(tmp_path)["scoreboard"]["models"]
    assert (sound["rows"], sound["reward"]["estimate"], sound["infra_failures"]) == (4, 1.0, 0)
    assert (spoilt["rows"], spoilt["reward"], spoilt["infra_failures"]) == (0, None, 4)
    assert sorted(len(file.read_bytes().splitlines()) for file in (tmp_path / "runs" / "suite").glob("*/tries.jsonl")) == [0, 4]


def test_an_endpoint_is_evaluated_where_the_recipes_own_model_is_not(rft, tmp_path, rows, world):
    """And settings may stand after the options too."""
    words, serving = world
    with serving("one", Speaker(rows.get)) as model:
        code, said = rft(*words, "--of", model, "-k", "1", "model.path=nowhere/at-all", "seed=7")
        assert code == 0 and "seed 7" in said, said
        board = newest_scoreboard(tmp_path)
        assert (board["versions"]["checkpoint"], board["scoreboard"]["models"][0]["reward"]["estimate"]) == (model, 1.0)
        code, said = rft(*words, "--of", model, "--of", "base", "model.path=nowhere/at-all")
        assert code == 2 and "nowhere/at-all" in said


def test_a_key_that_is_refused_is_told_with_where_it_is_taken_from(rft, world, in_thread):
    @post("/v1/chat/completions")
    async def refuse() -> None:
        raise NotAuthorizedException("Incorrect API key")

    words, _ = world
    with in_thread(Litestar([refuse], logging_config=None)) as address:
        code, said = rft(*words, "--of", f"{address}/v1#one", "-k", "1")
    assert code == 4 and "its server answered 401" in said and "mend that (an endpoint's key is what MODEL_API_KEY holds); then" in said


def test_who_stops_it_is_told_that_nothing_is_lost(rft, world, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("agent_rft.commands.suite.run_suite", stopped)
    code, said = rft("suite")
    assert code == 130 and "error: stopped; what was run is kept: the same command runs the rest\n" in said


def test_every_model_that_cannot_be_evaluated_is_named_at_once(rft, tmp_path, rows, world):
    words, _ = world
    (tmp_path / "runs/mine/checkpoints/step-000002").mkdir(parents=True)
    (tmp_path / "runs/mine/checkpoints/step-000002/config.json").write_text("{}")
    unreadable = ("http://host:99999/v1#m", "http:///v1#m", "http://[::1/v1#m", "http://a..b/v1#m")
    of = ("mien", "mine", "mine/step-2", "http://host/v1", "base", "base", "http://me:key@host/v1#m", *unreadable)
    code, said = rft(*words, *(word for one in of for word in ("--of", one)))
    assert code == 2
    for told in (
        "--of mien: is no run in",
        "did you mean 'mine'?",
        "--of mine: the run has not come to its end: there is no tuned model (name one of its checkpoints: mine/step-000002)",
        "--of mine/step-2: the run has no such checkpoint in",
        "--of http://host/v1: does not say which model of that server (URL#MODEL",
        "--of base: is named twice",
        "holds a key, which would stand on every card and report (put it into MODEL_API_KEY)",
        *(f"--of {one}: is no address of a server" for one in unreadable),
    ):
        assert told in said
    assert not list((tmp_path / "runs").glob("suite-*")), "nothing was begun"
    for wrong in ("0", "x", "-1"):
        with pytest.raises(SystemExit):
            rft(*words, "-k", wrong)


@pytest.mark.parametrize(
    ("soft", "hard", "asked", "set_to", "possible"),
    [
        (1024, resource.RLIM_INFINITY, 2000, 4256, 2000),  # 256 + 2 x 2000
        (1024, 4096, 2000, 4096, 1920),  # (4096 - 256) / 2
        (65536, 65536, 2000, None, 2000),
        (1024, 1024, 512, None, 384),
    ],
)
def test_as_many_are_in_flight_as_the_system_allows_open_files(monkeypatch, capfd, soft, hard, asked, set_to, possible):
    made = list[tuple[int, int]]()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: made.append(limits))
    assert connections_for(asked) == possible
    assert made == ([] if set_to is None else [(set_to, hard)])
    assert (f"{possible} rollouts are in flight and not {asked}" in capfd.readouterr().out) == (possible < asked)
