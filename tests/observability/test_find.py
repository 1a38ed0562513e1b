"""What one tenant has is never mixed with another's, even where an id is the same."""

from __future__ import annotations

import datetime as dt
import hashlib
import zlib

import pytest
import sqlalchemy as sa

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.rollouts import ToolResult
from observability import ledger
from observability.find import page, whole_cards
from observability.graders import add_label, append_grades
from observability.ingest import insert_cards
from observability.query import EVERY_CARD, parse
from observability.records import RecordedCard
from observability.search import catch_up
from observability.tables import blobs, grades, human_labels

NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
LONG_TEXT = "operating margin " * 100


@pytest.fixture
def two(store, make_card):
    """Two tenants whose cards have one id, and the same long output of a tool."""
    for tenant, answer in (("acme", "It was lighthouse."), ("beta", "It was nautilus.")):
        card = make_card("019a0001-0000-7000-8000-000000000000", tenant=tenant)
        card.rollout.answer = answer
        card.rollout.turns[0].results["call-1-1"] = ToolResult("call-1-1", LONG_TEXT, None, 0.1)
        insert_cards(store, [RecordedCard(card, NOW)])
        catch_up(store, tenant)
    return store


def test_each_reads_its_own_card_whole(two, make_card):
    for tenant, answer in (("acme", "It was lighthouse."), ("beta", "It was nautilus.")):
        (found,) = whole_cards(two, EVERY_CARD, tenant)
        assert (found.card.tenant, found.card.rollout.answer, len(found.card.rollout.turns), len(found.grades)) == (tenant, answer, 2, 1)
        assert found.card.rollout.turns[0].results["call-1-1"].output == LONG_TEXT
        assert [line.tenant for line in page(two, parse("margin", NOW), 10, tenant=tenant)] == [tenant]
    assert page(two, parse("nautilus", NOW), 10, tenant="acme") == []
    assert [line.tenant for line in page(two, parse("-nautilus", NOW), 10)] == ["acme"]
    assert sorted(found.card.tenant for found in whole_cards(two, EVERY_CARD)) == ["acme", "beta"]


def test_a_grade_or_label_by_an_id_that_two_have_is_refused(two):
    with pytest.raises(UserError, match="several tenants have a card with the id 019a0001"):
        append_grades(two, [("019a0001-0000-7000-8000-000000000000", Grade(GraderRef("numeric", "2", "beef"), 1.0))])
    with pytest.raises(UserError, match="several tenants"):
        add_label(two, "ann", rollout_id="019a0001-0000-7000-8000-000000000000", score=1.0)


def test_what_is_done_to_one_tenants_blobs_is_found_there_and_only_there(two):
    with two.writing() as connection:
        forged = zlib.compress(LONG_TEXT.replace("margin", "Margin").encode())
        long = hashlib.sha256(LONG_TEXT.encode()).hexdigest()
        connection.execute(blobs.update().where(blobs.c.tenant == "acme", blobs.c.hash == long).values(body=forged))
    assert [(one.what, one.kind) for one in ledger.verify(two, "acme")] == [("edited", "card")]
    assert list(ledger.verify(two, "beta")) == []


def test_which_grade_and_label_is_the_newest_is_what_the_ledger_says(store, make_card):
    one = "019a0002-0000-7000-8000-000000000000"
    insert_cards(store, [RecordedCard(make_card(one), NOW)])
    append_grades(store, [(one, Grade(GraderRef("numeric", "2", "beef"), 0.0, False))])
    with store.writing() as connection:  # the numbers of the rows are nobody's word
        for old, new in ((1, 1001), (2, 1), (1001, 2)):
            connection.execute(grades.update().where(grades.c.id == old).values(id=new))
    (found,) = whole_cards(store, EVERY_CARD)
    assert found.card.grade is not None and found.card.grade.reward == 0.0
    assert len(page(store, parse("grade<0.5", NOW), 10)) == 1


def test_a_nothing_with_a_minus_reads_back_as_it_was_entered(store, make_card):
    grade = Grade(GraderRef("numeric", "1", "a1"), -0.0, False)
    insert_cards(store, [RecordedCard(make_card(advantage=-0.0, grade=grade), NOW)])
    assert list(ledger.verify(store, "local")) == []


def test_what_graders_and_people_say_of_a_card_is_redacted_too(store, make_card):
    one = "019a0003-0000-7000-8000-000000000000"
    insert_cards(store, [RecordedCard(make_card(one), NOW)])
    append_grades(store, [(one, Grade(GraderRef("numeric", "2", "beef"), 0.0, False, {"why": "ann@example.org leaked"}))])
    add_label(store, "ann", rollout_id=one, score=0.0, note="bob@example.org complained")
    with store.reading() as connection:
        assert connection.scalar(sa.select(grades.c.parts).where(grades.c.version == "2")) == {"why": "[EMAIL] leaked"}
        assert connection.scalar(sa.select(human_labels.c.note)) == "[EMAIL] complained"
    assert list(ledger.verify(store, "local")) == []
