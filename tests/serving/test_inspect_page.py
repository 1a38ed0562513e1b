"""`/inspect` in a real browser: telling rollouts read beside the base, triaged by the keyboard, harmless whatever was written."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import sqlalchemy as sa
from litestar import Litestar

from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.rollouts.cards import row_tried
from observability import queue, users
from observability.access import person_at_the_machine
from observability.accesses import reading
from observability.cards import cards_by_id
from observability.graders import append_grades
from observability.ingest import insert_cards, replay
from observability.records import RecordedCard
from observability.reviews import changes, reviews_of
from observability.roots import LedgerFiles
from observability.store import open_store
from serving.app import store_routes
from serving.inspection import Looks

CARDS = Path(__file__).resolve().parents[2] / "examples" / "regressions" / "cards.jsonl"
RUN = "two-regressions"
HOSTILE = "</div><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">{{ 7*7 }}\u202e" + "unbroken" * 300
NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
BRITTLE, JUDGE = GraderRef("filings", "1", "a1"), GraderRef("judge", "1", "b2")
WRONG = ("val-0204-base", "val-0206-base", "val-0207-base", "val-0206-tuned", "val-0117-tuned")


def reward(rollout_id: str) -> float:
    """As the example's first grader gives them."""
    return 0.5 if rollout_id.startswith("val-0042-tuned") else 0.0 if rollout_id.startswith(WRONG) else 1.0


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory):
    store = open_store(f"sqlite:///{tmp_path_factory.mktemp('inspect')}/cards.db")
    replay(store, CARDS)
    ids = [msgspec.json.decode(line)["card"]["rollout_id"] for line in CARDS.read_bytes().splitlines()]
    append_grades(store, [(one, Grade(BRITTLE, reward(one), reward(one) > 0.75)) for one in ids])
    append_grades(store, [("val-0203-tuned-1", Grade(JUDGE, 0.25, False, {"why": "too sure"}))])
    found = next(cards_by_id(store, ["val-0208-tuned-1"])).card
    rollout = msgspec.structs.replace(found.rollout, rollout_id="hostile", answer=HOSTILE)
    hostile = msgspec.structs.replace(found, rollout_id="hostile", row_id="hostile-row", rollout=rollout, reference_answer=HOSTILE)
    hostile = msgspec.structs.replace(hostile, grade=Grade(BRITTLE, 1.0, True, {"why": HOSTILE}))
    insert_cards(store, [RecordedCard(hostile, NOW)])
    queue.flag(store.of("default"), "default", ["hostile"], "copied_answer", HOSTILE[:200])
    yield store
    store.close()


@pytest.fixture(scope="module")
def keys(store) -> dict[str, str]:
    by = person_at_the_machine("default", "setup")
    for name, role in {"ann": "reviewer", "eve": "reviewer", "vic": "viewer"}.items():
        users.add_user(store, by, name, role, NOW)
    return {name: users.new_key(store, by, name, dt.datetime.now(dt.UTC)).text for name in ("ann", "eve", "vic")}


@pytest.fixture(scope="module")
def server(store, in_thread):
    with in_thread(Litestar([store_routes(store, LedgerFiles.of(store, None), None)], logging_config=None)) as address:
        yield address


@pytest.fixture
def signed_in(sign_in_at, server: str, keys: dict[str, str]):
    def sign_in(who: str = "ann", scheme: str = "light", width: int = 1366):
        page = sign_in_at(server, keys[who], "/inspect", color_scheme=scheme, viewport={"width": width, "height": 800})
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="Inspect a run").wait_for()
        return page

    return sign_in


def test_a_run_is_read_and_triaged_by_the_keyboard_alone(signed_in, store):
    """Open the only run; the grader's fault at the worst row shows how it is mended; on; a row's fault wants its reason first."""
    page = signed_in()
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="val-0117").wait_for()
    article = page.locator("article").inner_text()
    for told in ("Δreward -1.00 (1.00 to 0.00)", "What was Henderson's revenue in Q3 2024?", "$842M", "$842 million dollars", "filings 1"):
        assert told in article, told
    assert "Henderson Q3 2024" in article and "score 0.84" in article, "calls and what they found"
    page.keyboard.press("g")
    page.get_by_text("the fault is the grader's").wait_for()
    assert page.get_by_role("heading", name="val-0117").is_visible(), "first how it is mended"
    mending = page.locator(".mending").inner_text()
    assert "rft regrade --run two-regressions --grader filings@2" in mending and '"output_text": "$842 million dollars"' in mending
    page.keyboard.press("s")
    page.get_by_role("heading", name="val-0042").wait_for()
    page.keyboard.press("d")
    assert page.get_by_text("Write why, then press Dataset again").is_visible()
    page.keyboard.type("mgst: two figures")
    page.keyboard.press("Control+Enter")
    page.get_by_text("the fault is the row's").wait_for()
    page.get_by_text("That was the last one.").wait_for()
    assert [one.strip() for one in page.locator(".stories .badge").all_inner_texts()] == ["grader", "dataset"]
    page.keyboard.press("3")
    page.get_by_text("filings@1 gives 1.00, judge@1 gives 0.25").first.wait_for()
    said = [(one.verdict, one.note) for name in ("val-0117-tuned-1", "val-0042-tuned-1") for one in reviews_of(store, "default", name)]
    assert said == [("accept", "triage: grader"), ("accept", "triage: dataset\nmgst: two figures")]
    assert [(one.target, one.row_id, one.wanted) for one in changes(store, "default")] == [
        ("dataset", "val-0042", "triage: dataset\nmgst: two figures")
    ]


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 2560)])
def test_what_was_written_shows_does_nothing_and_is_readable(signed_in, hard_to_read, scheme, width):
    page = signed_in("vic", scheme, width)
    for path in (f"/inspect/{RUN}?list=worst", f"/inspect/{RUN}?list=suspicious", f"/inspect/{RUN}?list=graders"):
        page.goto(path)
        assert page.title() != "owned" and page.evaluate("document.images.length") == 0, path
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        assert "\u202e" not in page.content() and hard_to_read(page) == [], path
        assert page.get_by_role("button", name="Grader").count() == 0, "who may not review is shown no buttons"
    page.goto(f"/inspect/{RUN}?list=suspicious")
    assert "<script>document.title" in page.locator("article").inner_text()
    assert "The base has not tried this row." in page.locator("article").inner_text()


# --- without a browser --------------------------------------------------------------------------------------------------


@pytest.fixture
def client(server: str, keys: dict[str, str]):
    def ask(method: str, path: str, who: str = "ann", **more: Any) -> httpx.Response:
        return httpx.request(method, server + path, headers={"authorization": f"Bearer {keys[who]}"}, timeout=30, **more)

    return ask


def test_what_is_shown_stands_in_the_access_log(client, store):
    before = len(reading(store, "default", rollout_id="val-0042-base-1"))
    assert client("GET", f"/inspect/{RUN}?list=worst&at=1", "vic").status_code == 200
    newest = reading(store, "default", rollout_id="val-0042-base-1")
    assert len(newest) == before + 1 and (newest[0].by, newest[0].action, newest[0].subject) == ("vic", "inspect", RUN)


def test_a_grade_that_comes_meanwhile_shows_and_a_look_that_nothing_changed_reads_no_card_again(store, monkeypatch):
    looks, read = Looks(), []
    first = looks.at(store, "default", RUN)
    monkeypatch.setattr("serving.inspection.cards_by_id", lambda *asked: read.append(asked) or cards_by_id(*asked))
    assert looks.at(store, "default", RUN) is first and read == []
    append_grades(store, [("val-0205-tuned-1", Grade(JUDGE, 0.0, False))])
    assert len(looks.at(store, "default", RUN).lists["graders"]) == len(first.lists["graders"]) + 1 and len(read) == 1


def test_whose_fault_each_row_was_is_one_question_to_the_store(client):
    """Two rows are in the list, and no story is told."""
    asked = []
    listen = (sa.Engine, "before_cursor_execute", lambda *told: asked.append(told[2]))
    sa.event.listen(*listen)
    try:
        assert client("GET", f"/inspect/{RUN}?list=worst&at=99").text.count("<li data-item") == 2
    finally:
        sa.event.remove(*listen)
    assert len([one for one in asked if "FROM reviews" in one]) == 1


@pytest.mark.parametrize(
    ("path", "code", "told"),
    [
        ("/inspect/two-regression", 404, "did you mean &#39;two-regressions&#39;?"),
        (f"/inspect/{RUN}?list=nonsense", 200, "val-0117"),
        (f"/inspect/{RUN}?list=worst&at=99", 200, "That was the last one."),
        (f"/inspect/{RUN}?at=x", 400, "is no number"),
    ],
)
def test_addresses_that_nobody_made_are_answered_in_words(client, path, code, told):
    answer = client("GET", path)
    assert answer.status_code == code and told in answer.text


def test_two_who_are_not_of_one_mind_about_a_row_are_both_told(client):
    place, said = f"/inspect/{RUN}/triage", (("eve", "model"), ("ann", "grader"), ("eve", "tool"))
    for who, fault in said:
        assert client("POST", place, who, data={"card": "val-0203-tuned-1", "fault": fault, "note": "as I read it"}).status_code == 303
    shown = "".join(client("GET", f"/inspect/{RUN}?list=graders&at={at}").text for at in range(3))
    assert "Triaged: the grader&#39;s fault, by ann; the tool&#39;s fault, by eve." in shown, "each person's newest word, the newest last"
    assert '<span class="badge ok" title="by ann">grader</span> <span class="badge ok" title="by eve">tool</span>' in shown


def test_a_triage_that_cannot_be_taken_is_refused_in_words(client):
    place = f"/inspect/{RUN}/triage"
    card = "val-0042-tuned-2"
    assert client("POST", place, data={"card": card, "fault": "nobody"}).status_code == 400
    assert "nothing says what is wrong with the tool" in client("POST", place, data={"card": card, "fault": "tool"}).text
    assert client("POST", place, data={"card": "nothing", "fault": "model"}).status_code == 404
    assert client("POST", place, "vic", data={"card": card, "fault": "model"}).status_code == 403


def test_a_case_for_the_mended_grader_holds_the_whole_row(store):
    card = next(cards_by_id(store, ["val-0042-tuned-1"])).card
    assert row_tried(card).item()["filed"] == {"part": 1.43, "whole": 4.98}
