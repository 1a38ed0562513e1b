"""Words are found wherever a card has them, alike on both databases, and the newest come first without sorting all."""

from __future__ import annotations

import datetime as dt

import pytest
import sqlalchemy as sa

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.rollouts import ToolResult
from observability.cursor import Cursor
from observability.find import asks_for_words, count, page, whole_cards
from observability.ingest import insert_cards
from observability.query import Text, parse
from observability.records import RecordedCard
from observability.search import behind, catch_up, match_of
from observability.tables import search_cards
from observability.words import GAP, as_tsquery, as_vector, words_in, words_of

NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)


def an_id(number: int) -> str:
    return f"019a{number:04x}-0000-7000-8000-000000000000"


@pytest.fixture
def add(store, make_card):
    def put(number: int, answer: str, output: str = "", **more) -> None:
        started = (NOW + dt.timedelta(seconds=number)).isoformat()
        card = make_card(an_id(number), started_at=started, **more)
        card.rollout.answer = answer
        card.rollout.turns[0].results["call-1-1"] = ToolResult("call-1-1", output, None, 0.1)
        insert_cards(store, [RecordedCard(card, NOW)])

    return put


def found(store, question: str, tenant: str | None = None, limit: int = 50, after: Cursor | None = None) -> list[int]:
    for one in behind(store):
        catch_up(store, one)
    return [int(line.rollout_id[4:8], 16) for line in page(store, parse(question, NOW), limit, after, tenant)]


def test_words_are_found_in_what_was_asked_said_called_and_answered(store, add):
    add(1, "The margin was 13.4%.", "Zanzibar Shipping\noperating margin: 13.4%")
    add(2, "I do not know.", "nothing of it", metadata={"note": "Zanzibar"})
    assert found(store, "zanzibar") == [2, 1]
    assert found(store, '"operating margin" zanzibar shipping') == [1]
    assert found(store, "13.4%") == [2, 1]  # the reference answer of both
    assert found(store, "henderson search") == [2, 1]  # the question, and the name of a tool
    assert found(store, '"margin operating"') == []


def test_beginnings_alternatives_and_what_is_not_there(store, add):
    add(1, "Lighthouse Nautilus")
    add(2, "Lightning Express")
    add(3, "Lantern", kind="train")
    assert found(store, "light*") == [2, 1]
    assert found(store, "light* -nautilus") == [2]
    assert found(store, "nautilus OR lantern") == [3, 1]
    assert found(store, "l* kind:train") == [3]
    assert found(store, "(kind:train OR nautilus) -express") == [3, 1]


def test_words_are_the_same_whatever_stands_around_them(store, add):
    add(1, "Größe_ÉTÉ—Q3'25 a'b \\ \"x\"")
    assert found(store, "größe été q3") == [1]
    assert found(store, '"q3 25"') == [1]
    with pytest.raises(UserError, match="no letter or digit to look for"):
        found(store, '"%$"')


def test_a_phrase_ends_where_the_text_does(store, add):
    add(1, "steady medium", "operating margin", metadata={"tags": ["last", "first"]})
    assert found(store, '"steady medium"') == [1] and found(store, '"operating margin"') == [1]
    assert found(store, '"medium search"') == []  # the answer, then the name of the first call
    assert found(store, '"medium operating"') == []
    assert found(store, '"last first"') == []
    assert found(store, f'"{GAP} steady"') == [1]  # the gap is no word of a question: what is left of it is


def test_scripts_without_spaces_are_found_by_a_part_of_a_sentence(store, add):
    add(1, "公司的营业利润率为13.4%。")
    add(2, "営業利益率は13.4%でした", "กำไรจากการดำเนินงาน")
    add(3, "利润的营业 and 영업이익률")
    assert found(store, "营业利润率") == [1]
    assert found(store, "营业*") == [3, 1]
    assert found(store, "利益率") == [2] and found(store, '"利益率は13"') == [2]
    assert found(store, "การดำเนิน") == [2]
    assert found(store, "영업*") == [3]  # Korean has spaces
    assert words_in("Q3营业x_ー") == ["q3", "营", "业", "x", "ー"]


def test_pages_go_on_where_the_last_ended_and_hold_every_card_once(store, add):
    for number in range(30):
        add(number, "common" if number % 3 else "common rare")
    shown: list[int] = []
    after = None
    while numbers := found(store, "common", limit=7, after=after):
        shown += numbers
        after = Cursor(NOW + dt.timedelta(seconds=numbers[-1]), an_id(numbers[-1]))
    assert shown == list(range(29, -1, -1))
    assert count(store, parse("rare", NOW)) == 10
    assert [stored.card.rollout_id for stored in whole_cards(store, parse("rare kind:eval", NOW))] == [an_id(n) for n in range(27, -1, -3)]


def test_a_tenant_finds_its_own_cards_only(store, add):
    add(1, "secret", tenant="ours")
    add(2, "secret", tenant="theirs")
    assert found(store, "secret", "ours") == [1]
    assert found(store, "secret -nothing OR secret", "theirs") == [2]
    assert found(store, "secret") == [2, 1]


def test_what_was_indexed_is_not_indexed_again_and_what_came_since_is(store, add):
    add(1, "first")
    assert behind(store) == {"local": 3}  # card, advantage, grade
    assert found(store, "first") == [1] and behind(store) == {}
    catch_up(store, "local")
    add(2, "first")
    assert found(store, "first") == [2, 1]
    with store.reading() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(search_cards)) == 2


def test_cards_of_one_millisecond_are_all_found(store, make_card):
    insert_cards(store, [RecordedCard(make_card(an_id(number)), NOW) for number in range(40)])
    catch_up(store, "local")
    assert count(store, parse("henderson", NOW)) == 40


def test_the_newest_matches_come_from_the_index_without_sorting(store, add):
    for number in range(5):
        add(number, "common")
    catch_up(store, "local")
    found_by = match_of(store.engine.dialect.name, [Text("common")], "local")
    select = sa.select(found_by.number).select_from(found_by.table).where(found_by.holds).order_by(found_by.number.desc()).limit(50)
    with store.writing() as connection:
        compiled = select.compile(connection, compile_kwargs={"literal_binds": True})
        if store.engine.dialect.name == "sqlite":
            plan = str([tuple(row) for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}")])
            assert "VIRTUAL TABLE INDEX" in plan and "TEMP B-TREE" not in plan
        else:
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
            plan = "\n".join(connection.scalars(sa.text(f"EXPLAIN {str(compiled).replace(':', chr(92) + ':')}")))
            assert "search_words" in plan and "Seq Scan" not in plan


def test_a_very_long_card_is_indexed_as_far_as_databases_go(make_card, store):
    card = make_card(an_id(1))
    card.rollout.answer = " ".join(f"w{number}" for number in range(60_000)) + " " + "k" * 5000
    insert_cards(store, [RecordedCard(card, NOW)])
    assert found(store, "w1 w40000") == [1]
    assert found(store, "w59999") == []
    assert len(words_of(card)) == 50_000


def test_which_questions_need_the_index():
    assert [asks_for_words(parse(text, NOW)) for text in ("", "kind:eval", "margin", "-margin", "kind:eval (a OR grade<1)")] == [
        False, False, True, True, True,
    ]  # fmt: skip


def test_vectors_and_questions_are_written_as_postgresql_reads_them():
    assert as_vector(["a", "b", "a"]) == "'a':1,3 'b':2"
    assert as_vector(["a", GAP, "b"]) == "'a':1 'b':3"
    assert as_tsquery([Text("Net income"), Text("marg", prefix=True)], None) == "('net' <-> 'income') & ('marg':*)"
