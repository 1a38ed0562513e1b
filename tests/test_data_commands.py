"""`rft data ...` on files, a real store and a server that answers as OpenAI's does."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest

from agent_rft.cli import main
from agent_rft.commands import datasets as commands
from agent_rft.commands.run_folder import RunFolder
from agent_rft.compose import settings_for
from agent_rft.contracts.errors import FaultsFound, InfraError, UserError
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.jobcards import DEFAULT_STORE, Cost, JobCard, Versions
from agent_rft.contracts.messages import Message
from agent_rft.contracts.rollouts import Ending, Limits, Rollout
from agent_rft.contracts.rows import Row
from agent_rft.datasets.from_cards import Choice
from agent_rft.datasets.rows_io import read_rows, write_rows
from agent_rft.datasets.synthesis import Plan
from agent_rft.datasets.version_files import read_card, read_version
from agent_rft.evaluation.prior import PriorCheck, RowPrior
from observability.accesses import reading
from observability.graders import append_grades
from observability.ingest import StoreRecorder
from observability.store import open_store

TOWNS = ("Bergen", "Porto", "Ghent", "Lucca", "Turku", "Brno", "Cork", "Graz", "Lyon", "Bath")


def row(number: int, prompt: str) -> Row:
    return Row(f"row-{number}", prompt, "1", metadata={"task_type": "qa", "difficulty": "easy", "town": TOWNS[number % 10]})


ROWS = [row(n, f"How many people live in {town}?") for n, town in enumerate(TOWNS)]


@pytest.fixture
def rows_file(tmp_path: Path) -> str:
    write_rows(tmp_path / "in" / "rows.jsonl", ROWS)
    return str(tmp_path / "in" / "rows.jsonl")


def test_split_makes_a_version_whose_card_names_command_and_parent(rows_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["rft", "data", "split", rows_file, "--store", "postgresql://me:secret@host/db"])
    commands.card(rows_file, None, "towns", "made up")
    parent = read_card(tmp_path / "in").hash
    commands.split(rows_file, str(tmp_path / "out"), 0.2, 1, "", "")
    card, rows = read_version(tmp_path / "out")
    assert (len(rows["train"]), len(rows["val"])) == (8, 2)
    assert (card.origin.name, card.origin.parents) == ("out", (parent,))
    assert card.origin.made_by == f"rft data split {rows_file} --store postgresql://me:***@host/db"
    assert f"version {card.hash}: 10 rows" in capsys.readouterr().out


def test_split_by_group_needs_the_key_in_every_row(rows_file, tmp_path):
    commands.split(rows_file, str(tmp_path / "out"), 0.2, 1, "town", "")
    with pytest.raises(UserError, match="10 rows have no 'city' in their metadata"):
        commands.split(rows_file, str(tmp_path / "other"), 0.2, 1, "city", "")


def test_check_names_both_places_of_every_leak(rows_file, tmp_path, capsys):
    val = tmp_path / "val.jsonl"
    write_rows(val, [row(10, "how many people live in PORTO"), row(11, "In Ghent, how many people live?"), row(12, "Who governs Ghent?")])
    with pytest.raises(FaultsFound) as caught:
        commands.check(rows_file, str(val))
    assert [str(fault) for fault in caught.value.faults] == [
        f"{val}:1: 'row-10' asks what training asks at {rows_file}:2 (a leak makes validation worthless: take one of them out)",
        f"{val}:2: 'row-11' has the same words as training's {rows_file}:3 (take one out if they ask the same)",
    ]
    assert caught.value.exit_code == 1
    write_rows(val, [row(12, "Who governs Ghent?")])
    commands.check(rows_file, str(val))
    assert "no leak" in capsys.readouterr().out


def test_check_passes_where_the_order_of_words_tells_another_question_and_counts_those(tmp_path, capsys):
    train, val = tmp_path / "train.jsonl", tmp_path / "val.jsonl"
    write_rows(train, [row(1, "How many g are 5 kg?"), row(2, "How many m are 7 foot?")])
    write_rows(val, [row(3, "Who governs Ghent?"), row(4, "How many kg are 5 g?"), row(5, "How many foot are 7 m?")])
    commands.check(str(train), str(val))
    said = " ".join(capsys.readouterr().out.split())
    assert "2 of 3 validation rows have a training row's words in another order" in said and "no leak" in said


def test_slice_and_export(rows_file, tmp_path):
    commands.slice_rows(rows_file, ["town=Bergen|Porto"], str(tmp_path / "some.jsonl"))
    assert [r.id for r in read_rows(tmp_path / "some.jsonl")] == ["row-0", "row-1"]
    commands.export_openai(str(tmp_path / "some.jsonl"), str(tmp_path / "openai.jsonl"))
    first = json.loads((tmp_path / "openai.jsonl").read_text().splitlines()[0])
    assert first["messages"] == [{"role": "user", "content": "How many people live in Bergen?"}]
    with pytest.raises(UserError, match="no row of"):
        commands.slice_rows(rows_file, ["town=Oslo"], str(tmp_path / "none.jsonl"))


def test_rows_that_are_there_are_not_written_over(rows_file, tmp_path, capsys):
    before = Path(rows_file).read_bytes()
    for words in (["slice", rows_file, "--where", "town=Bergen"], ["export-openai", rows_file]):
        assert main(["data", *words, "--out", rows_file]) == 2
        assert f"there is a {rows_file} already\n  cure: name another file with --out" in capsys.readouterr().err
    assert Path(rows_file).read_bytes() == before


@pytest.mark.parametrize(
    "command", ["split {} --out {}", "slice {} --where town=Bergen --out {}/some.jsonl", "export-openai {} --out {}/some.jsonl"]
)
@pytest.mark.parametrize("out", ["/dev/null/x", "/proc/x"])
def test_a_place_that_cannot_be_written_to_is_named(rows_file, command, out, capsys):
    assert main(["data", *command.format(rows_file, out).split()]) == 2
    assert f"cannot write {out}/" in capsys.readouterr().err


def measured(row_id: str, bucket: str) -> RowPrior:
    return RowPrior(
        row_id=row_id, bucket=bucket, tries=4, successes=2, infra_failures=0, success_rate=0.5, mean_reward=0.5, reward_variance=0.2
    )


def tried(number: int, row_id: str, reward: float | None, **changes: object) -> JobCard:
    """A training rollout of run r."""
    grade = None if reward is None else Grade(GraderRef("numeric", "1", "x"), reward)
    return msgspec.structs.replace(job_card(number, "?", 0.0, "train"), **({"row_id": row_id, "grade": grade} | changes))


def test_refresh_makes_a_new_version_from_a_priors_result(rows_file, tmp_path):
    commands.split(rows_file, str(tmp_path / "one"), 0.2, 1, "", "")
    before, rows = read_version(tmp_path / "one")
    ids = [r.id for r in rows["train"]]
    result = [measured(ids[0], "always"), measured(ids[1], "never"), measured(ids[2], "sometimes")]
    check = PriorCheck(
        verdict="go", why="", cure="", pass_at=1.0, never=1, sometimes=1, always=1, unmeasured=0, share_sometimes=1 / 3,
        mean_reward=0.5, mean_tool_calls=1.0, infra_failures=0, rows=tuple(result),
    )  # fmt: skip
    (tmp_path / "prior.json").write_bytes(msgspec.json.encode(check))
    commands.refresh_by_prior(str(tmp_path / "one"), str(tmp_path / "prior.json"), str(tmp_path / "two"))
    card, fresh = read_version(tmp_path / "two")
    assert [r.id for r in fresh["train"]] == ids[2:]
    assert fresh["val"] == rows["val"]
    assert card.origin.parents == (before.hash,)
    assert card.origin.left_out == {"solved always, retired": 1, "never solved, for review": 1}
    assert [r.id for r in read_rows(tmp_path / "two" / "review.jsonl")] == [ids[1]]
    assert [r.id for r in read_rows(tmp_path / "two" / "retired.jsonl")] == [ids[0]]
    with pytest.raises(UserError, match="cannot read"):
        commands.refresh_by_prior(str(tmp_path / "one"), str(tmp_path / "none.json"), str(tmp_path / "three"))


def job_card(number: int, prompt: str, reward: float, kind: str = "production") -> JobCard:
    moment = f"2026-11-21T04:00:{number:02d}+00:00"
    rollout = Rollout(f"id-{number}", (Message("user", prompt),), (), Limits(), ending=Ending.ANSWERED, answer="1", started_at=moment)
    return JobCard(
        rollout_id=f"id-{number}", kind=kind, tenant="t", run_id="r", step=None, row_id="x", sample_index=0, started_at=moment,
        rollout=rollout, reference_answer="1", metadata={"task_type": "qa", "difficulty": "easy"},
        grade=Grade(GraderRef("numeric", "1", "x"), reward), cost=Cost(), versions=Versions(code="", checkpoint=""),
    )  # fmt: skip


def test_refresh_by_a_run_keeps_what_its_training_solved_sometimes_and_what_it_never_met(rows_file, tmp_path, capsys):
    """Of eight training rows the run met six. a: 0 in its first group, 1 in its second: sometimes. b: 1, 1. c: 0, 0.5 and a try
    that infrastructure spoilt. d: spoilt alone. e: solved always but for an evaluation. f: 0, graded again as 1; 0: sometimes."""
    commands.split(rows_file, str(tmp_path / "one"), 0.2, 1, "", "")
    before, rows = read_version(tmp_path / "one")
    a, b, c, d, e, f, *unmet = [r.id for r in rows["train"]]
    tries = [
        (a, 0.0),
        (a, 0.0),
        (a, 1.0),
        (a, 1.0),
        (b, 1.0),
        (b, 1.0),
        (c, 0.0),
        (c, 0.5),
        (c, None),
        (d, None),
        (e, 1.0),
        (f, 0.0),
        (f, 0.0),
    ]
    url = f"sqlite:///{tmp_path}/cards.db"
    store = open_store(url)
    with StoreRecorder(store) as recorder:
        for number, (row_id, reward) in enumerate(tries):
            recorder.record(tried(number, row_id, reward))
        recorder.record(tried(20, e, 0.0, kind="eval"))
        recorder.record(tried(21, b, 0.0, run_id="another"))
    append_grades(store, [("id-12", Grade(GraderRef("numeric", "2", "y"), 1.0))])
    append_grades(store, [("id-4", Grade(GraderRef("judge", "1", "z"), 0.0))])  # another's opinion
    append_grades(store, [("id-5", Grade(GraderRef("numeric", "2", "y"), None, errors={"other_error": "away"}))])  # and a failure
    store.close()
    to = str(tmp_path / "two")
    assert main(["data", "refresh", str(tmp_path / "one"), "--run", "r", "--store", url, "--out", to]) == 0
    card, fresh = read_version(tmp_path / "two")
    assert [r.id for r in fresh["train"]] == [a, d, f, *unmet] and len(unmet) == 2
    assert fresh["val"] == rows["val"]
    assert [r.id for r in read_rows(tmp_path / "two" / "retired.jsonl")] == [b, e]
    assert [r.id for r in read_rows(tmp_path / "two" / "review.jsonl")] == [c]
    assert card.origin.left_out == {"solved always, retired": 2, "never solved, for review": 1}
    assert card.origin.parents == (before.hash,)
    assert "13 training cards of run r, solved from reward 1 on: solved sometimes, and 3 rows without a score" in card.origin.source
    assert "kept: 2 solved sometimes, 3 without a score there" in capsys.readouterr().out


def test_what_another_tenant_sends_under_the_runs_name_changes_no_data_set(rows_file, tmp_path):
    """Row one was solved once of two; another tenant's cards, one by an id of the run's, say it always was, and row two as well."""
    commands.split(rows_file, str(tmp_path / "one"), 0.2, 1, "", "")
    first, second, *_ = [r.id for r in read_version(tmp_path / "one")[1]["train"]]
    url = f"sqlite:///{tmp_path}/cards.db"
    forged = [tried(0, first, 1.0), tried(5, second, 1.0)]
    with StoreRecorder(open_store(url)) as recorder:
        for card in (tried(0, first, 0.0), tried(1, first, 1.0), *(msgspec.structs.replace(one, tenant="mallory") for one in forged)):
            recorder.record(card)
    to = str(tmp_path / "two")
    assert main(["data", "refresh", str(tmp_path / "one"), "--run", "r", "--store", url, "--out", to, "--tenant", forged[0].tenant]) == 0
    card, fresh = read_version(tmp_path / "two")
    assert [r.id for r in fresh["train"]][:2] == [first, second] and "2 training cards of run r" in card.origin.source


def test_refresh_counts_a_try_as_solved_from_where_the_run_did(rows_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands.split(rows_file, str(tmp_path / "one"), 0.2, 1, "", "")
    first = read_version(tmp_path / "one")[1]["train"][0].id
    with StoreRecorder(open_store(DEFAULT_STORE)) as recorder:
        for number, reward in enumerate((0.0, 0.5)):
            recorder.record(tried(number, first, reward))
    RunFolder.new(settings_for("research_tiny", ["run.id=r", "grader.pass_at=0.5"]))
    assert main(["data", "refresh", "one", "--run", "r", "--out", "two"]) == 0
    assert not read_rows(tmp_path / "two" / "review.jsonl")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "one of the arguments --prior --run is required"),
        (["--run", "r", "--prior", "prior.json"], "argument --prior: not allowed with argument --run"),
    ],
)
def test_refresh_needs_one_measurement(given, says, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["data", "refresh", "one", "--out", "two", *given])
    assert ended.value.code == 2 and says in capsys.readouterr().err


def test_refresh_by_a_run_without_training_cards_or_on_other_rows_is_refused(rows_file, tmp_path, capsys):
    commands.split(rows_file, str(tmp_path / "one"), 0.2, 1, "", "")
    url = f"sqlite:///{tmp_path}/cards.db"
    with StoreRecorder(open_store(url)) as recorder:
        recorder.record(tried(1, "row-0", 1.0, kind="eval"))
        recorder.record(tried(2, "elsewhere", 1.0, run_id="other"))
    refresh = ["data", "refresh", str(tmp_path / "one"), "--store", url, "--out", str(tmp_path / "two")]
    assert main([*refresh, "--run", "r"]) == 2
    assert f"no training card of run r is in {url}" in capsys.readouterr().err
    assert main([*refresh, "--run", "other"]) == 1
    assert "elsewhere: was measured but is no training row" in capsys.readouterr().err
    assert not (tmp_path / "two").exists()


def test_from_cards_reads_the_store_and_keeps_the_held_out_apart(rows_file, tmp_path):
    url = f"sqlite:///{tmp_path}/cards.db"
    cards = [
        job_card(1, "Who governs Ghent? Write to jo@ghent.org", 0.0),
        job_card(2, "how many people live in bergen", 0.0),
        job_card(3, "Who governs Porto?", 1.0),
        job_card(4, "Who governs Lyon?", 0.0, "eval"),
    ]
    with StoreRecorder(open_store(url)) as recorder:
        for one in cards:
            recorder.record(one)
        recorder.flush()
    mallorys = msgspec.structs.replace(job_card(5, "Who governs Nantes?", 0.0), tenant="mallory")
    with StoreRecorder(open_store(url)) as recorder:
        recorder.record(mallorys)
    mine = {"tenant": cards[0].tenant}
    commands.from_cards(url, str(tmp_path / "out"), rows_file, Choice(kinds=("production",), most_reward=0.5), None, 100, **mine)
    [line] = reading(open_store(url), cards[0].tenant)
    assert (line.action, line.subject, line.cards) == ("export", "rows from cards", 3), "what left the store is noted"
    card, rows = read_version(tmp_path / "out")
    assert [r.prompt for r in rows["train"]] == ["Who governs Ghent? Write to [EMAIL]"]
    assert rows["val"] == ROWS
    assert card.origin.left_out == {"of another reward": 1, "asked by validation": 1}  # the eval card is not read at all
    assert (card.leaks.same, card.leaks.near) == (0, 0)
    with pytest.raises(UserError, match="no card became a row: 4 without the tools"):
        commands.from_cards(url, str(tmp_path / "none"), None, Choice(tools=("read",)), None, 100, **mine)


class Model(BaseHTTPRequestHandler):
    """Proposes the figure that the document holds; for the second document it solves wrongly."""

    asked: list[dict] = []  # noqa: RUF012

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append({**body, "path": self.path, "key": self.headers.get("Authorization")})
        said = body["messages"][-1]["content"]
        name, figure = ("b", "20") if "b.txt" in said else ("a", "10")
        proposal = json.dumps({"question": f"What is the figure of {name}1?", "answer": figure})
        content = proposal if "The question:" not in said else "10"
        reply = json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()
        self.send_response(200 if body["model"] == "big" else 404)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def model_url() -> Iterator[str]:
    Model.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Model)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()


def test_synthesise_keeps_what_the_model_solves_again(model_url, tmp_path, monkeypatch):
    monkeypatch.setenv("MODEL_KEY", "k-1")
    corpus = tmp_path / "docs"
    corpus.mkdir()
    for name in ("a.txt", "b.txt"):
        (corpus / name).write_text("a figure")
    arguments = (str(corpus), str(tmp_path / "out"), None, model_url)
    commands.synthesise(*arguments, "big", "MODEL_KEY", "numeric", 10, Plan(solves=2), 2)
    card, rows = read_version(tmp_path / "out")
    assert [(r.prompt, r.reference_answer, r.expected.evidence_path) for r in rows["train"]] == [
        ("What is the figure of a1?", "10", "docs/a.txt")
    ]
    assert card.origin.left_out == {"a solve disagrees": 1}
    assert {(asked["path"], asked["key"]) for asked in Model.asked} == {("/v1/chat/completions", "Bearer k-1")}
    assert len(Model.asked) == (1 + 2) + (1 + 1)
    with pytest.raises(InfraError, match="404"):
        commands.synthesise(*arguments, "unknown", "MODEL_KEY", "numeric", 10, Plan(), 2)


def test_finqa_tells_how_to_train_on_it(tmp_path, capsys):
    sample = Path(__file__).parents[1] / "data" / "finqa_sample"
    commands.finqa(str(sample / "train.json"), str(sample / "dev.json"), str(tmp_path / "finqa"), keep_yes_no=True)
    card, rows = read_version(tmp_path / "finqa")
    assert (len(rows["train"]), len(rows["val"]), card.origin.left_out) == (6, 3, {})
    assert f"tools.corpus={tmp_path}/finqa/reports" in capsys.readouterr().out.replace("\n", "")
