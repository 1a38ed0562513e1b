"""The reviewers' pages in a real browser: found, read, compared, reviewed, taken out and checked; and harmless whatever a model wrote."""

from __future__ import annotations

import datetime as dt
import re
import runpy
import subprocess
import sys
from pathlib import Path

import httpx
import msgspec
import pytest
from litestar import Litestar
from sqlalchemy import exc

from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.jobcards import Versions
from agent_rft.contracts.messages import Message, ToolCall
from agent_rft.contracts.rollouts import ToolResult, Turn
from observability import erasure, holds, queue, retention, reviews, sources, states, users, verify_evidence, views
from observability.access import person_at_the_machine
from observability.accesses import reading
from observability.ingest import insert_cards
from observability.records import RecordedCard
from observability.roots import LedgerFiles
from observability.search import catch_up
from observability.store import open_store
from serving.app import store_routes
from serving.pages.render import POLICY

make_card = runpy.run_path(str(Path(__file__).parents[1] / "observability" / "sample_cards.py"))["make_card"]
NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
BASE, TRAINED, HOSTILE_ID, OTHERS = "card-base", "card-trained", "card-hostile", "card-of-beta"
HOSTILE = (
    "</div><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">' \" {{ 7*7 }} &amp; \u202egnp.exe\u0007 "
    + "unbroken" * 400
)
ROLES = {"ann": "reviewer", "vic": "viewer", "amy": "approver", "oli": "operator"}


def card(rollout_id: str, answer: str, checkpoint: str, reward: float, *, said: str = "I look it up.", seen: str = "margin: 13.4%", **more):
    """A card of two turns: it reads one file, then answers."""
    call = ToolCall("c1", "read", {"path": "filings/henderson.html"})
    turns = [
        Turn(said, context_tokens=30, sampled_tokens=10, calls=(call,), results={"c1": ToolResult("c1", seen, None, 0.25)}),
        Turn(answer, context_tokens=20, sampled_tokens=5),
    ]
    rollout = msgspec.structs.replace(make_card().rollout, rollout_id=rollout_id, turns=turns, answer=answer)
    grade = Grade(GraderRef("numeric", "1", "a1b2c3d4e5f60718"), reward, reward > 0.5, {"closeness": reward, "why": "another value"})
    versions = Versions(code="0.1.0", checkpoint=checkpoint, dataset="d1", tool_set="t1", grader="numeric/1")
    given = {"rollout": rollout, "grade": grade, "versions": versions, "kind": "production"} | more
    return make_card(rollout_id, tenant=given.pop("tenant", "acme"), **given)


def cards():
    yield card(BASE, "It was 31%.", "models/base", 0.0, seen="operating margin\nlighthouse 13.4%")
    yield card(TRAINED, "It was 13.4%.", "run-1/step-60", 1.0, said="I read the filing.")
    hostile = card(HOSTILE_ID, HOSTILE, HOSTILE, 0.0, said=HOSTILE, seen=HOSTILE, reference_answer=HOSTILE, row_id="hostile-row")
    opening = (Message("system", HOSTILE), Message("user", f"\u202e{HOSTILE}"))
    rollout = msgspec.structs.replace(hostile.rollout, opening=opening)
    yield msgspec.structs.replace(hostile, rollout=rollout, metadata={"task_type": HOSTILE, "difficulty": "<b>"})
    yield card(OTHERS, "Beta's own secret answer.", "models/base", 1.0, tenant="beta")
    for number in range(60):
        at = (NOW + dt.timedelta(minutes=number)).isoformat()
        yield card(f"card-{number:03}", "13.4%", "run-1/step-60", number % 2, row_id=f"row-{number}", started_at=at, kind="eval")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = open_store(f"sqlite:///{tmp_path_factory.mktemp('pages')}/cards.db")
    insert_cards(store, [RecordedCard(one, NOW) for one in cards()])
    catch_up(store, "acme")
    queue.flag(store.of("acme"), "acme", [BASE], "contradiction", "the answer is in no result")
    yield store
    store.close()


@pytest.fixture(scope="module")
def keys(store):
    by = person_at_the_machine("acme", "setup")
    for name, role in ROLES.items():
        users.add_user(store, by, name, role, NOW)
    return {name: users.new_key(store, by, name, dt.datetime.now(dt.UTC)).text for name in ROLES}


@pytest.fixture(scope="module")
def server(store, in_thread):
    with in_thread(Litestar([store_routes(store, LedgerFiles.of(store, None), None)], logging_config=None)) as address:
        yield address


@pytest.fixture
def client(server, keys):
    """Asks as somebody who has a key."""

    def ask(method: str, path: str, who: str = "ann", **more) -> httpx.Response:
        return httpx.request(method, server + path, headers={"authorization": f"Bearer {keys[who]}"}, timeout=30, **more)

    return ask


# --- in Chromium --------------------------------------------------------------------------------------------------------


@pytest.fixture
def signed_in(sign_in_at, server, keys):
    def sign_in(who: str = "ann", scheme: str = "light"):
        window = {"color_scheme": scheme, "viewport": {"width": 1366, "height": 768}, "accept_downloads": True}
        page = sign_in_at(server, keys[who], "/cards", besides=("data:", "blob:"), **window)
        page.get_by_role("button", name="Sign in").click()
        page.get_by_role("heading", name="Job cards").wait_for(state="attached")
        return page

    return sign_in


def test_a_reviewer_finds_reads_compares_reviews_and_takes_out_a_card(signed_in, store, tmp_path):
    page = signed_in()
    page.get_by_label("Search the cards").fill("lighthouse")  # which stands in what a tool answered, and nowhere else
    page.get_by_role("button", name="Search").click()
    page.get_by_text("1 card", exact=True).wait_for()  # the counts came
    page.get_by_role("link", name="2026-11-21 04:00:12").click()
    story = page.locator(".story")
    assert (
        "lighthouse 13.4%" in story.locator(".seen").all_inner_texts()[1] and "It was 31%." in story.locator(".claim.answer").inner_text()
    )
    assert page.get_by_text("ann read").count() == 1  # it says who has read it, this reading included

    page.get_by_role("link", name="Beside the newest of another checkpoint").click()
    assert page.title() == "Two cards side by side"
    marked = page.locator("mark").all_inner_texts()
    assert {"models/base", "run-1/step-60", "0.00", "1.00"} <= set(marked) and "31" in "".join(marked)
    page.get_by_role("link", name=BASE).click()

    page.get_by_label("Note why").fill("The quarter is wrong: the prompt should name it.")
    page.get_by_label("Make it a change request").select_option("prompt")
    page.get_by_role("button", name="Coach").click()
    page.get_by_text("Your verdict and your change request are recorded.").wait_for()
    assert [(one.verdict, one.by) for one in reviews.reviews_of(store, "acme", BASE)] == [("coach", "ann")]
    page.get_by_role("link", name="Changes").click()
    page.get_by_label("How it was settled").fill("named it")
    page.get_by_role("button", name="Done").click()
    page.get_by_text("No request is open.").wait_for()
    assert [(one.target, one.outcome.how) for one in reviews.changes_of(store, "acme", BASE)] == [("prompt", "named it")]

    page.goto(f"/cards/{BASE}")
    page.get_by_role("link", name="Evidence of this card").click()
    page.get_by_label("Case").fill("complaint 7")
    bundle, script, public = tmp_path / "case.zip", tmp_path / "verify.py", tmp_path / "keys.json"
    for file, press in (
        (bundle, page.get_by_role("button", name="Make the bundle")),
        (script, page.get_by_role("link", name="the script")),
        (public, page.get_by_role("link", name="the public keys")),
    ):
        with page.expect_download() as download:
            press.click()
        download.value.save_as(file)
    assert script.read_bytes() == Path(verify_evidence.__file__).read_bytes() and b"private" not in public.read_bytes()
    checked = subprocess.run([sys.executable, "-I", script, bundle, "--key", public], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    spoilt = bundle.read_bytes()[:-600] + b"\0" * 600
    bundle.write_bytes(spoilt)
    assert subprocess.run([sys.executable, "-I", script, bundle, "--key", public], capture_output=True, check=False).returncode == 1


def test_by_the_keyboard_alone(signed_in, store):
    """Search, down the list, open; then the queue: accept at once, coach only with a reason."""
    queue.flag(store.of("acme"), "acme", ["card-001", "card-003"], "slow", "took long")
    page = signed_in(scheme="dark")
    page.keyboard.press("?")
    page.get_by_role("dialog").wait_for()
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.type("kind:eval")
    page.keyboard.press("Enter")
    page.get_by_text("60 cards", exact=True).wait_for()
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("Enter")  # the second newest of 000 to 059
    page.get_by_text("card-058").first.wait_for()
    page.goto("/queue?reason=flag:slow")
    for wanted in ("2 cards to go", "1 card to go"):
        page.goto("/queue?reason=flag:slow")
        assert page.locator(".why").get_by_text("took long").is_visible(), wanted
        if wanted == "2 cards to go":
            page.keyboard.press("a")
            page.get_by_text("Your verdict is recorded.").wait_for()
    page.keyboard.press("c")
    assert page.get_by_text("Write why, then press Coach again").is_visible() and page.url.endswith("reason=flag:slow")
    page.keyboard.type("say acrjk which filing")  # letters in a field are its own
    page.keyboard.press("Control+Enter")
    page.get_by_text("Nothing waits for a person here.").wait_for()
    told = [(one.verdict, one.note) for name in ("card-001", "card-003") for one in reviews.reviews_of(store, "acme", name)]
    assert told == [("accept", ""), ("coach", "say acrjk which filing")]


def test_older_cards_counts_and_the_timeline_narrow_by_a_click(signed_in):
    page = signed_in("vic")
    page.get_by_label("Search the cards").fill("kind:eval OR kind:train")
    page.keyboard.press("Enter")
    page.get_by_text("60 cards", exact=True).wait_for()
    rows = page.locator("#rows tr[data-item]")
    assert rows.count() == 50
    page.get_by_role("link", name="Older cards").click()
    rows.nth(59).wait_for()
    page.get_by_role("link", name="below 0.25 30").click()
    page.get_by_text("30 cards", exact=True).wait_for()
    assert page.get_by_label("Search the cards").input_value() == "(kind:eval OR kind:train) grade<0.25"
    page.locator(".timeline a").first.click()
    page.get_by_text(re.compile(r"^[1-9] cards?$")).wait_for()
    assert "after:2026-11-21T12:00 before:" in page.get_by_label("Search the cards").input_value()
    assert page.get_by_role("button", name="Accept").count() == 0


def test_what_a_model_wrote_shows_and_does_nothing(signed_in):
    page = signed_in("amy")
    for path in (
        f"/cards/{HOSTILE_ID}",
        f"/compare?a={HOSTILE_ID}&b={BASE}",
        "/cards?q=row:hostile-row",
        "/cards/counts?q=row:hostile-row",
    ):
        page.goto(path)
        if path.startswith("/cards?"):
            page.locator("#facets").wait_for()
        assert page.title() != "owned" and page.evaluate("document.images.length") == 0, path
        assert page.evaluate("document.documentElement.scrollWidth") <= 1366, path  # long words break, and move nothing aside
        assert "\u202e" not in page.content() and "49 &" not in page.content()
    assert page.evaluate("document.cookie") == ""  # no script can read it
    page.goto(f"/cards/{HOSTILE_ID}")
    assert "<script>document.title" in page.locator(".claim.answer").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_are_readable_in_both_schemes(signed_in, hard_to_read, scheme):
    """Words against their ground: at least 4.5 to 1, as WCAG asks for."""
    page = signed_in("amy", scheme)
    for path in ("/cards?q=kind:eval", f"/cards/{BASE}", f"/compare?a={BASE}&b={TRAINED}", "/ledger", "/holds", "/queue"):
        page.goto(path)
        if path.startswith("/cards?"):
            page.locator("#facets").wait_for()
        assert hard_to_read(page) == [], path


# --- without a browser --------------------------------------------------------------------------------------------------


def test_another_tenants_card_is_not_there(client):
    for path in (f"/cards/{OTHERS}", f"/compare?a={OTHERS}&b={BASE}", f"/compare?a={BASE}&b={OTHERS}", f"/compare?a={OTHERS}"):
        answer = client("GET", path)
        assert answer.status_code == 404 and "Beta" not in answer.text, path
    assert client("POST", f"/cards/{OTHERS}/review", data={"verdict": "accept"}).status_code == 404
    assert OTHERS not in client("GET", "/cards?q=secret").text and client("GET", "/cards/no-such-card").status_code == 404


def test_who_may_not_is_shown_no_form_and_refused(client, store):
    shown = client("GET", f"/cards/{TRAINED}", "vic").text
    assert 'name="verdict"' not in shown and "Seal this card" not in shown and 'href="/queue"' not in shown
    for path in (f"/cards/{TRAINED}/review", f"/cards/{TRAINED}/seal", "/views", "/holds", "/changes/settle"):
        assert client("POST", path, "vic", data={"verdict": "accept", "name": "a"}).status_code == 403, path
    assert client("POST", "/holds", data={"name": "matter-1", "q": "", "reason": "court"}).status_code == 403  # a reviewer is no approver
    assert not reviews.reviews_of(store, "acme", TRAINED) and not holds.live(store.of("acme"), "acme")


def test_every_card_that_is_shown_stands_in_the_access_log_before(client, store):
    client("GET", "/cards/card-010")
    client("GET", "/compare?a=card-010&b=card-011")
    client("GET", "/cards?q=kind:eval after:2026-11-21")
    newest = [(one.action, one.subject, one.cards) for one in reading(store, "acme", limit=3)]
    assert newest == [
        ("search", "kind:eval after:2026-11-21", 50), ("compare", "card-010 card-011", 2), ("read", "card-010", 1),
    ]  # fmt: skip
    page = client("GET", "/access?card=card-011", "amy").text
    assert "compare" in page and "kind:eval after" in page
    assert "kind:eval after" not in client("GET", "/access?card=card-009", "amy").text  # the list ended with 010


def test_counting_stands_in_the_access_log_too(client, store):
    assert client("GET", "/cards/counts?q=secretword").status_code == 200
    assert [(one.by, one.action, one.subject, one.cards) for one in reading(store, "acme", limit=1)] == [("ann", "count", "secretword", 0)]


def test_a_card_that_was_skipped_stays_skipped_after_the_next_verdict(client, store):
    mine = store.of("acme")
    queue.flag(mine, "acme", ["card-000", "card-001", "card-002"], "skipping", "three of a kind")
    shown = queue_of(client("GET", "/queue?reason=flag:skipping"))
    second = queue_of(client("GET", "/queue?reason=flag:skipping&skip=1"))
    page = client("GET", "/queue?reason=flag:skipping&skip=1").text
    form = page[page.index(f'action="/cards/{second}/review" data-review') :]
    assert '<input type="hidden" name="skip" value="1">' in form
    fields = {"verdict": "accept", "back": "queue", "reason": "flag:skipping", "skip": "1"}
    on = client("POST", f"/cards/{second}/review", data=fields).headers["location"]
    assert queue_of(client("GET", on)) not in (shown, second)
    reviews.add(mine, "amy", "acme", shown, "accept")


def queue_of(page: httpx.Response) -> str:
    """The id of the card that is shown."""
    return re.findall(r'action="/cards/([^/"]+)/review" data-review', page.text)[0]


def test_a_store_that_is_busy_is_told_as_such(client, monkeypatch):
    def busy(*_: object) -> None:
        raise exc.TimeoutError("QueuePool limit of size 5 overflow 10 reached")

    monkeypatch.setattr(views, "listed", busy)
    answer = client("GET", "/views")
    assert answer.status_code == 503 and answer.headers["retry-after"] == "5" and "the store is busy" in answer.text


def test_an_address_with_more_fields_than_any_page_has_is_refused_in_words(client):
    refused = client("GET", "/cards?" + "&".join(["a=1"] * 201))
    assert refused.status_code == 400 and "more than 200 fields were sent" in refused.text


def test_a_query_that_cannot_be_read_is_marked_where(client):
    answer = client("GET", "/cards", params={"q": "kind:eval kimd:eval grade<x"})
    assert answer.status_code == 400
    assert re.findall(r'<mark class="fault">(.*?)</mark>', answer.text) == ["kimd:eval", "grade&lt;x"]
    assert client("GET", "/cards?after=nonsense").status_code == 400 and client("GET", "/cards?q=@none").status_code == 404


def test_a_hold_is_placed_shown_on_its_card_and_released(client, store):
    client("POST", "/holds", "amy", data={"name": "matter-7", "q": "row:row-7", "reason": "court"})
    assert "held: matter-7" in client("GET", "/cards/card-007").text and "held:" not in client("GET", "/cards/card-008").text
    client("POST", "/holds/release", "amy", data={"name": "matter-7", "reason": "settled"})
    assert "held:" not in client("GET", "/cards/card-007").text
    assert [(one.act, one.by) for one in holds.history(store.of("acme"), "acme")] == [("placed", "amy"), ("released", "amy")]


def test_a_saved_view_is_a_search_by_its_name(client, store):
    assert client("POST", "/views", data={"name": "lows", "query": "kind:eval grade<0.5"}).headers["location"] == "/cards?q=%40lows"
    assert "<b>30 cards</b>" in client("GET", "/cards/counts?q=@lows").text
    assert reading(store, "acme", limit=1)[0].subject == "@lows: kind:eval grade<0.5"
    client("POST", "/holds", "amy", data={"name": "by-view", "q": "@few", "reason": "court"})
    client("POST", "/views", data={"name": "few", "query": "row:row-7,row-8"})
    client("POST", "/holds", "amy", data={"name": "by-view", "q": "@few", "reason": "court"})
    client("POST", "/holds/release", "amy", data={"name": "by-view", "reason": "settled"})
    assert [one.query for one in holds.history(store.of("acme"), "acme") if one.name == "by-view"] == ["row:row-7,row-8"] * 2
    made = client("POST", "/ledger/evidence", data={"name": "few", "q": "@few"})  # as the list of cards links it
    line = reading(store, "acme", limit=1)[0]
    assert made.content[:2] == b"PK" and (line.action, line.subject, line.cards) == ("evidence", "few: @few: row:row-7,row-8", 2)
    client("POST", "/views/remove", data={"name": "few"})
    assert client("POST", "/views", data={"name": "a b", "query": "("}).status_code == 400
    client("POST", "/views/remove", data={"name": "lows"})
    assert client("GET", "/cards?q=@lows").status_code == 404


def test_the_ledger_is_verified_and_what_was_changed_is_named(client, store):
    def verified() -> str:
        client("POST", "/ledger/verify")
        for _ in range(200):
            if "hx-trigger" not in (page := client("GET", "/ledger").text):
                return page
        pytest.fail("it never ended")

    assert "All as recorded." in verified()
    with store.writing() as connection:
        connection.exec_driver_sql("UPDATE job_cards SET answer = 'forged' WHERE rollout_id = 'card-020'")
    page = verified()
    with store.writing() as connection:
        connection.exec_driver_sql("UPDATE job_cards SET answer = '13.4%' WHERE rollout_id = 'card-020'")
    assert "All as recorded." not in page and "card-020" in page and "1 thing not as recorded" in page


def test_a_sealed_card_says_so_and_takes_no_review(client):
    assert "The card is sealed" in client("POST", "/cards/card-030/seal", "amy", data={"why": "done"}, follow_redirects=True).text
    shown = client("GET", "/cards/card-030")
    assert "sealed" in shown.text and 'name="verdict"' not in shown.text
    assert client("POST", "/cards/card-030/review", data={"verdict": "accept"}).status_code == 400


def test_pages_may_run_nothing_of_their_own_and_fetch_nothing_from_elsewhere(client):
    answer = client("GET", f"/cards/{BASE}")
    assert answer.headers["content-security-policy"] == POLICY and "unsafe" not in POLICY and "default-src 'none'" in POLICY
    for path in ("/cards", f"/cards/{BASE}", f"/compare?a={BASE}&b={TRAINED}", "/queue", "/changes", "/ledger", "/holds", "/views"):
        page = client("GET", path).text
        assert not re.search(r"<style|\sstyle=|<script(?! src=\"/pages/)|\son\w+=|https?://", page), path
    assert client("GET", "/pages/htmx.min.js").status_code == 200 and client("GET", "/pages/render.py").status_code == 404


def test_words_that_are_not_in_the_index_yet_are_told(client, store):
    insert_cards(store, [RecordedCard(card("card-late", "nautilus", "models/base", 1.0), NOW)])
    assert "1 card not in the word index yet" in client("GET", "/cards?q=nautilus").text
    assert "not in the word index" not in client("GET", "/cards?q=kind:production").text
    catch_up(store, "acme")
    page = client("GET", "/cards?q=nautilus").text
    assert "not in the word index" not in page and "card-late" in page


def test_an_erased_card_says_so_and_keeps_its_place(client, store):
    erasure.erase(store, "acme", ["card-040"], "root", "asked for by the person")
    page = client("GET", "/cards/card-040").text
    assert "The words of this card were erased" in page and "asked for by the person" in page and "of the ledger" in page
    assert "Henderson" not in page and client("GET", "/cards?q=row:row-40").status_code == 200
    beside = client("GET", f"/compare?a=card-040&b={BASE}")
    assert beside.status_code == 200 and "The words of <code>card-040</code> were erased, 2" in beside.text, (
        "not as if it had answered nothing"
    )
    assert beside.text.count("asked for by the person") == 1


def test_a_job_without_a_card_yet_is_told_by_its_states(client, store):
    states.note(store.of("acme"), "agent", "acme", "job-1", "needs_human", "which quarter?")
    page = client("GET", "/cards/job-1").text
    assert "A job without a card yet" in page and "needs human" in page and "which quarter?" in page and 'name="verdict"' not in page


def test_the_dry_run_of_retention_tells_what_would_go(client, store):
    retention.set_policy(store.of("acme"), "acme", "eval", 30, "root")
    assert "Nothing is due" in client("GET", "/holds/plan", "oli").text
    retention.remove_policy(store.of("acme"), "acme", "eval")
    assert "everything is kept" in client("GET", "/holds").text


def test_page_and_api_agree_on_who_may(client, store):
    """The role table of docs/cards.md: approve reads the access log, operate plans retention."""
    retention.set_policy(store.of("acme"), "acme", "eval", 3000, "ops")
    for who, allowed in (("vic", 403), ("ann", 403), ("amy", 200)):
        assert client("GET", "/access", who).status_code == client("GET", "/v1/access", who).status_code == allowed, who
    for who, allowed in (("vic", 403), ("amy", 403), ("oli", 200)):
        assert client("GET", "/holds/plan", who).status_code == client("POST", "/v1/retention/plan", who).status_code == allowed, who
        assert ("/holds/plan" in client("GET", "/holds", who).text) == (allowed == 200)


def test_what_a_source_never_sent_is_told(client, store):
    with store.writing() as connection:
        sources.note(connection, "acme", "trainer on gpu-1", [1, 2, 5], NOW, 0.5, 6)
    page = re.sub(r"\s+", " ", client("GET", "/ledger").text)
    assert "trainer on gpu-1" in page and "number 3-4 never came" in page and "gaps" in page and "50%" in page


def test_evidence_by_words_has_the_cards_that_came_last(client, store):
    insert_cards(store, [RecordedCard(card("card-last", "Quagga.", "models/base", 1.0), NOW)])
    assert client("POST", "/ledger/evidence", data={"name": "last", "q": "quagga"}).content[:2] == b"PK"
    assert reading(store, "acme", limit=1)[0].cards == 1


def test_a_bundle_too_large_to_wait_for_is_refused(client, monkeypatch):
    monkeypatch.setattr("serving.pages.ledger.MOST_CARDS", 2)
    refused = client("POST", "/ledger/evidence", data={"name": "all", "q": "kind:eval"})
    assert refused.status_code == 400 and "more than 2 cards" in refused.text
    assert client("POST", "/ledger/evidence", data={"name": "two", "q": "id:card-050,card-051"}).content[:2] == b"PK"
