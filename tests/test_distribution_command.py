"""The distribution check as people meet it: `rft data check`, before a training, and as a report before a release."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import msgspec
import pytest

from agent_rft.commands.distribution import KEPT, look_before_training, report_figures
from agent_rft.commands.parts import Data
from agent_rft.commands.run_folder import RunFolder
from agent_rft.compose import settings_for
from agent_rft.contracts.errors import FaultsFound, Halted
from agent_rft.contracts.jobcards import Cost, JobCard, Versions
from agent_rft.contracts.messages import Message
from agent_rft.contracts.rollouts import Ending, Limits, Rollout
from agent_rft.datasets.rows_io import read_rows, write_rows
from agent_rft.evaluation.distribution import DistributionCheck
from observability import drift
from observability.ingest import StoreRecorder
from observability.store import open_store

DATA = Path(__file__).resolve().parents[1] / "data" / "research"
TRAIN = str(DATA / "train.jsonl")
KEYS = {"service": "desk", "arm": "live"}


@pytest.fixture(scope="module")
def rows():
    return read_rows(DATA / "train.jsonl"), read_rows(DATA / "val.jsonl")


@pytest.fixture
def easy(rows, tmp_path):
    """Validation rows, of which the hard ones are gone."""
    write_rows(tmp_path / "easy" / "val.jsonl", [row for row in rows[1] if row.difficulty != "hard"])
    return str(tmp_path / "easy" / "val.jsonl")


@pytest.fixture
def store(tmp_path):
    """Forty sessions of two runs each, whose users ask other things."""
    store = open_store(f"sqlite:///{tmp_path}/cards.db")
    with StoreRecorder(store) as recorder:
        for number in range(80):
            recorder.record(production(number))
    yield store
    store.close()


def production(number: int) -> JobCard:
    asked = f"My invoice {number} was charged twice, and nobody answers the telephone. Who pays that back?"
    rollout = Rollout(f"p{number}", (Message("user", asked),), (), Limits(), turns=[], ending=Ending.ANSWERED, answer="We do.")
    return JobCard(
        rollout_id=f"p{number}", kind="production", tenant="default", run_id="desk", step=None, row_id=f"p{number}", sample_index=0,
        started_at=dt.datetime.now(dt.UTC).isoformat(), rollout=rollout, reference_answer=None, grade=None, cost=Cost(),
        metadata=KEYS | {"session": f"s{number // 2}"}, versions=Versions(code="1", checkpoint="w"),
    )  # fmt: skip


def begun(rows, tmp_path, *overrides, hard=True):
    settings = settings_for("research_tiny", [f"store.url=sqlite:///{tmp_path}/cards.db", *overrides])
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir(exist_ok=True)
    val = rows[1] if hard else tuple(row for row in rows[1] if row.difficulty != "hard")
    look_before_training(settings, folder, Data(rows[0], val, "hash"))
    return folder


def test_data_check_ends_well_where_the_split_is_fair(rft):
    code, said = rft("data", "check", "--train", TRAIN, "--val", str(DATA / "val.jsonl"))
    assert code == 0 and "no leak" in said and "train (400) and val (100): alike" in said


def test_data_check_names_what_differs_and_ends_with_1(rft, easy):
    code, said = rft("data", "check", "--train", TRAIN, "--val", easy)
    assert code == 1 and "train (400) and val (78): they differ in slices" in said and "rft data split" in said and "Traceback" not in said


def test_data_check_holds_both_against_what_users_ask(rft, store):
    words = ("data", "check", "--train", TRAIN, "--val", str(DATA / "val.jsonl"), "--store", store.name)
    code, said = rft(*words, "--service", "desk")
    assert code == 1 and "train (400) and production of desk (40): they differ in length and vocabulary" in said
    assert "val (100) and production of desk (40): they differ" in said and "charged" in said
    code, said = rft(*words, "--service", "nobody")
    assert code == 0 and "production of nobody (0): too few to compare" in said


def test_of_more_sessions_than_are_looked_at_some_are_drawn_and_of_each_its_first_question(store):
    """Sessions of two runs each: each second run alone would be a first one. Of s7 the candidate was asked first, in the shadow."""
    with StoreRecorder(store) as recorder:
        card = production(14)
        early = (dt.datetime.fromisoformat(card.started_at) - dt.timedelta(hours=1)).isoformat()
        shadow = {"rollout_id": "shadow", "rollout": msgspec.structs.replace(card.rollout, rollout_id="shadow"), "started_at": early}
        recorder.record(msgspec.structs.replace(card, **shadow, metadata=card.metadata | {"arm": "candidate"}))
    now = dt.datetime.now(dt.UTC)

    def asked(most):
        found = drift.first_of_sessions(store, "default", "desk", now - dt.timedelta(days=1), now, most)
        return [int(one.card.rollout_id.removeprefix("p")) for one in found]

    assert asked(1000) == [*range(0, 80, 2)]
    assert len(asked(10)) == 10 and {*asked(10)} < {*range(0, 80, 2)} and asked(10) == sorted(asked(10)) != [*range(0, 80, 8)]


def test_before_a_training_the_verdict_is_said_and_kept_and_nothing_is_stopped(rows, tmp_path, capsys):
    folder = begun(rows, tmp_path, hard=False)
    said = capsys.readouterr().out
    assert "warning: train and val differ in slices" in " ".join(said.split())
    [kept] = msgspec.json.decode((folder.path / KEPT).read_bytes(), type=list[DistributionCheck])
    assert kept.verdict == "differ" and [part.what for part in kept.differing] == ["slices"]
    begun(rows, tmp_path, hard=False)  # resumed
    assert capsys.readouterr().out == ""


def test_a_fair_split_warns_of_nothing(rows, tmp_path, capsys):
    begun(rows, tmp_path)
    assert "alike" in (said := capsys.readouterr().out) and "warning" not in said


def test_a_recipe_may_have_it_stopped(rows, tmp_path):
    with pytest.raises(Halted, match="train and val differ in slices"):
        begun(rows, tmp_path, "guards.watch.distribution.action=halt", hard=False)
    with pytest.raises(Halted):  # resuming does not go round it
        begun(rows, tmp_path, "guards.watch.distribution.action=halt", hard=False)
    begun(rows, tmp_path, "guards.watch.distribution={at: 2, action: halt}", hard=False)
    with pytest.raises(FaultsFound, match="did you mean 'distribution'"):
        begun(rows, tmp_path, "guards.watch.distributoin.action=halt")


def test_before_a_training_the_service_is_looked_at_that_the_recipe_names(rows, tmp_path, store, capsys):
    begun(rows, tmp_path, "task.service=desk")
    assert "val and production of desk differ in length and vocabulary" in " ".join(capsys.readouterr().out.split())


def test_before_a_release_it_is_a_report(rows, tmp_path, store):
    settings = settings_for("research_tiny", [f"store.url=sqlite:///{tmp_path}/cards.db", "task.service=desk"])
    alike, figures = report_figures(store, "default", "agent-1", settings, Data(*rows, "hash"))
    assert not alike and figures["services"] == ["desk"] and len(figures["says"]) == 3
    assert figures["says"][2] == "val (100) and production of desk (40): they differ in length and vocabulary"
    assert json.loads(json.dumps(figures))["checks"][2]["verdict"] == "differ"
    plain = settings_for("research_tiny", [f"store.url=sqlite:///{tmp_path}/cards.db"])
    assert report_figures(store, "default", "agent-1", plain, Data(*rows, "hash"))[0], "an agent of no release is held against nobody's"
