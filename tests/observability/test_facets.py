"""What a search's cards are like, counted by the database and again by hand; and what a list tells beside them. On both databases."""

from __future__ import annotations

import datetime as dt
from collections import Counter

import msgspec
import pytest

from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.rollouts import Ending
from observability import reviews, states
from observability.counting import Facet
from observability.facets import facets
from observability.find import page
from observability.glances import glances, not_indexed
from observability.ingest import insert_cards
from observability.places import place_of, reach_of
from observability.query import EVERY_CARD, parse
from observability.records import RecordedCard
from observability.roots import sign
from observability.search import catch_up
from observability.signing import open_keys

NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
REWARDS = (0.0, 0.25, 0.5, 0.7, 0.75, 1.0, 1.0, None)


def counted(facet: Facet) -> dict[str, int]:
    return {one.value: one.cards for one in facet.counts}


@pytest.fixture
def filled(store, make_card):
    """Eight cards a minute apart: four of one kind and checkpoint, the last failed and has no grade. And one of another tenant."""
    recorded = []
    for number, reward in enumerate(REWARDS):
        grade = None if reward is None else Grade(GraderRef("numeric", "1", "a1"), reward, reward > 0.5)
        made = make_card(f"card-{number}")
        versions = msgspec.structs.replace(made.versions, checkpoint="base" if number < 4 else "run/step-60")
        at = (NOW + dt.timedelta(minutes=number)).isoformat()
        kind = "eval" if number < 4 else "production"
        card = make_card(f"card-{number}", tenant="acme", kind=kind, started_at=at, versions=versions, grade=grade)
        if reward is None:
            card.rollout.ending, card.rollout.turns[0].calls, card.rollout.turns[0].results = Ending.INFRA_FAILED, (), {}
        recorded.append(RecordedCard(card, NOW))
    insert_cards(store, [*recorded, RecordedCard(make_card("other", tenant="beta", kind="train"), NOW)])
    return store


def test_counts_by_key_are_those_of_the_cards(filled):
    mine = filled.of("acme")
    reviews.add(mine, "ann", "acme", "card-0", "reject", "wrong")
    states.seal(mine, "amy", "acme", "card-1")
    found = facets(mine, EVERY_CARD, "acme")
    told = {one.key: counted(one) for one in found.facets}
    assert (found.cards, found.whole) == (8, True)
    assert told == {
        "kind": {"eval": 4, "production": 4},
        "state": {"graded": 5, "reviewed": 1, "sealed": 1, "submitted": 1},  # the failed one ended, and nobody graded it
        "review": {"none": 7, "reject": 1},
        "ending": {"answered": 7, "infra_failed": 1},
        "grade": {"below 0.25": 1, "0.25 to 0.5": 1, "0.5 to 0.75": 2, "0.75 to 1": 1, "1 and more": 2, "none": 1},
        "task": {"numerical_qa": 8},
        "tool": {"search": 7, "read": 7, "none": 1},
        "grader": {"numeric@1": 7, "none": 1},
        "checkpoint": {"base": 4, "run/step-60": 4},
    }


def test_each_counts_term_finds_just_so_many(filled):
    mine = filled.of("acme")
    counts = [one for facet in facets(mine, EVERY_CARD, "acme").facets for one in facet.counts]
    assert len(counts) == 20
    for one in counts:
        assert len(page(mine, parse(one.term, NOW), 100, tenant="acme")) == one.cards, one.term


def test_only_the_newest_are_looked_at_and_it_says_so(filled):
    found = facets(filled.of("acme"), EVERY_CARD, "acme", most=3)
    assert (found.cards, found.whole) == (3, False)
    assert {one.key: counted(one) for one in found.facets}["grade"] == {"1 and more": 2, "none": 1}
    assert facets(filled.of("acme"), EVERY_CARD, "acme", most=8).whole


def test_the_timeline_has_every_card_in_its_minute(filled):
    found = facets(filled.of("acme"), EVERY_CARD, "acme")
    assert [(one.start, one.endings) for one in found.bins] == [
        (NOW + dt.timedelta(minutes=number), {"infra_failed" if number == 7 else "answered": 1}) for number in range(8)
    ]
    assert all(one.end - one.start == dt.timedelta(minutes=1) for one in found.bins)
    assert facets(filled.of("acme"), parse("kind:train", NOW), "acme").bins == ()  # another tenant's


def test_words_narrow_the_counts_and_cards_beyond_the_index_are_counted(filled):
    assert not_indexed(filled.of("acme"), "acme") == 8
    catch_up(filled, "acme")
    assert not_indexed(filled.of("acme"), "acme") == 0 and not_indexed(filled.of("beta"), "beta") == 1
    assert facets(filled.of("acme"), parse('kind:eval "operating margin"', NOW), "acme").cards == 4


def test_a_list_tells_first_words_and_how_far_each_has_come(filled):
    mine = filled.of("acme")
    states.seal(mine, "amy", "acme", "card-1")
    told = glances(mine, "acme", ["card-0", "card-1", "other", "none"])
    assert sorted(told) == ["card-0", "card-1"]
    assert told["card-0"].prompt.startswith("What was the operating margin") and told["card-0"].answer == "The operating margin was 13.4%."
    assert Counter(one.state for one in told.values()) == {"graded": 1, "sealed": 1} and told["card-1"].checkpoint == "base"


def test_a_card_has_its_place_and_the_root_over_it(filled, tmp_path):
    mine = filled.of("acme")
    before = place_of(mine, "acme", "card-3")
    assert before and before.root is None and place_of(mine, "acme", "other") is None
    assert reach_of(mine, "acme").signed == 0 and reach_of(filled.of("none"), "none").entries == 0
    keys = open_keys(tmp_path / "keys.json", "2026-11-21T00:00:00+00:00")
    root = sign(mine, "acme", keys, tmp_path / "roots.jsonl", "2026-11-22T00:00:00+00:00")
    after, reach = place_of(mine, "acme", "card-3"), reach_of(mine, "acme")
    assert root and after and (after.entry, after.root, after.signed_at) == (before.entry, root.size, root.at)
    assert (reach.entries, reach.signed, reach.root) == (root.size, root.size, root.root) and reach.kinds == {
        "card": 8,
        "credit": 8,
        "grade": 7,
    }
