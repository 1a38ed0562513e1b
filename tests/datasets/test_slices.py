"""Rows chosen by conditions on their metadata and their keys."""

from __future__ import annotations

import pytest

from agent_rft.contracts.errors import FaultsFound
from agent_rft.contracts.rows import Row
from agent_rft.datasets.slices import select

ROWS = [
    Row("a", "p", "1", metadata={"difficulty": "easy", "pages": 1, "checked": True}),
    Row("b", "p", "2", metadata={"difficulty": "hard", "pages": 3}, extra={"author": "kim"}),
    Row("c", "p", "3", metadata={"difficulty": "medium", "pages": 3.5}),
    Row("d", "p", "4"),
]


@pytest.mark.parametrize(
    ("conditions", "chosen"),
    [
        ([], "abcd"),
        (["difficulty=hard"], "b"),
        (["difficulty = hard|easy"], "ab"),
        (["difficulty!=hard"], "acd"),
        (["difficulty!=hard|easy", "pages>1"], "c"),
        (["pages>=3"], "bc"),
        (["pages<3"], "a"),
        (["pages<=3"], "ab"),
        (["checked=true"], "a"),
        (["author=kim"], "b"),
        (["reference_answer=4"], "d"),
    ],
)
def test_every_condition_must_hold(conditions, chosen):
    assert "".join(row.id for row in select(ROWS, conditions)) == chosen


def test_every_condition_that_cannot_be_understood_is_told_at_once():
    with pytest.raises(FaultsFound) as caught:
        select(ROWS, ["difficult=hard", "hard", "pages>many", "pages=3"])
    assert [str(fault) for fault in caught.value.faults] == [
        "difficult=hard: no row has a 'difficult' (did you mean 'difficulty'?)",
        "hard: is no condition (KEY=VALUE, KEY!=VALUE, KEY=ONE|OTHER, KEY>=NUMBER, KEY<=NUMBER)",
        "pages>many: 'many' is not a number (KEY=VALUE, KEY!=VALUE, KEY=ONE|OTHER, KEY>=NUMBER, KEY<=NUMBER)",
    ]
