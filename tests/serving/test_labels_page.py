"""`/labels`: signing in, labelling blind, agreement; hostile texts and foreign forms; and all of it in a real browser."""

from __future__ import annotations

import datetime as dt
import re
import runpy
from collections.abc import Iterator
from contextlib import closing, contextmanager
from html import unescape
from pathlib import Path
from urllib.parse import urlencode

import httpx
import msgspec
import pytest

from agent_rft.commands.label_desk import StoreDesk
from agent_rft.commands.serve import label_desk_of
from agent_rft.contracts.grades import Grade
from agent_rft.contracts.jobcards import Versions
from agent_rft.contracts.messages import Message
from agent_rft.datasets.filings import TOOLS
from agent_rft.graders.labelling import Round
from agent_rft.graders.numeric import NumericGrader
from observability import users
from observability.access import person_at_the_machine
from observability.accesses import reading
from observability.graders import give_label_once, labels_of
from observability.ingest import StoreRecorder
from observability.store import Store, open_store
from serving.app import create_app
from serving.label_pages import POLICY
from serving.label_style import STYLE
from serving.tools.corpus import CorpusTools

make_card = runpy.run_path(str(Path(__file__).parents[1] / "observability" / "sample_cards.py"))["make_card"]
ROLLOUTS = 4
HOSTILE = "</p><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
HIDDEN = ("CHECKPOINT", "DIFFICULTY", "GRADE-PART", "7731", "numeric", "eval", "hidden-id", "ROW", "OTHERS-NAME", "tuned")
"""Nothing of this may be seen before the labels are given."""
ANN = {"run": "run-1"}


def card(number: int):
    opening = (Message("user", f"Question {number}? {HOSTILE}"),)
    rollout = msgspec.structs.replace(make_card().rollout, rollout_id=f"hidden-id-{number}", opening=opening, answer=f"{number} {HOSTILE}")
    grade = Grade(NumericGrader().ref, 1.0 if number % 2 else 0.0, bool(number % 2), {"found": "GRADE-PART"})
    return make_card(
        rollout.rollout_id, rollout=rollout, run_id="run-1", kind="eval", step=7731, grade=grade, advantage=0.7731, row_id="ROW",
        metadata={"difficulty": "DIFFICULTY"}, versions=Versions(code="c", checkpoint="CHECKPOINT tuned"), reference_answer=HOSTILE,
    )  # fmt: skip


@pytest.fixture
def store_url(tmp_path) -> str:
    url = f"sqlite:///{tmp_path}/cards.db"
    store = open_store(url)
    with StoreRecorder(store) as recorder:
        for number in range(ROLLOUTS):
            recorder.record(card(number))
    give_label_once(store, "OTHERS-NAME <b>", "hidden-id-0", 1.0)
    store.close()
    return url


@pytest.fixture
def store(store_url) -> Iterator[Store]:
    with closing(open_store(store_url)) as store:
        for tenant, name in (("local", "ann"), ("other", "rival")):
            users.add_user(store, person_at_the_machine(tenant, "root"), name, "reviewer", dt.datetime.now(dt.UTC))
        yield store


@pytest.fixture
def keys(store) -> dict[str, str]:
    """Of a reviewer of the tenant whose cards these are, and of another tenant's."""
    people = {"ann": "local", "rival": "other"}
    return {
        name: users.new_key(store, person_at_the_machine(of, "root"), name, dt.datetime.now(dt.UTC)).text for name, of in people.items()
    }


@pytest.fixture
def server(in_thread, store, keys):
    with in_thread(create_app(CorpusTools({"a": "b"}, TOOLS), {}, "secret", store=store, desk_of=label_desk_of)) as address:
        yield address


@contextmanager
def signed_in(server: str, key: str) -> Iterator[httpx.Client]:
    """A client that says where its forms come from as browsers do."""
    with httpx.Client(base_url=server, headers={"origin": server}) as client:
        assert client.post("/login", data={"key": key}).status_code == 303
        yield client


@pytest.fixture
def browser(server, keys):
    with signed_in(server, keys["ann"]) as client:
        yield client


def scores(url: str, who: str = "ann") -> dict[str, float]:
    store = open_store(url)
    found = {one.rollout_id: one.score for one in labels_of(store, "run-1") if one.who == who}
    store.close()
    return found


def form(page: str, action: str) -> dict[str, str]:
    """The hidden fields of the first form that is sent there."""
    inner = re.search(rf'<form method="post" action="{action}">(.*?)</form>', page, re.DOTALL)
    assert inner, page
    return {name: unescape(value) for name, value in re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', inner[1])}


def give(client: httpx.Client, page: httpx.Response, score: str) -> httpx.Response:
    return client.post("/labels/give", data=form(page.text, "/labels/give") | {"score": score}, follow_redirects=True)


def question(page: httpx.Response) -> str:
    found = re.search(r"Question \d", page.text)
    return found[0] if found else ""


# --- who may ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer secret"}])
def test_without_a_users_key_there_is_only_the_form(server, headers):
    """The bearer of the tools, which any training run holds, opens no tenant's cards."""
    for path in ("/labels", f"/labels/next?{urlencode(ANN)}", f"/labels/agreement?{urlencode(ANN)}"):
        answer = httpx.get(server + path, headers=headers)
        assert answer.status_code == 303 and answer.headers["location"].startswith("/login?next=%2Flabels") and "run-1" not in answer.text


def test_a_key_opens_the_pages_without_signing_in(server, keys, store_url):
    headers = {"authorization": f"Bearer {keys['ann']}"}
    page = httpx.get(f"{server}/labels/next", params=ANN, headers=headers)
    fields = form(page.text, "/labels/give") | {"score": "h"}
    assert httpx.post(f"{server}/labels/give", data=fields, headers=headers).status_code == 303
    assert list(scores(store_url).values()) == [0.5]


def test_who_was_shown_and_said_what_stands_in_the_access_log(browser, store, store_url):
    page = browser.get("/labels/next", params=ANN)
    give(browser, page, "1")
    labelled = next(iter(scores(store_url)))
    lines = [(line.by, line.action, line.subject, line.cards) for line in reading(store, "local", labelled)]
    assert lines == [("ann", "label", "run-1", 1), ("ann", "show for a label", "run-1", 1)]


def test_another_tenants_reviewer_sees_and_labels_nothing_here(server, keys, browser, store_url):
    fields = form(browser.get("/labels/next", params=ANN).text, "/labels/give") | {"score": "0"}
    with signed_in(server, keys["rival"]) as rival:
        assert "the store holds no run yet" in rival.get("/labels").text
        for answer in (rival.get("/labels/next", params=ANN), rival.post("/labels/give", data=fields)):
            assert answer.status_code == 400 and "Question" not in answer.text
        assert rival.get("/labels/agreement", params=ANN).status_code == 400
    assert scores(store_url) == {} == scores(store_url, "rival")


def test_the_label_is_the_callers_whatever_name_is_sent(browser, store_url):
    fields = form(browser.get("/labels/next", params=ANN).text, "/labels/give") | {"score": "1", "by": "somebody else"}
    browser.post("/labels/give", data=fields)
    assert list(scores(store_url, "ann").values()) == [1.0] and scores(store_url, "somebody else") == {}


@pytest.mark.parametrize("origin", ["http://evil.example", "null", ""])
def test_a_form_from_elsewhere_is_refused_whatever_cookie_comes_with_it(browser, store_url, origin):
    fields = form(browser.get("/labels/next", params=ANN).text, "/labels/give") | {"score": "1"}
    for path in ("give", "undo"):
        answer = browser.post(f"/labels/{path}", data=fields, headers={"origin": origin})
        assert answer.status_code == 403 and "not sent from this server" in answer.text
    del browser.headers["origin"]
    assert browser.post("/labels/give", data=fields).status_code == 403
    assert scores(store_url) == {}


# --- labelling ----------------------------------------------------------------------------------------------------------


def test_the_runs_are_offered_with_their_size(browser):
    page = browser.get("/labels").text
    assert '<option value="run-1">run-1 (4 rollouts)</option>' in page


def test_from_the_first_rollout_to_the_agreement(browser, store_url):
    page, asked = browser.get("/labels/next", params={**ANN, "left": "9"}), []
    for score in ("1", "h", "0", "0.25"):
        asked.append(question(page))
        page = give(browser, page, score)
    assert sorted(asked) == [f"Question {number}" for number in range(ROLLOUTS)]
    assert sorted(scores(store_url).values()) == [0, 0.25, 0.5, 1]
    assert "Agreement of ann" in page.text and "That was the last one." in page.text and "Every rollout has your label." in page.text
    assert "With numeric@1" in page.text and "4 of 4 labelled" in page.text
    assert "With OTHERS-NAME &lt;b&gt;" in page.text and "1 of 1" not in page.text
    differing = {key for key, score in scores(store_url).items() if score != float(key[-1] in "13")}
    assert differing and all(key in page.text for key in differing)


def test_the_page_and_the_terminal_have_one_order(browser, store):
    shown = StoreDesk(store).next(Round("run-1", "ANN"))
    assert shown and shown.passages[0].text.startswith(question(browser.get("/labels/next", params=ANN)))


def test_nothing_that_tells_is_on_the_page(browser):
    page = browser.get("/labels/next", params=ANN)
    while "/labels/give" in page.text:
        seen = page.text.replace(STYLE, "") + str(page.url)  # a style sheet may say font-variant-numeric
        assert not [word for word in HIDDEN if word in seen]
        assert "13.4%" in page.text and "search(query=" in page.text
        page = give(browser, page, "1")
    assert "hidden-id-0" in page.text


def test_hostile_text_stays_text(browser):
    page = browser.get("/labels/next", params=ANN).text
    assert page.count("<script>") == 1 and "<img" not in page  # the page's own script
    assert "&lt;script&gt;document.title=" in page
    assert "<b>" not in browser.get("/labels/next", params={"run": "<b>x"}).text
    assert "<b>" not in browser.get("/labels/next", params={**ANN, "kind": "<b>"}).text
    assert "owned" not in browser.get("/labels/agreement", params={**ANN, "note": HOSTILE}).text


def test_every_page_forbids_what_it_does_not_need(browser):
    for answer in (
        browser.get("/labels"),
        browser.get("/labels/next", params=ANN),
        browser.get("/labels/next", params={"run": "x"}),
    ):
        assert answer.headers["content-security-policy"] == POLICY and answer.headers["cache-control"] == "no-store"
        assert not re.findall(r'(?:src|href)="(?!/labels|data:,)', answer.text)  # nothing from elsewhere
    assert "default-src 'none'" in POLICY and "unsafe" not in POLICY


def test_what_was_labelled_already_is_not_labelled_again(browser, store_url):
    page = browser.get("/labels/next", params=ANN)
    give(browser, page, "1")
    again = give(browser, page, "0")  # the button pressed twice, or the page open in two tabs
    assert "You had labelled that one already" in again.text and list(scores(store_url).values()) == [1.0]


def test_undo_takes_the_last_label_back_and_shows_it_again(browser, store_url):
    first = browser.get("/labels/next", params={**ANN, "left": "3"})
    second = give(browser, first, "1")
    assert "2 to go" in second.text
    back = browser.post("/labels/undo", data=form(second.text, "/labels/undo"), follow_redirects=True)
    assert "The last label is taken back" in back.text and question(back) == question(first) and "3 to go" in back.text
    assert scores(store_url) == {} and 'action="/labels/undo"' not in back.text


def test_skipping_shows_the_next_and_leaves_it_for_later(browser, store_url):
    page = browser.get("/labels/next", params={**ANN, "left": "1"})
    skip = re.search(r'<a class="button" href="([^"]+)"', page.text)
    assert skip
    ended = browser.get(unescape(skip[1]), follow_redirects=True)
    assert "Agreement of ann" in ended.text and "(4 left)" in ended.text and scores(store_url) == {}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"score": "2"}, "'2' is no score"),
        ({"score": "1", "run": ""}, "no run is named"),
        ({"score": "1", "run": "run-9"}, "not in the store"),
        ({"score": "1", "place": "x"}, "not in the store"),
        ({"score": "1", "left": "0000000000000000001"}, "no number of rollouts"),
    ],
)
def test_what_cannot_be_is_refused_in_words(browser, store_url, changed, says):
    fields = form(browser.get("/labels/next", params=ANN).text, "/labels/give") | changed
    answer = browser.post("/labels/give", data=fields)
    assert answer.status_code == 400 and says in unescape(answer.text) and scores(store_url) == {}


def test_a_run_that_is_not_there_is_answered_with_the_nearest(browser):
    answer = browser.get("/labels/next", params={"run": "run-2"})
    assert answer.status_code == 400 and "did you mean 'run-1'?" in unescape(answer.text)


# --- no run -------------------------------------------------------------------------------------------------------------


def test_a_store_that_fails_meanwhile_gives_a_page_and_no_details(browser, monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError("password=hunter2")

    monkeypatch.setattr(StoreDesk, "runs", broken)
    answer = browser.get("/labels")
    assert answer.status_code == 503 and "the store failed" in answer.text and "hunter2" not in answer.text


# --- in a browser -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["light", "dark"])
def opened_page(request, chromium):
    context = chromium.new_context(color_scheme=request.param)
    yield context.new_page()
    context.close()


def test_a_person_signs_in_labels_by_the_keyboard_and_sees_the_agreement(opened_page, server, keys, store_url):
    page, said = opened_page, []
    page.on("console", lambda message: said.append(message.text))
    page.on("request", lambda request: said.append(request.url) if not request.url.startswith((server, "data:")) else None)
    page.goto(f"{server}/labels")
    page.get_by_label("Key").fill(keys["ann"])
    page.get_by_role("button", name="Sign in").click()
    page.get_by_label("Run").select_option("run-1")
    page.get_by_role("button", name="Start").click()
    page.get_by_text("4 to go, labelled by ann").wait_for()
    for key, left in (("1", 3), ("u", 4), ("h", 3), ("s", 2), ("0", 1)):
        page.keyboard.press(key)
        page.get_by_text(f"{left} to go, labelled by ann").wait_for()
    assert page.title() == "1 to go"  # and not what the hostile text would make of it
    field = page.get_by_label("or 0 to 1")
    field.fill("0.1")  # keys typed into a field are its own
    assert page.title() == "1 to go"
    field.press("Enter")
    page.get_by_text("Agreement of ann").wait_for()
    assert sorted(scores(store_url).values()) == [0, 0.1, 0.5]
    assert page.get_by_text("With numeric@1").is_visible() and page.get_by_text("(1 left)").is_visible()
    assert page.evaluate("document.cookie") == ""  # no script can read it
    assert not [line for line in said if "Password forms" not in line]  # nothing was blocked, and nothing asked for elsewhere


def test_a_page_is_readable_in_both_schemes(opened_page, server, keys, hard_to_read):
    """Words against their ground: at least 4.5 to 1, as WCAG asks for."""
    page = opened_page
    page.goto(f"{server}/labels")
    page.get_by_label("Key").fill(keys["ann"])
    page.get_by_role("button", name="Sign in").click()
    page.get_by_label("Run").wait_for()
    page.goto(f"{server}/labels/next?{urlencode(ANN)}")
    assert hard_to_read(page) == []
