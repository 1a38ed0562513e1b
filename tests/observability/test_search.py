"""Words are found wherever a card has them, alike on both databases, and the newest come first without sorting all."""

from __future__ import annotations

import datetime as dt
import hashlib
import re

import pytest
import sqlalchemy as sa

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.messages import Message
from agent_rft.contracts.rollouts import ToolResult
from observability.cursor import Cursor
from observability.find import asks_for_words, count, page, whole_cards
from observability.ingest import insert_cards
from observability.query import And, Not, Or, Query, Term, Text, all_of, parse
from observability.records import RecordedCard
from observability.search import behind, catch_up
from observability.tables import blobs, job_cards, search_cards
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


def test_a_text_of_ascii_falls_apart_as_any_other():
    """By another way, which is faster: beside each sign of ASCII, a letter and a digit."""
    text = " ".join(f"a{chr(code)}B {chr(code)}7" for code in range(128))
    assert words_in(text) == [word for word in words_in(f"{text} \u00e9") if word != "\u00e9"]


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


def test_a_very_long_card_is_indexed_as_far_as_databases_go(make_card, store):
    card = make_card(an_id(1))
    card.rollout.answer = " ".join(f"w{number}" for number in range(60_000)) + " " + "k" * 5000
    insert_cards(store, [RecordedCard(card, NOW)])
    assert found(store, "w1 w40000") == [1]
    assert found(store, "w59999") == []
    assert len(words_of(card)) == 50_000


def test_a_card_of_long_words_is_indexed_as_far_as_a_vector_of_postgresql_goes(make_card, store):
    """A digest takes 64 letters, 1 to make them even, and twice 2 for its count and its place: 69 of 1,000,000. 14,492 of them take
    999,948; before them go the tenant's word and the question, more than the 52 that are left."""
    said = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(20_000)]
    card = make_card(an_id(1))
    card.rollout.opening = (Message("user", "henderson hotels"),)
    card.rollout.answer = " ".join(said)
    insert_cards(store, [RecordedCard(card, NOW)])
    assert found(store, said[0]) == found(store, said[14_490]) == [1]
    assert found(store, said[14_492]) == []


def test_often_and_with_letters_of_four_bytes_a_card_still_fits(make_card, store):
    card = make_card(an_id(1))
    card.rollout.answer = "often " * 45_000 + " ".join(str(number) + chr(0x10428) * 95 for number in range(10_000))
    insert_cards(store, [RecordedCard(card, NOW)])
    assert found(store, "often henderson") == [1]


def test_a_card_that_cannot_be_read_keeps_no_other_out_of_the_index(store, add, make_card):
    add(1, "apple")
    odd = make_card(an_id(2))
    odd.rollout.opening = (Message("user", "an opening of its own"),)
    insert_cards(store, [RecordedCard(odd, NOW)])
    add(3, "apple")
    with store.writing() as connection:
        its = connection.scalar(sa.select(job_cards.c.opening).where(job_cards.c.rollout_id == an_id(2)))
        connection.execute(blobs.update().where(blobs.c.hash == its).values(body=b"no zlib"))
    catch_up(store, "local")
    assert behind(store) == {}
    with store.reading() as connection:
        assert sorted(connection.scalars(sa.select(search_cards.c.rollout_id))) == [an_id(1), an_id(3)]


def test_what_the_system_and_the_row_say_is_found_too_and_behind_all_else(store, make_card):
    card = make_card(an_id(1), item={"customer": "Zanzibar"})
    insert_cards(store, [RecordedCard(card, NOW)])
    assert found(store, "zanzibar") == found(store, '"about company filings"') == [1]
    words = words_of(card)
    assert words.index("henderson") < words.index("medium") < words.index("filings", words.index("medium")) < words.index("zanzibar")


def test_cards_of_one_full_millisecond_cost_no_more_than_others(store, make_card, monkeypatch):
    """Of 8 numbers a millisecond, 120 cards fill 15. Ten at a time, tried one after the other, those of the n-th ten would ask for the
    10 n that are taken but the 8 they want: 10 * (10 * 66 - 8 * 12) = 5,640 questions. One for each millisecond that is full, and one
    for that where there is room, are at most 10 * (1.25 * 66 + 12 * 2)."""
    monkeypatch.setattr("observability.search.SPREAD", 3)
    monkeypatch.setattr("observability.search.AT_ONCE", 10)
    monkeypatch.setattr("observability.search._number", lambda card: (1_795_233_612_250 << 3) + int(card.rollout_id[4:8], 16) % 8)
    asked: list[str] = []
    placed = re.compile(r"search_cards.number (= [:?%]|>= )")
    sa.event.listen(store.engine, "before_cursor_execute", lambda *told: asked.append(told[2]))
    insert_cards(store, [RecordedCard(make_card(an_id(number)), NOW) for number in range(120)])
    catch_up(store, "local")
    assert len([one for one in asked if placed.search(one)]) <= 1065
    with store.reading() as connection:
        numbers = sorted(connection.scalars(sa.select(search_cards.c.number)))
    assert len(set(numbers)) == 120 and numbers[-1] - numbers[0] < 128


def test_which_questions_need_the_index():
    assert [asks_for_words(parse(text, NOW)) for text in ("", "kind:eval", "margin", "-margin", "kind:eval (a OR grade<1)")] == [
        False, False, True, True, True,
    ]  # fmt: skip


def test_vectors_and_questions_are_written_as_postgresql_reads_them():
    assert as_vector(["a", "b", "a"]) == "'a':1,3 'b':2"
    assert as_vector(["a", GAP, "b"]) == "'a':1 'b':3"
    assert as_tsquery(all_of([Text("Net income"), Text("marg", prefix=True)]), None) == "(('net' <-> 'income') & ('marg':*))"


COMBINED = (
    "apple -berry", "-apple", "-apple -berry", "apple OR berry", "(apple OR berry) -citron", "apple (berry OR citron)",
    "apple OR kind:train", "-(apple berry)", "-(apple OR berry) citron", "apple -(berry OR citron) kind:eval",
    "(apple -berry) OR (berry -apple)", "-apple OR berry", "apple kind:train OR citron", "kind:eval -apple -citron",
    "-(apple -berry) citron",
)  # fmt: skip


def is_so(query: Query, words: set[str], kind: str) -> bool:
    match query:
        case And(parts):
            return all(is_so(part, words, kind) for part in parts)
        case Or(parts):
            return any(is_so(part, words, kind) for part in parts)
        case Not(part):
            return not is_so(part, words, kind)
        case Text(text):
            return text in words
        case Term(_, _, values):
            return values == (kind,)


def test_words_are_found_in_any_combination_by_one_tenant_and_by_all(store, add):
    cards: dict[int, tuple[set[str], str]] = {}
    for number in range(16):
        words = {word for bit, word in enumerate(("apple", "berry", "citron")) if number >> bit & 1}
        cards[number] = words, ("train" if number & 8 else "eval")
        add(number, " ".join(sorted(words)) or "nothing", kind=cards[number][1], tenant="ours")
    add(16, "apple berry citron", tenant="theirs")
    found(store, "apple")
    for text in COMBINED:
        query = parse(text, NOW)
        wanted = [number for number in sorted(cards, reverse=True) if is_so(query, *cards[number])]
        assert wanted, text
        for shown, tenant in ((store.of("ours"), "ours"), (store.of("ours"), None), (store, "ours")):
            assert [int(line.rollout_id[4:8], 16) for line in page(shown, query, 3, tenant=tenant)] == wanted[:3], text
            assert count(shown, query, tenant) == len(wanted), text
        assert count(store, query) == len(wanted) + is_so(query, {"apple", "berry", "citron"}, "eval"), text


def test_a_page_is_full_however_few_of_the_cards_with_the_word_it_wants(store, add):
    """Four times as many are looked at as are wanted, then sixteen times: here every twentieth is of the kind."""
    for number in range(100):
        add(number, "common", kind="train" if number % 20 == 0 else "eval")
    assert found(store, "common kind:train", limit=4) == [80, 60, 40, 20]
    assert found(store, "common kind:train", limit=50) == [80, 60, 40, 20, 0]
    assert count(store, parse("common kind:train", NOW), most=3) == 3
    later = (NOW + dt.timedelta(seconds=30)).isoformat().replace("+00:00", "Z")
    assert found(store, f"common kind:train before:{later}", limit=1) == [20]
    assert found(store, f"common kind:train after:{later}") == [80, 60, 40]


def test_statistics_are_taken_when_a_store_has_doubled(sqlite_store, make_card, monkeypatch):
    monkeypatch.setattr("observability.search.FIRST_STATISTICS", 8)
    taken = []
    monkeypatch.setattr("observability.search.refresh_statistics", taken.append)
    for number in range(12):  # three entries each: 3, 6, 9 (over 8), 12, 15, 18 (over 16), ... 33 (over 32), 36
        insert_cards(sqlite_store, [RecordedCard(make_card(an_id(number)), NOW)])
        catch_up(sqlite_store, "local")
    assert len(taken) == 3
