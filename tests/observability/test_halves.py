"""The digests of a record are the same on its way in and when it is read back, and erasing touches one half only."""

from __future__ import annotations

import datetime as dt

import sqlalchemy as sa

from observability.chain import canonical_bytes
from observability.halves import CARD_PAYLOAD, GRADE_PAYLOAD, LABEL_FACTS, LABEL_PAYLOAD, STEP_PAYLOAD, Halves, card_halves, grade_halves
from observability.ingest import insert_cards
from observability.records import RecordedCard, rows_of
from observability.redaction.redact import Removal
from observability.tables import card_steps, grades, human_labels, job_cards

NOW = dt.datetime(2026, 11, 21, 5, 0, tzinfo=dt.timezone(dt.timedelta(hours=1)))


def digestible(halves: Halves) -> tuple[bytes, bytes]:
    return canonical_bytes(halves.facts), canonical_bytes(halves.payload)


def read_back(store, table: sa.Table, order: str) -> list[dict]:
    with store.reading() as connection:
        return [dict(row) for row in connection.execute(sa.select(table).order_by(order)).mappings()]


def test_rows_on_their_way_in_and_rows_read_back_give_the_same_digests(store, make_card):
    """Whole numbers of seconds, a moment of another zone, text that no store can hold."""
    card = make_card(started_at="2026-11-21T04:00:12+02:00", advantage=1)
    card.rollout.answer, card.rollout.seconds = "a\0b \ud83d", 2
    written = rows_of(RecordedCard(card, NOW))
    insert_cards(store, [RecordedCard(card, NOW)])
    (row,), steps, (grade,) = (
        read_back(store, table, order) for table, order in ((job_cards, "rollout_id"), (card_steps, "position"), (grades, "id"))
    )
    assert digestible(card_halves(row, steps, written.blobs)) == digestible(card_halves(written.card, written.steps, written.blobs))
    assert digestible(grade_halves(grade)) == digestible(grade_halves(written.grades[0]))


def halves_of(card, removed=None):
    rows = rows_of(RecordedCard(card, NOW, removed))
    return card_halves(rows.card, rows.steps, rows.blobs), grade_halves(rows.grades[0])


def test_every_column_is_in_one_half_or_says_where_its_entry_is(make_card):
    """Who adds a column decides here whether it is a fact, may be erased, or is the ledger's."""
    card, grade = halves_of(make_card(), (Removal("EMAIL", 0, 16, "/metadata/mail"),))
    ledgers = {"entry", "salt"}
    assert set(job_cards.columns.keys()) - {*card.facts, *card.payload} == {"advantage", "credit_entry", *ledgers}
    assert set(card_steps.columns.keys()) - set(STEP_PAYLOAD) == {"rollout_id", "tenant", "output", "output_blob"}
    assert all("output" in step for step in card.payload["steps"])
    assert set(grades.columns.keys()) - {*grade.facts, *grade.payload} == {"id", *ledgers}
    assert set(human_labels.columns.keys()) - {*LABEL_FACTS, *LABEL_PAYLOAD} == {"id", *ledgers}


def test_no_word_that_the_agent_or_a_tool_said_is_among_the_facts(make_card):
    card, grade = halves_of(make_card())
    facts = canonical_bytes([card.facts, grade.facts]).decode()
    assert "Henderson" not in facts and "13.4%" not in facts and "I look it up" not in facts
    assert set(card.payload) == {*CARD_PAYLOAD, "opening", "tools", "steps"} and set(grade.payload) == set(GRADE_PAYLOAD)
    assert card.facts["steps"] == 6 and card.facts["started_at"] == "2026-11-21T04:00:12.250000+00:00"
