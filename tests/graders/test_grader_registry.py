"""A grader by its name; a mistake in the name or the options is told with the nearest right one."""

from __future__ import annotations

import pytest

from agent_rft.contracts.errors import UserError
from agent_rft.graders.registry import load_grader


def test_numeric_with_and_without_its_option():
    assert load_grader("numeric").ref.name == "numeric"
    assert load_grader("numeric", use_row_tolerance=True).ref.hash != load_grader("numeric").ref.hash


def test_an_unknown_name_and_an_unknown_option_are_told_with_the_nearest():
    with pytest.raises(UserError, match=r"no grader named 'numerik'\n  cure: did you mean 'numeric'\?"):
        load_grader("numerik")
    with pytest.raises(UserError, match=r"has no option 'row_tolerance'\n  cure: did you mean 'use_row_tolerance'\?"):
        load_grader("numeric", row_tolerance=True)
