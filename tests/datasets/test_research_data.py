"""The running example's data: what is shipped is what the seed makes, and it keeps what it promises."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from agent_rft.datasets.research import COUNTS, WORLD_SEED, company_of, make_rows, make_world
from agent_rft.datasets.rows_io import read_rows, validate_files, write_research
from agent_rft.graders.numeric import NumericGrader

SHIPPED = Path(__file__).parents[2] / "data" / "research"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("research")
    write_research(folder)
    return folder


def test_the_shipped_files_are_what_the_seed_makes(made):
    for name in ("train.jsonl", "val.jsonl"):
        assert (SHIPPED / name).read_bytes() == (made / name).read_bytes()


def test_another_seed_makes_another_world():
    assert make_world(1) != make_world(WORLD_SEED) == make_world(WORLD_SEED)
    assert make_rows(make_world(), 1) != make_rows(make_world(), 2)


def test_the_shipped_dataset_has_no_fault_and_no_warning():
    report = validate_files({"train": SHIPPED / "train.jsonl", "val": SHIPPED / "val.jsonl"}, ("search", "list", "read"), NumericGrader())
    assert (report.faults, report.warnings) == ((), ())
    assert report.sizes == {"train": 400, "val": 100}


def test_difficulties_are_split_four_to_one_and_mixed_in_both_files():
    train, val = (read_rows(SHIPPED / name) for name in ("train.jsonl", "val.jsonl"))
    assert Counter(row.difficulty for row in val) == {kind: count // 5 for kind, count in COUNTS.items()}  # 30, 48, 22
    assert Counter(row.difficulty for row in train) == {kind: count * 4 // 5 for kind, count in COUNTS.items()}
    assert set(Counter(row.difficulty for row in val[:50])) == set(COUNTS)  # a prior check looks at the first fifty


def test_validation_asks_about_companies_that_training_never_asks_about():
    train, val = (read_rows(SHIPPED / name) for name in ("train.jsonl", "val.jsonl"))
    assert not {company_of(row) for row in train} & {company_of(row) for row in val}


def test_every_answer_stands_in_its_evidence_or_follows_from_it(made):
    for row in read_rows(made / "train.jsonl") + read_rows(made / "val.jsonl"):
        paths = row.expected.evidence_path
        text = (made / (paths if isinstance(paths, str) else paths[0])).read_text()
        figure = dict(re.findall(r"<td>(.+?)</td><td>(.+?)</td>", text))
        if row.metadata["shape"] == "ratio":
            part = float(figure[row.metadata["metric"]].strip("$M"))
            assert row.reference_answer == f"{100 * part / float(figure['revenue'].strip('$M')):.1f}%"
        else:
            assert row.reference_answer == figure[row.metadata["metric"]]


def test_making_again_replaces_the_corpus_and_clears_what_a_kill_left(made):
    (made / "filings" / "stray.html").write_text("from an older world")
    (made / ".making-killed").mkdir()
    write_research(made)
    assert sorted(p.name for p in made.iterdir()) == ["filings", "train.jsonl", "val.jsonl"]
    assert len(list((made / "filings").iterdir())) == 240 * 5
    assert not (made / "filings" / "stray.html").exists()


def test_a_failure_half_way_leaves_the_corpus_as_it_was(made, monkeypatch):
    before = sorted(p.name for p in (made / "filings").iterdir())
    monkeypatch.setattr("agent_rft.datasets.filings.Filing.html", lambda filing: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_research(made)
    assert sorted(p.name for p in (made / "filings").iterdir()) == before
    assert sorted(p.name for p in made.iterdir()) == ["filings", "train.jsonl", "val.jsonl"]
