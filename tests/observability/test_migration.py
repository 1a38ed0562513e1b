"""A store of the revision before the ledger comes over whole, is entered in the ledger, and goes back whole."""

from __future__ import annotations

import datetime as dt
import random

import pytest
import sqlalchemy as sa
from alembic import command

from agent_rft.contracts.agents import Agent
from agent_rft.contracts.errors import UserError
from agent_rft.contracts.grades import Grade, GraderRef
from observability import holds, ledger
from observability.cards import cards_by_id
from observability.erasure import erase
from observability.graders import add_label, append_grades, labelled_scores
from observability.ingest import insert_cards, redacted
from observability.query import parse
from observability.records import RecordedCard
from observability.redaction.detectors import detectors_of
from observability.registry import register_agent, report, reports_of
from observability.search import catch_up
from observability.store import alembic_config, drift
from observability.tables import artifacts
from observability.words import word_of_tenant

CARDS = 1100
"""Two of the batches that the migration reads, and a part of a third."""
pytestmark = pytest.mark.usefixtures("migrations_themselves")


@pytest.fixture
def cards(make_card):
    """Of three tenants, some with advantage, odd words and a bare number for an answer, out of order."""
    numbers = list(range(CARDS))
    random.Random(7).shuffle(numbers)
    begin, made = dt.datetime(2026, 10, 30, tzinfo=dt.UTC), []
    for number in numbers:
        started = (begin + dt.timedelta(minutes=number)).isoformat(timespec="microseconds")
        answer = (7, "$829M", None, {"unit": "M", "scale": 1.0}, "7.0")[number % 5]  # a bare 7.0 was 7 in SQLite then
        card = make_card(
            f"{0x019A3200_0000 + number:012x}", tenant=f"t{number % 3}", run_id="before", started_at=started, reference_answer=answer,
            advantage=None if number % 2 else 0.5, metadata={"task_type": "numerical_qa", "note": "a\0b \ud800" if number % 7 == 0 else ""},
        )  # fmt: skip
        made.append(card)
    return made


def told(store) -> dict:
    with store.reading() as connection:
        ids = list(connection.scalars(sa.text("SELECT rollout_id FROM job_cards ORDER BY rollout_id")))
    return {stored.card.rollout_id: (stored.card, stored.recorded_at, stored.grades) for stored in cards_by_id(store, ids)}


def back_to(store, revision):
    with store.writing() as connection:
        command.downgrade(alembic_config(connection), revision)


def to(store, revision: str) -> None:
    with store.writing() as connection:
        if revision == "0003":
            command.downgrade(alembic_config(connection), revision)
        else:
            command.upgrade(alembic_config(connection), revision)


def test_a_store_from_before_the_ledger_comes_over_without_loss_and_is_entered_in_it(store, cards):
    now = dt.datetime.now(dt.UTC)
    for first in range(0, CARDS, 100):
        insert_cards(store, [RecordedCard(card, now) for card in cards[first : first + 100]])
    append_grades(store, [(card.rollout_id, Grade(GraderRef("numeric", "2", "beef"), 0.5, False, {"found": "x"})) for card in cards[:50]])
    add_label(store, "ann", rollout_id=cards[0].rollout_id, score=0.5, note="half right")
    add_label(store, "ann", row_id="row-1", label="pass")
    before, labels = told(store), labelled_scores(store, "before")
    to(store, "0003")
    with store.reading() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM job_cards")) == CARDS
        assert "ledger" not in sa.inspect(connection).get_table_names()
    to(store, "head")
    assert told(store) == before
    assert labelled_scores(store, "before") == labels == {cards[0].rollout_id: 0.5}
    with store.reading() as connection:
        assert drift(connection) == []
    for tenant in ("t0", "t1", "t2", "default"):
        assert list(ledger.verify(store, tenant)) == []
    # each card and its grade; an advantage for every second one; fifty grades more; two labels, one of a row and so of nobody's card
    assert sum(ledger.size(store, tenant) for tenant in ("t0", "t1", "t2", "default")) == 2 * CARDS + CARDS // 2 + 50 + 2
    append_grades(store, [(cards[0].rollout_id, Grade(GraderRef("numeric", "3", "f00d"), 1.0, True))])  # ids go on where they were
    assert len(told(store)[cards[0].rollout_id][2]) == 3
    to(store, "0003")
    with store.reading() as connection:
        counted = [
            connection.scalar(sa.text(f"SELECT count(*) FROM {table}")) for table in ("job_cards", "card_steps", "grades", "human_labels")
        ]
    # six steps of each card; its grade, the fifty, and the one of just now
    assert counted == [CARDS, 6 * CARDS, CARDS + 51, 2]


def test_a_store_in_which_people_have_acted_does_not_go_back_and_stays_as_it_is(store, make_card):
    now = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
    card = make_card("0198c2d4-0000-7000-8000-000000000000", tenant="t0", metadata={"mail": "ann@example.org"})
    insert_cards(store, [redacted(RecordedCard(card, now), detectors_of(True))])
    holds.place(store, "t0", "case-7", parse("kind:eval", now), "suit", "ann")
    holds.place(store, "t0", "case-8", parse("kind:train", now), "suit", "ann")
    with pytest.raises(UserError, match=r"before revision 0006: what is in legal_holds \(2\), job_cards \(1\) is in the ledger too"):
        to(store, "0003")
    assert len(holds.live(store, "t0")) == 2 and list(ledger.verify(store, "t0")) == []


def test_cards_of_a_month_lie_in_its_partition(postgres, make_card):
    from observability.store import migrate, open_store

    url = postgres()
    migrate(url)
    store = open_store(url)
    month = dt.datetime.now(dt.UTC).replace(day=15)
    number = f"{int(month.timestamp() * 1000):012x}"
    rollout_id = f"{number[:8]}-{number[8:]}-7000-8000-000000000000"
    insert_cards(store, [RecordedCard(make_card(rollout_id), month), RecordedCard(make_card("no-time"), month)])
    with store.reading() as connection:
        found = dict(connection.execute(sa.text("SELECT rollout_id, tableoid::regclass::text FROM job_cards")).all())
        assert found == {rollout_id: f"job_cards_{month:%Y_%m}", "no-time": "job_cards_default"}
        steps = set(connection.scalars(sa.text(f"SELECT tableoid::regclass::text FROM card_steps WHERE rollout_id = '{rollout_id}'")))
        assert steps == {f"card_steps_{month:%Y_%m}"}
    migrate(url)  # once more does no harm
    store.close()


def test_cards_that_were_indexed_by_other_words_are_forgotten_all_the_same(store, make_card, monkeypatch):
    """FTS5 forgets only what it is told, so an index of the revision before is made anew."""
    card = make_card("a", metadata={"note": "zanzibar"})
    insert_cards(store, [RecordedCard(card, dt.datetime.now(dt.UTC))])
    with monkeypatch.context() as patched:
        patched.setattr("observability.card_words.indexed_words", lambda *_: "tenantword zanzibar otherwise")
        catch_up(store, "local")
    with store.writing() as connection:
        command.downgrade(alembic_config(connection), "0005")
    to(store, "head")
    catch_up(store, "local")
    erase(store, "local", ["a"], "dpo", "a request")
    with store.writing() as connection:
        if store.engine.dialect.name == "sqlite":
            connection.execute(sa.text("CREATE VIRTUAL TABLE temp.indexed USING fts5vocab('main', 'search_words', 'row')"))
            left = list(connection.scalars(sa.text("SELECT term FROM temp.indexed")))
        else:
            left = list(connection.scalars(sa.text("SELECT (unnest(words)).lexeme FROM search_words")))
    assert left == [word_of_tenant("local")]


REPORTED_AT = dt.datetime(2026, 11, 20, 9, 30, tzinfo=dt.UTC)


def reports_from_before(store) -> dict[str, list[tuple[str, bool, dict]]]:
    """Two agents', as revision 0008 kept them: among the artifacts, beside a run's report, which stays there."""
    told = {"agent-a": [("safety", False, {"failed": ["s-1"]}), ("safety", True, {})], "agent-b": [("evaluation", True, {"reward": 1})]}
    rows = [{"kind": "report", "id": "run-1/beef", "name": "came to 0.9", "run_id": "run-1", "parents": [["run", "run-1"]], "facts": {}}]
    for agent, reports in told.items():
        for minute, (kind, passed, figures) in enumerate(reports):
            at = (REPORTED_AT + dt.timedelta(minutes=minute)).isoformat().replace("+00:00", "Z")
            facts = {"agent": agent, "kind": kind, "passed": passed, "figures": figures, "by": "ann", "at": at}
            name = {"kind": "report", "id": f"{agent}/{kind}/{at}", "name": f"{kind} of {agent}", "run_id": ""}
            rows.append(name | {"parents": [["agent", agent]], "facts": facts})
    with store.writing() as connection:
        connection.execute(sa.insert(artifacts), [row | {"tenant": "t0", "at": REPORTED_AT} for row in rows])
    return told


def read_reports(store, told) -> dict[str, list[tuple[str, bool, dict]]]:
    return {agent: [(one.kind, one.passed, one.figures) for one in reports_of(store, "t0", agent)] for agent in told}


def test_reports_from_before_are_entered_in_the_ledger_and_go_back_and_forth_whole(store):
    back_to(store, "0008")
    told = reports_from_before(store)
    to(store, "head")
    with store.reading() as connection:
        assert drift(connection) == []
        assert list(connection.scalars(sa.select(artifacts.c.id))) == ["run-1/beef"]
    assert read_reports(store, told) == told
    assert reports_of(store, "t0", "agent-b")[0].at == REPORTED_AT
    assert list(ledger.verify(store, "t0")) == [] and ledger.size(store, "t0") == 3
    agent = register_agent(store, "t0", Agent(checkpoint="c", tool_set="t"), "c")
    made = report(store, "t0", agent, "safety", passed=True, figures={}, by="bob")
    back_to(store, "0008")
    with store.reading() as connection:  # the run's, the three, the one of just now; and the agent
        kinds = sa.select(artifacts.c.kind, sa.func.count()).group_by(artifacts.c.kind).order_by(artifacts.c.kind)
        assert connection.execute(kinds).all() == [("agent", 1), ("report", 5)]
    to(store, "head")
    assert read_reports(store, told) == told and reports_of(store, "t0", agent) == [made]
    assert list(ledger.verify(store, "t0")) == []
    assert ledger.size(store, "t0") == 4, "each is entered once, however often the store goes back and forth"


def test_a_report_that_was_changed_while_the_store_had_gone_back_is_named(store):
    back_to(store, "0008")
    told = reports_from_before(store)
    to(store, "head")
    back_to(store, "0008")
    with store.writing() as connection:
        facts = sa.select(artifacts.c.facts).where(artifacts.c.id.startswith("agent-a/safety/2026-11-20T09:30"))
        failed = connection.scalar(facts)
        connection.execute(
            sa.update(artifacts).where(artifacts.c.id.startswith("agent-a/safety/2026-11-20T09:30")), {"facts": failed | {"passed": True}}
        )
    to(store, "head")
    (found,) = ledger.verify(store, "t0")
    assert (found.kind, found.subject, found.what) == ("report", "agent-a", "removed")
    assert read_reports(store, told)["agent-a"] == [("safety", True, {}), ("safety", True, {"failed": ["s-1"]})]
