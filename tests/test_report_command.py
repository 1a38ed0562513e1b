"""`rft report`: from a run's folder, finished or not, one page; of several runs one more; and all of it in the store."""

import json
import os
import runpy
import shutil
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from agent_rft.cli import main
from agent_rft.commands.report import told_of
from agent_rft.commands.run_folder import RunFolder
from agent_rft.compose import save, settings_for
from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.jobcards import Cost, JobCard, Versions
from agent_rft.contracts.training import StepMetrics
from agent_rft.evaluation.report.contents import RunReport
from agent_rft.evaluation.report.head import headline
from agent_rft.evaluation.report.page import render_report
from agent_rft.training.journal import MetricsFile
from observability.graders import append_grades
from observability.ingest import StoreRecorder
from observability.run_reports import newest, runs
from observability.store import open_store

made = runpy.run_path(str(Path(__file__).parent / "evaluation" / "sample_report.py"))


@pytest.fixture
def run(tmp_path):
    """A run's folder as training leaves it, made from a report by hand."""

    def build(name: str, tuned: float = 1.0, **summary) -> Path:
        folder = tmp_path / "runs" / name
        (folder / "evaluation").mkdir(parents=True)
        report = made["make_report"](name, tuned)
        save(settings_for("research_tiny", [f"store.url=sqlite:///{tmp_path}/cards.db"]), folder / "settings.yaml")
        (folder / "metrics.jsonl").write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in report.metrics))
        (folder / "prior.json").write_bytes(msgspec.json.encode(report.prior))
        (folder / "distribution.json").write_bytes(msgspec.json.encode(report.distribution))
        (folder / "versions.json").write_bytes(msgspec.json.encode(report.versions))
        (folder / "evaluation" / "base-1.msgpack").write_bytes(msgspec.msgpack.encode(report.base))
        if summary:
            kept = {"checkpoint": f"runs/{name}/checkpoints/step-000040", "halted": "", "next_step": "Next: read it", "seconds": 180.0}
            kept |= {"finished_at": "2026-11-22T05:41:00+00:00", "versions": msgspec.to_builtins(report.versions)} | summary
            (folder / "summary.json").write_text(json.dumps(kept))
            (folder / "evaluation" / "tuned-step-000040-1.msgpack").write_bytes(msgspec.msgpack.encode(report.tuned))
        return folder

    return build


def test_more_runs_than_there_are_colours_for_are_said_to_be_left_out(run, tmp_path, capsys):
    for name in "abcdefg":
        run(name, steps=40)
    assert reported(tmp_path, *"abcdefg") == 0
    assert "Left out: g. The first 6 are beside each other" in capsys.readouterr().out.replace("\n", " ")


def test_pages_of_runs_whose_names_begin_alike_are_two_pages_however_long_the_names(run, tmp_path):
    """A name ends at 255 bytes, and an umlaut takes two: 120 of them and a plus are 241."""
    alike = "ü" * 120
    for name in (alike, "one", "two"):
        run(name, steps=40)
    for other in ("one", "two"):
        assert reported(tmp_path, alike, other) == 0
    pages = sorted(page.name for page in (tmp_path / "runs" / "reports").iterdir())
    assert len(pages) == 2 and all(len(name.encode()) <= 255 and name.startswith("ü" * 100) for name in pages)


def test_pages_of_runs_that_are_called_alike_in_other_folders_are_two_pages(run, tmp_path):
    folder = run("one", steps=40)
    for place in ("here", "there"):
        shutil.copytree(folder, tmp_path / place / "two")
        assert reported(tmp_path, "one", str(tmp_path / place / "two")) == 0
    pages = sorted(page.name for page in (tmp_path / "runs" / "reports").iterdir())
    assert len(pages) == 2 and all(name.startswith("one+") for name in pages)


def reported(tmp_path, *names) -> int:
    return main(["report", *names, "--runs", str(tmp_path / "runs")])


def test_a_finished_run_is_told_from_its_folder_and_kept_in_the_store(run, tmp_path, capsys):
    folder = run("one", steps=40)
    assert reported(tmp_path, "one") == 0
    # 20 rows earn 0.5 and then 0.75 a try, 10 rows 0.25 before and after: 12.5 / 30 and 17.5 / 30
    assert "one: Better: reward 0.42 → 0.58" in capsys.readouterr().out.replace("\n", " ")
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "Next: read it" in html and "production of research (100) differ" in html and "Guards: 2 spoke" in html
    store = open_store(f"sqlite:///{tmp_path}/cards.db")
    kept = msgspec.convert(newest(store, "default", "one"), RunReport, str_keys=True)
    assert kept.comparison.compared == 30 and kept.base == () and runs(store, "default")[0].headline.startswith("Better")
    store.close()


def test_a_run_that_goes_on_is_told_as_far_as_it_has_come(run):
    folder = run("going")
    told = told_of(RunFolder(folder))
    assert told.comparison is None and len(told.metrics) == 40 and list(told.uses) == ["base"]
    assert told.next_step == f"It goes on, or was stopped: `make resume RUN={folder}`"


def test_a_prior_check_alone_is_not_told_as_a_training_that_was_stopped(run):
    folder = run("checked")
    (folder / "metrics.jsonl").unlink()
    (folder / "evaluation" / "base-1.msgpack").unlink()
    told = told_of(RunFolder(folder))
    assert told.next_step == f"It has not trained a step yet: `make resume RUN={folder}`"
    assert headline(told) == f"Prior check: {told.prior.verdict}" and " minutes" not in render_report(told)


def test_a_run_that_was_halted_and_goes_on_is_not_told_as_halted(run):
    """Its last line is of step 39."""
    assert headline(told_of(RunFolder(run("halted", steps=39, halted="gamed")))) == "Stopped at step 39: gamed"
    folder = run("resumed", steps=12, halted="gamed")
    told = told_of(RunFolder(folder))
    assert (told.halted, told.next_step) == ("", f"It goes on, or was stopped: `make resume RUN={folder}`")


def test_that_a_run_was_ended_and_why_is_told_after_it_went_on(run):
    """The sample's last line is one at which a guard stopped it: gone on from step 39, that line is written anew."""
    folder = run("again", steps=40)
    before = render_report(told_of(RunFolder(folder)))
    journal = MetricsFile(folder / "metrics.jsonl")
    journal.rewind(39)
    journal.append(StepMetrics(step=39, val_reward=0.8))
    told = told_of(RunFolder(folder))
    after = render_report(told)
    said = "Stopped at step 39 by holdout divergence: holdout_divergence at step 39. It went on."
    assert said not in before and said in after
    assert len(told.metrics) == 40 and "stopped it" in after and "20 to 39, 3 times" in after


def test_base_and_tuned_of_the_newest_round_that_both_have_are_compared(run):
    """Round 2 of the tuned model alone draws other luck than the base of round 1: it waits for its own base."""
    folder = run("rounds", steps=40)
    worse = made["make_report"]("rounds", 0.0)
    (folder / "evaluation" / "tuned-step-000040-2.msgpack").write_bytes(msgspec.msgpack.encode(worse.tuned))
    told = told_of(RunFolder(folder))
    assert told.comparison.verdict == "better" and "It was evaluated" not in render_report(told)
    (folder / "evaluation" / "base-2.msgpack").write_bytes(msgspec.msgpack.encode(worse.base))
    told = told_of(RunFolder(folder))
    assert told.comparison.verdict == "worse" and "It was evaluated 2 times, and the newest is told." in render_report(told)


def test_telling_a_run_again_does_not_make_it_younger(run, tmp_path):
    """A run without a summary ended when something in its folder last changed; the report that is made of it is no such thing."""
    folder = run("killed")
    for file in (folder, *folder.rglob("*")):
        os.utime(file, (1_700_000_000, 1_700_000_000))
    assert reported(tmp_path, "killed") == 0
    assert told_of(RunFolder(folder)).finished_at == "2023-11-14T22:13:20+00:00"


def test_a_mended_grader_that_scored_the_tries_since_has_its_word_beside_the_runs_own_verdict(run, tmp_path, capsys):
    folder = run("one", steps=40)
    base, tuned = (
        msgspec.msgpack.decode((folder / "evaluation" / file).read_bytes(), type=list[GradedRollout])
        for file in ("base-1.msgpack", "tuned-step-000040-1.msgpack")
    )
    tuned = [
        msgspec.structs.replace(one, rollout=msgspec.structs.replace(one.rollout, rollout_id=f"tuned/{one.rollout.rollout_id}"))
        for one in tuned
    ]
    (folder / "evaluation" / "tuned-step-000040-1.msgpack").write_bytes(msgspec.msgpack.encode(tuned))
    with StoreRecorder(open_store(f"sqlite:///{tmp_path}/cards.db")) as recorder:
        for one in (*base, *tuned):
            recorder.record(card_of(one))
    assert reported(tmp_path, "one") == 0
    page = folder / "report.html"
    assert "has graded" not in page.read_text(encoding="utf-8")
    mended = GraderRef("numeric", "2", "def")
    worse = [(one.rollout.rollout_id, Grade(mended, float(side is base))) for side in (base, tuned) for one in side]
    with closing(open_store(f"sqlite:///{tmp_path}/cards.db")) as store:
        append_grades(store, worse)
    capsys.readouterr()
    assert reported(tmp_path, "one") == 0
    said = " ".join(capsys.readouterr().out.split())
    told = "numeric@2 has graded these tries since, and says: worse; mean Δreward -1.000"
    assert "one: Better: reward 0.42 → 0.58" in said and told in said and "improved 0, regressed 30 of 30" in said
    assert told in page.read_text(encoding="utf-8")


def card_of(one: GradedRollout) -> JobCard:
    return JobCard(
        rollout_id=one.rollout.rollout_id, kind="eval", tenant="default", run_id="one", step=None, row_id=one.row.id, grade=one.grade,
        sample_index=one.sample_index, started_at="2026-11-22T05:00:00+00:00", reference_answer="1", metadata={}, cost=Cost(),
        rollout=one.rollout, versions=Versions(code="", checkpoint=""),
    )  # fmt: skip


def test_several_runs_are_set_beside_each_other(run, tmp_path, capsys):
    run("one", 0.5, steps=40)
    run("two", 1.0, steps=40)
    assert reported(tmp_path, "one", "two") == 0
    (page,) = (tmp_path / "runs" / "reports").glob("*.html")
    assert page.name == "one+two.html" and "Beside one, on the same rows: two +0.167, better" in page.read_text(encoding="utf-8")


def test_all_runs_that_are_not_there_are_named_at_once(run, tmp_path, capsys):
    run("one", steps=40)
    assert reported(tmp_path, "onw", "one", "tow") == 2
    said = capsys.readouterr().err
    assert "no run onw, tow" in said and "there are one" in said
    assert reported(tmp_path, str(tmp_path / "elsewhere" / "one")) == 2
    assert f"no run {tmp_path}/elsewhere/one in" in capsys.readouterr().err


def test_a_run_that_is_named_twice_is_told_once(run, tmp_path):
    folder = run("one", steps=40)
    assert reported(tmp_path, "one", str(folder)) == 0
    assert not (tmp_path / "runs" / "reports").exists()


def test_what_cannot_be_read_is_a_users_error(run, tmp_path, capsys):
    folder = run("broken", steps=40)
    (folder / "evaluation" / "base-1.msgpack").write_bytes(b"cut off")
    assert reported(tmp_path, "broken") == 2
    assert "base-1.msgpack cannot be read" in capsys.readouterr().err
