"""The running example's dataset: which filings there are, which questions are asked, which are held out."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import msgspec

from agent_rft.contracts.rows import Row
from agent_rft.datasets.filings import Filing, as_row, company_names, make_filings, make_questions
from agent_rft.datasets.split import split_rows

WORLD_SEED = 20251
COMPANIES = 240
COUNTS = {"easy": 150, "medium": 240, "hard": 110}
RATIO_SHARE = 0.15
"""Of the hard questions; the others compare two quarters."""
VAL_SHARE = 0.2


def make_world(seed: int = WORLD_SEED) -> list[Filing]:
    """The filings. The order of the draws is fixed: the base model's training holds these very companies out."""
    rng = random.Random(seed)
    companies = company_names(COMPANIES, rng)
    return make_filings(companies, rng)


def make_rows(filings: Sequence[Filing], seed: int = WORLD_SEED) -> tuple[list[Row], list[Row]]:
    """(train, val). Validation asks about companies that training never asks about, and both mix the difficulties."""
    rng = random.Random(f"questions/{seed}")
    questions = make_questions(filings, COUNTS, RATIO_SHARE, rng)
    rng.shuffle(questions)
    rows = [as_row(question, "") for question in questions]
    train, val = split_rows(rows, VAL_SHARE, seed, group_of=company_of)
    return _numbered(train, "train"), _numbered(val, "val")


def company_of(row: Row) -> str:
    """The part of the evidence's path that all filings of a company share."""
    evidence = row.expected.evidence_path or ""
    return re.split(r"-10[kq]-", evidence if isinstance(evidence, str) else evidence[0])[0]


def _numbered(rows: Sequence[Row], split: str) -> list[Row]:
    return [msgspec.structs.replace(row, id=f"{split}-{number:04d}") for number, row in enumerate(rows, start=1)]
