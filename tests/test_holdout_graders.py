"""Graders that are held back: named as everywhere, and never the one that training climbs."""

from contextlib import closing
from pathlib import Path

import pytest

from agent_rft.commands.grading import grader_of, grader_texts, holdouts_named, services_of
from agent_rft.compose import settings_for
from agent_rft.contracts.errors import UserError

KEY = "guards.holdout_graders"


def holdouts(*overrides: str) -> tuple[str, ...]:
    settings = settings_for("research_tiny", [*overrides])
    with closing(services_of(settings.grader)) as services:
        found = holdouts_named(KEY, settings.guards.holdout_graders, grader_of(settings, services), services, settings.store.url)
    return tuple(one.ref.name for one in found)


def test_they_are_named_like_any_grader():
    assert holdouts("grader=hackable", f"{KEY}=[numeric, examples/graders/trajectory.json]") == ("numeric", "process")
    assert holdouts() == ()


def test_the_grader_that_training_climbs_is_refused_with_the_settings_name():
    with pytest.raises(UserError) as refused:
        holdouts(f"{KEY}=[numeric]")
    assert refused.value.what == "guards.holdout_graders names numeric, which the agent is graded by anyway"


def test_one_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"nowhere\.json"):
        holdouts(f"{KEY}=[nowhere.json]")


def test_the_words_of_the_grader_are_those_of_its_file(tmp_path: Path):
    store = f"store.url=sqlite:///{tmp_path}/cards.db"
    assert grader_texts(settings_for("research_tiny", ["grader=hackable", store])) == ("about",)
    assert grader_texts(settings_for("research_tiny", [store])) == ()
    assert grader_texts(settings_for("research_tiny", ["grader.name=numeric@1", store])) == (), "ships with the code: no file, no words"
