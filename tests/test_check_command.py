"""`rft agent check`: an agent is run over rows and traps, and what it did stands as the reports that the offline gate asks for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from agent_rft.contracts.events import InfraFailed
from agent_rft.datasets.filings import TOOLS
from agent_rft.rollouts.in_process import ScriptedSampler
from observability.registry import found, newest, report, reports_of
from observability.store import Store, open_store
from serving.app import create_app
from serving.model_server import model_app
from serving.tools.corpus import CorpusTools

ROOT = Path(__file__).resolve().parents[1]
BEARER = "bearer-of-this-test"
SAME_TEXT = {
    "type": "string_check",
    "name": "same_text",
    "input": "{{sample.output_text}}",
    "reference": "{{item.reference_answer}}",
    "operation": "ilike",
}
SHORT = ("--limit", "max_turn_tokens=64", "--limit", "max_trajectory_tokens=1536")
PLENTY = ("--limit", "max_trajectory_tokens=100000")
SEARCH = '<tool_call>{"name": "search", "arguments": {"query": "figures"}}</tool_call>'


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(f"sqlite:///{tmp_path}/cards.db")
    yield opened
    opened.close()


@pytest.fixture
def files(tmp_path):
    """Four held-out rows, and a grader that no training saw."""
    lines = (ROOT / "data/research/val.jsonl").read_text(encoding="utf-8").splitlines()[:4]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "same.json").write_text(json.dumps(SAME_TEXT))
    return [json.loads(line) for line in lines]


def check(rft, tmp_path, *words, options=(), name="mine"):
    given = [f"run.folder={tmp_path}/runs", f"release.holdout_graders=[{tmp_path}/same.json]", "evaluation.samples_per_row=1", *words]
    return rft("agent", "check", name, *given, "--rows", f"{tmp_path}/rows.jsonl", *options)


def reported(store):
    return newest(reports_of(store, "default", found(store, "default", "mine").id))


@pytest.fixture
def behind_upstream(rft, tmp_path, files, in_thread, monkeypatch):
    """Registers an agent, and checks it with a scripted model behind OpenAI's API, and toy tools that the test's process serves."""
    monkeypatch.setenv("TOOL_BEARER", BEARER)

    def run(script, *options, registered=(), name="mine"):
        tools = CorpusTools({"filings/toy.html": "Heron Castings Q1 2025\nfree cash flow: $224M"}, TOOLS)
        code, said = rft("agent", "register", name, "--checkpoint", "w1", *PLENTY, *registered)
        assert code == 0, said
        with (
            in_thread(create_app(tools, {}, BEARER)) as served,
            in_thread(model_app(lambda _: ScriptedSampler(script), "mine-at-vllm")) as model,
        ):
            upstream = {"name": "m", "url": f"{model}/v1", "model": "mine-at-vllm", "checkpoint": "w1"}
            return check(rft, tmp_path, f"tools.url={served}", f"gateway.upstreams=[{json.dumps(upstream)}]", options=options, name=name)

    return run


def asked_for(files, ask):
    return next((row["reference_answer"] for row in files if row["prompt"] == ask.conversation[-1].content), None)


def test_what_a_tiny_model_does_becomes_the_reports(rft, store, tmp_path, files, in_thread, monkeypatch):
    """The recipe's own model by the local engine, over the recipe's own filings."""
    from agent_rft.training.local.backend import LocalBackend, Model

    checkpoint = LocalBackend().name_of(Model(path="models/research-tiny", device="cpu", dtype="float32"), None)
    rft("agent", "register", "mine", "--checkpoint", checkpoint, "--temperature", "0.3", *SHORT)
    monkeypatch.setenv("TOOL_BEARER", BEARER)
    tools = CorpusTools.from_folder(ROOT / "data/research/filings", TOOLS)
    with in_thread(create_app(tools, {}, BEARER)) as served:
        code, said = check(rft, tmp_path, f"tools.url={served}")
    assert code == 1 and "the safety report did not pass: 0% of the tries of refusal ended with an answer, 50% have to" in said, said
    made = reported(store)
    passed = {"distribution": True, "evaluation": True, "holdout": True, "safety": False}
    assert {kind: report.passed for kind, report in made.items()} == passed, "it says nothing in 64 tokens, and so shows nothing"
    assert made["distribution"].figures["says"] == ["train (400) and val (4): too few to compare, 20 of each are needed"]
    evaluation, holdout, safety = (made[kind].figures for kind in ("evaluation", "holdout", "safety"))
    assert sorted(evaluation["rows"]) == [row["id"] for row in files]
    assert evaluation["reward"] == pytest.approx(sum(evaluation["rows"].values()) / 4) and evaluation["n"] == 4
    assert evaluation["reward"] > 0, "the shipped model answers some of these at a low temperature"
    assert holdout["by_grader"].keys() == {holdout["grader"]} and holdout["grader"].startswith("same_text@1#")
    assert evaluation["grader"].startswith("numeric@1#") and safety["grader"].startswith("safety@2#")
    assert evaluation["tool_set"] and evaluation["code"] and evaluation["dataset"] != safety["dataset"] == safety["suite"]
    assert (safety["cases"], safety["tries"], safety["failed"]) == (24, 48, [])
    assert "safety: FAILED, refusal 5/5, injected 7/7" in said and safety["unanswered"] == 48
    code, listed = rft("card", "list", f"run:{evaluation['run']} kind:eval", "--limit", "100")
    assert code == 0 and len(re.findall(r"eval", listed)) >= 28, "a card of each run: 4 rows and 24 cases"


def test_one_that_knows_the_answers_and_repeats_what_it_reads_is_good_and_unsafe(store, behind_upstream, files):
    """Two right of four, by the trained-against grader and the other alike; and every planted word comes out of it."""
    right = {row["reference_answer"] for row in files[:2]}

    def script(ask):
        if ask.conversation[-1].role == "tool":
            return ask.conversation[-1].content
        answer = asked_for(files, ask)
        return SEARCH if answer is None else answer if answer in right else "no figure"

    code, said = behind_upstream(script)
    assert code == 1 and "the safety report did not pass: injected-say-word" in said and "Traceback" not in said
    made = reported(store)
    assert made["evaluation"].figures["reward"] == 0.5 and made["holdout"].figures["reward"] == 0.5
    assert made["evaluation"].figures["rows"] == {"val-0001": 1.0, "val-0002": 1.0, "val-0003": 0.0, "val-0004": 0.0}
    assert not made["safety"].passed
    assert "secret-in-document" in made["safety"].figures["failed"] and "refusal-malware" not in made["safety"].figures["failed"]


def test_rollouts_that_infrastructure_spoilt_make_no_report(store, behind_upstream, files, monkeypatch):
    """The model is gone for one row of four: no evaluation, no holdout; the safety suite, which was not touched, is reported."""
    monkeypatch.setattr("serving.gateway.agents.LIVE_RETRIES", 0)

    def script(ask):
        return InfraFailed("model", "gone") if asked_for(files, ask) == files[3]["reference_answer"] else "no figure"

    code, said = behind_upstream(script)
    assert code == 4 and "1 of 4 rollouts failed (model 1), 1.0% are borne (guards.max_infra_rate)" in said, said
    assert {*reported(store)} == {"distribution", "safety"}


def test_one_report_alone(store, behind_upstream):
    code, said = behind_upstream(lambda ask: "no", "--only", "safety")
    assert code == 0 and [*reported(store)] == ["safety"], said


@pytest.mark.parametrize(
    ("asked", "tries"), [("seed=42", 48), ("release.policy={safety_tries: 3}", 72), ("evaluation.samples_per_row=4", 96)]
)
def test_the_suite_is_tried_as_often_as_releases_ask_for_or_the_rows_are(store, behind_upstream, asked, tries):
    """24 cases; of the rows one try each, where nothing else is said."""
    code, said = behind_upstream(lambda ask: "no", "--only", "safety", asked)
    assert code == 0 and reported(store)["safety"].figures["tries"] == tries, said


@pytest.mark.parametrize(("patience", "code"), [(60.0, 0), (-1.0, 4)])
def test_a_store_that_is_away_when_a_report_is_made_is_waited_for(store, behind_upstream, monkeypatch, patience, code):
    asked = []

    def away_twice(*given, **more):
        asked.append(given)
        if len(asked) <= 2:
            raise OperationalError("insert", {}, Exception("database is locked"))
        return report(*given, **more)

    monkeypatch.setattr("agent_rft.commands.check.registry.report", away_twice)
    monkeypatch.setattr("agent_rft.commands.check.AGAIN_SECONDS", 0.0)
    monkeypatch.setattr("agent_rft.commands.check.PATIENCE_SECONDS", patience)
    ended, said = behind_upstream(lambda ask: "no", "--only", "safety")
    assert ended == code and said.count("the store does not answer") == (code == 0), said
    assert [*reported(store)] == (["safety"] if code == 0 else [])


def test_a_check_that_is_stopped_because_it_goes_badly_counts_in_the_next(store, behind_upstream, monkeypatch):
    """Stopped when all its tries are over and before they are reported. Another agent, warmer, has nothing to do with it."""

    def stopped(*_, **__):
        raise KeyboardInterrupt

    def repeats(ask):
        return ask.conversation[-1].content if ask.conversation[-1].role == "tool" else SEARCH

    with monkeypatch.context() as patched:
        patched.setattr("agent_rft.commands.check.registry.report", stopped)
        assert behind_upstream(repeats, "--only", "safety")[0] == 130
    assert reported(store) == {}
    code, said = behind_upstream(lambda ask: "no", "--only", "safety")
    safety = reported(store)["safety"]
    assert code == 1 and not safety.passed and "failed in a check of before that made no report" in said
    assert "secret-in-document" in safety.figures["before"] and safety.figures["before"] == safety.figures["failed"]
    assert safety.figures["violations"]["injected-say-word"], "what it broke is told as well"
    code, said = behind_upstream(lambda ask: "no", "--only", "safety", registered=("--temperature", "1.5"), name="warmer")
    assert code == 0, said


def test_an_agent_of_other_tools_is_not_judged_by_these(store, behind_upstream):
    code, said = behind_upstream(lambda ask: "no", registered=("--tool-set", "t0"))
    assert code == 2 and "works with the tools t0, and these are" in said
    assert reported(store) == {}


def test_mistakes_say_what_would_be_right(rft, store, tmp_path, files):
    assert "no agent 'mine' is registered" in check(rft, tmp_path)[1]
    rft("agent", "register", "mine", "--checkpoint", "w-nowhere")
    assert "cannot read nowhere.jsonl" in check(rft, tmp_path, "release.safety_suite=nowhere.jsonl")[1]
    assert "there is no holdout grader" in check(rft, tmp_path, "release.holdout_graders=[]", options=("--only", "holdout"))[1]
    assert "names numeric, which the agent is graded by anyway" in check(rft, tmp_path, "release.holdout_graders=[numeric]")[1]
    assert not (tmp_path / "runs").exists() and reported(store) == {}
