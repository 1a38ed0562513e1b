"""Reads of cards what the index of words holds of them: no column beside, and each text is taken apart once for all that have it.

What is kept for that ends with the call: no words of an erased card stay in memory to come back.
"""

from __future__ import annotations

import datetime as dt
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa

from agent_rft.contracts.messages import Message
from observability.store import one_of
from observability.tables import blobs, card_steps, job_cards
from observability.texts import unpacked
from observability.words import indexed_words, spelled, strings_in

CARD = (
    job_cards.c.rollout_id, job_cards.c.started_at, job_cards.c.opening, job_cards.c.answer, job_cards.c.reason,
    *(sa.cast(job_cards.c[name], sa.Text).label(name) for name in ("reference_answer", "metadata", "item")),
)  # fmt: skip
"""JSON as the text that it is: many cards have the same."""
STEP = (
    card_steps.c.rollout_id, card_steps.c.kind, card_steps.c.said, card_steps.c.call_id, card_steps.c.name,
    sa.cast(card_steps.c.arguments, sa.Text).label("arguments"), card_steps.c.output, card_steps.c.output_blob, card_steps.c.error,
)  # fmt: skip


class CardWords(NamedTuple):
    rollout_id: str
    started_at: dt.datetime
    words: str
    """With a space between them."""


def card_words(connection: sa.Connection, rollout_ids: Sequence[str], tenant: str) -> list[CardWords]:
    """Of the tenant's cards that are there, in no order."""
    cards: Sequence[Any] = connection.execute(_mine(connection, job_cards, CARD, rollout_ids, tenant)).all()
    steps: dict[str, list[Any]] = {}
    for step in connection.execute(_mine(connection, card_steps, STEP, rollout_ids, tenant).order_by(card_steps.c.position)):
        steps.setdefault(step[0], []).append(step)
    openings = {card.opening for card in cards} - {None}
    outputs = {step.output_blob for of_card in steps.values() for step in of_card} - {None}
    spelling = _Spelling(_texts(connection, tenant, [*(openings | outputs)]))
    return [CardWords(card[0], card[1], indexed_words(tenant, spelling.of(card, steps.get(card[0], ())))) for card in cards]


class _Spelling:
    """Of one batch of cards. The order is that of `words_of`."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts
        self._spelled = functools.cache(spelled)
        self._values = functools.cache(self._spelled_values)
        self._opening = functools.cache(self._spelled_opening)

    def of(self, card: Sequence[Any], steps: Sequence[Sequence[Any]]) -> Iterator[str]:
        _, _, opening, answer, reason, reference_answer, metadata, item = card
        asked, given = self._opening(opening)
        yield asked
        yield self._spelled(answer)
        yield from self._said(steps)
        yield self._spelled(reason)
        yield self._values(reference_answer)
        yield self._values(metadata)
        yield given
        yield self._values(item)

    def _said(self, steps: Sequence[Sequence[Any]]) -> Iterator[str]:
        """Of a call that was answered twice in a turn the last answer counts, as where the whole card is read."""
        results: dict[str, str] = {}
        for _, kind, said, call_id, name, arguments, output, output_blob, error in steps:
            if kind == "message":
                yield from results.values()
                results.clear()
                yield self._spelled(said)
            elif kind == "tool_call":
                yield self._spelled(name)
                yield self._values(arguments)
            elif kind != "erased":
                came = self._texts[output_blob] if output_blob else output
                results[call_id] = f"{self._spelled(came or '')} {self._spelled(error or '')}"
        yield from results.values()

    def _spelled_values(self, text: str | None) -> str:
        return "" if text is None else " ".join(map(self._spelled, strings_in(json.loads(text))))

    def _spelled_opening(self, named: str | None) -> tuple[str, str]:
        """What the user asked, and what others said before. None once the words are erased."""
        messages = msgspec.convert(json.loads(self._texts[named]) if named else (), tuple[Message, ...])
        asked = [spelled(message.content) for message in messages if message.role == "user"]
        return " ".join(asked), " ".join(spelled(message.content) for message in messages if message.role != "user")


def _mine(
    connection: sa.Connection, table: sa.Table, columns: Sequence[sa.ColumnElement[Any]], rollout_ids: Sequence[str], tenant: str
) -> sa.Select[Any]:
    return sa.select(*columns).where(one_of(connection.dialect.name, table.c.rollout_id, rollout_ids), table.c.tenant == tenant)


def _texts(connection: sa.Connection, tenant: str, named: Sequence[str]) -> dict[str, str]:
    select = sa.select(blobs.c.hash, blobs.c.body).where(blobs.c.tenant == tenant, one_of(connection.dialect.name, blobs.c.hash, named))
    return {key: unpacked(body) for key, body in connection.execute(select)}
