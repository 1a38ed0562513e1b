"""Whatever is recorded, graded, labelled, held, released, erased and outlived, in whatever order: the ledger is valid, no word of a held
card ever goes, and of an erased one no word is left anywhere."""

from __future__ import annotations

import datetime as dt
import hashlib
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_rft.contracts.grades import Grade, GraderRef
from observability import ledger
from observability.erasure import erase
from observability.graders import add_label, append_grades
from observability.holds import place, release
from observability.ingest import insert_cards
from observability.query import parse
from observability.records import RecordedCard
from observability.retention import apply, set_policy
from observability.search import catch_up
from observability.store import open_store
from observability.tables import blobs, legal_holds, metadata
from observability.texts import unpacked

NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
LONG_AGO = NOW - dt.timedelta(days=100)
KINDS = ("train", "eval", "train", "eval")
CARDS = range(len(KINDS))
NAMES = ("case-7", "case-8")


def an_id(number: int) -> str:
    return f"0198c2{number:02d}-0000-7000-8000-000000000000"


def word(number: int, place: str) -> str:
    return hashlib.sha256(f"{number} {place}".encode()).hexdigest()[:20]


Asks = Callable[[int, bool], bool]
"""Of a card's number, and whether its answer is there still."""


def of_row(asked: int) -> Asks:
    return lambda number, _: number == asked


def of_answer(asked: int) -> Asks:
    return lambda number, whole: number == asked and whole


QUERIES: dict[str, Asks] = {f"row:row-{number}": of_row(number) for number in CARDS}
QUERIES |= {word(number, "answer"): of_answer(number) for number in CARDS}
QUERIES |= {f"id:{an_id(1)[:8]}*": of_row(1), "": lambda *_: True, "kind:train": lambda number, _: KINDS[number] == "train"}
QUERIES |= {f"kind:eval -{word(1, 'answer')}": lambda number, whole: number == 3 or (number == 1 and not whole)}
cards = st.sampled_from(CARDS)
acts = st.one_of(
    st.tuples(st.sampled_from(["record", "grade", "label"]), cards),
    st.tuples(st.just("hold"), st.sampled_from(NAMES), st.sampled_from(sorted(QUERIES))),
    st.tuples(st.just("release"), st.sampled_from(NAMES)),
    st.tuples(st.just("erase"), st.sets(cards, min_size=1)),
    st.tuples(st.just("outlive"), st.sampled_from(["train", "eval", "*"])),
    st.tuples(st.just("index")),
)


@pytest.fixture(scope="module")
def empty(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("keeping") / "empty.db"
    open_store(f"sqlite:///{path}").close()
    return path


class Model:
    """What should be so."""

    def __init__(self, store, make_card) -> None:
        self.store, self.make_card = store, make_card
        self.words: dict[int, set[str]] = {}
        self.holds: dict[str, str] = {}
        self.policies = set[str]()

    def record(self, number: int) -> None:
        card = self.make_card(an_id(number), kind=KINDS[number], row_id=f"row-{number}", started_at=LONG_AGO.isoformat())
        card.rollout.answer = word(number, "answer")
        insert_cards(self.store, [RecordedCard(card, LONG_AGO)])
        self.words.setdefault(number, {"answer"})

    def grade(self, number: int) -> None:
        if number in self.words:
            grade = Grade(GraderRef("numeric", "2", f"h{number}"), 0.5, False, {"found": word(number, "grade")})
            self.words[number] |= {"grade"} if append_grades(self.store, [(an_id(number), grade)]) else set()

    def label(self, number: int) -> None:
        if number in self.words:
            add_label(self.store, "ann", rollout_id=an_id(number), score=1.0, note=word(number, "label"))
            self.words[number].add("label")

    def hold(self, name: str, query: str) -> None:
        if name not in self.holds:
            place(self.store, "local", name, parse(query, NOW), "suit", "ann")
            self.holds[name] = query

    def release(self, name: str) -> None:
        if self.holds.pop(name, None) is not None:
            release(self.store, "local", name, "settled", "ann")

    def erase(self, numbers: set[int]) -> None:
        there = sorted(numbers & set(self.words))
        done = erase(self.store, "local", [an_id(number) for number in there], "dpo", "a request")
        assert set(done.held) == {an_id(number) for number in there if self.held(number)}
        self.gone(there)

    def outlive(self, kind: str) -> None:
        """What was said of a card after it was erased is as old as the card."""
        set_policy(self.store, "local", kind, 30, "ops")
        self.policies.add(kind)
        apply(self.store, "local", "ops", NOW)
        self.gone([number for number in self.words if {KINDS[number], "*"} & self.policies])

    def index(self) -> None:
        catch_up(self.store, "local")

    def held(self, number: int) -> bool:
        return any(QUERIES[query](number, "answer" in self.words[number]) for query in self.holds.values())

    def gone(self, numbers: list[int]) -> None:
        for number in numbers:
            if not self.held(number):
                self.words[number] = set()

    def check(self) -> None:
        assert list(ledger.verify(self.store, "local")) == []
        told = everything(self.store)
        for number, kept in self.words.items():
            there = {place for place in ("answer", "grade", "label") if word(number, place) in told}
            assert there == kept, number


def everything(store) -> str:
    """Every table and what it compresses, and the index's terms; but not what holds ask for, which is a fact and stays."""
    with store.writing() as connection:
        told = [repr(row) for table in metadata.sorted_tables if table is not legal_holds for row in connection.execute(sa.select(table))]
        told += [unpacked(body) for body in connection.scalars(sa.select(blobs.c.body))]
        connection.execute(sa.text("CREATE VIRTUAL TABLE temp.indexed USING fts5vocab('main', 'search_words', 'row')"))
        told += connection.scalars(sa.text("SELECT term FROM temp.indexed"))
        connection.execute(sa.text("DROP TABLE temp.indexed"))
    return "\n".join(told)


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(acts, min_size=1, max_size=8))
def test_whatever_happens_a_hold_wins_and_what_is_erased_is_gone(empty, tmp_path, make_card, happened):
    path = tmp_path / "cards.db"
    shutil.copy(empty, path)
    with closing(open_store(f"sqlite:///{path}")) as store:
        model = Model(store, make_card)
        for number in CARDS[:3]:
            model.record(number)
        for act, *about in happened:
            getattr(model, act)(*about)
        model.check()
    for left in tmp_path.glob("cards.db*"):
        left.unlink()
