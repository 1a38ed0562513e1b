"""Reports in a real browser: the file that a run leaves, and the same pages in the app. Legible at two widths, in light and in dark."""

from __future__ import annotations

import datetime as dt
import runpy
from pathlib import Path

import httpx
import msgspec
import pytest
from litestar import Litestar

from agent_rft.evaluation.report.beside import render_beside
from agent_rft.evaluation.report.contents import without_words
from agent_rft.evaluation.report.page import render_report
from observability import run_reports, users
from observability.access import person_at_the_machine
from observability.artifacts import register
from observability.dossier import Artifact
from observability.redaction.detectors import BUILT_IN
from observability.roots import LedgerFiles
from observability.store import open_store
from serving.app import store_routes

samples = runpy.run_path(str(Path(__file__).parents[1] / "evaluation" / "sample_report.py"))
make_report = samples["make_report"]
NOW = dt.datetime.now(dt.UTC)
ATTACK = "<script>document.title='owned'</script>"

CROWDED = """() => [...document.querySelectorAll("svg:not(.cell):not(.split)")].flatMap((svg) => {
  const box = (one) => one.getBoundingClientRect(), edge = box(svg), found = [];
  const words = [...svg.querySelectorAll("text")].filter((one) => box(one).width);
  words.forEach((one, place) => {
    const a = box(one), said = one.textContent;
    if (a.left < edge.left - 1 || a.right > edge.right + 1 || a.top < edge.top - 1 || a.bottom > edge.bottom + 1)
      found.push(["cut", said]);
    if (a.height < 10) found.push(["small", said, a.height]);
    words.slice(place + 1).forEach((other) => {
      const b = box(other);
      if (a.left < b.right && b.left < a.right && a.top + 2 < b.bottom && b.top + 2 < a.bottom)
        found.push(["over", said, other.textContent]);
    });
  });
  return found; })"""
"""Words of drawings that are cut off, too small to read, or on each other."""
PALE = """() => { const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255).map((c) => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  const ground = light(rgb(getComputedStyle(document.querySelector(".report")).backgroundColor));
  return [...document.querySelectorAll("svg text")].map((one) => [one.textContent, light(rgb(getComputedStyle(one).fill))])
    .map(([said, ink]) => [said, (Math.max(ink, ground) + .05) / (Math.min(ink, ground) + .05)]).filter(([, ratio]) => ratio < 4.5); }"""
"""Words of drawings that hardly stand out from the page."""
UNSEEN = """() => [...document.querySelectorAll(".across")].filter((one) => one.scrollWidth > one.clientWidth + 1)
  .map((one) => [one.innerText.slice(0, 40), one.scrollWidth, one.clientWidth])"""
"""Tables of which a part has to be scrolled to."""
SPILT = "() => document.documentElement.scrollWidth - innerWidth"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    halted = msgspec.structs.replace(make_report(), comparison=None, halted="holdout divergence: the graders part")
    made = {
        "run": render_report(make_report()),
        "halted": render_report(halted),
        "beside": render_beside([make_report("first", 0.5), make_report("second")]),
        "suite": samples["make_suite"](),
        "lone suite": samples["make_lone_suite"](),
    }
    for name, html in made.items():
        (folder / f"{name}.html").write_text(html, encoding="utf-8")
    return folder


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (2560, "light"), (2560, "dark")])
@pytest.mark.parametrize("name", ["run", "halted", "beside", "suite", "lone suite"])
def test_the_file_is_legible_and_quiet(chromium, hard_to_read, files, name, width, scheme):
    page = chromium.new_page(viewport={"width": width, "height": 1000}, color_scheme=scheme)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto((files / f"{name}.html").as_uri())
    try:
        assert page.evaluate(SPILT) == 0 and page.evaluate(UNSEEN) == []
        assert page.evaluate(CROWDED) == [] and page.evaluate(PALE) == [] and hard_to_read(page) == []
        if name == "run":
            page.get_by_text("10 more rows").click()
            page.locator("#rows details.rest details summary").last.click()
            assert page.locator("#rows .trace").last.is_visible()
            assert hard_to_read(page) == []
        assert said == [] and asked == [(files / f"{name}.html").as_uri()]
    finally:
        page.close()


BROKEN = """() => [...document.querySelectorAll("th:first-child, td:first-child")].filter((one) => one.offsetParent && one.clientWidth < 60)
  .map((one) => [one.innerText, one.clientWidth])"""
"""First columns so narrow that words in them break into letters."""


@pytest.mark.parametrize(("width", "media"), [(480, "screen"), (718, "print")])
@pytest.mark.parametrize("name", ["run", "halted", "beside"])
def test_a_phone_and_a_sheet_of_paper_hold_it_too(chromium, files, name, width, media):
    """718 pixels are A4 without its margins. On paper nothing can be scrolled to, so all of each table has to be there."""
    page = chromium.new_page(viewport={"width": width, "height": 1000})
    page.emulate_media(media=media)
    page.goto((files / f"{name}.html").as_uri())
    try:
        assert page.evaluate(SPILT) == 0 and page.evaluate(BROKEN) == []
        if media == "print":
            assert page.evaluate(UNSEEN) == []
    finally:
        page.close()


# --- in the app ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = open_store(f"sqlite:///{tmp_path_factory.mktemp('runs')}/cards.db")
    for tenant, run_id, earns in (("acme", "first", 0.5), ("acme", "second", 1.0), ("beta", "betas", 1.0)):
        report = make_report(run_id, earns, next_step=ATTACK)
        made = run_reports.Made(run_id, f"recipe of {tenant}", f"{run_id} came {ATTACK}", msgspec.to_builtins(without_words(report)))
        run_reports.keep(store, tenant, made, BUILT_IN)
    register(store, "acme", [Artifact(kind="run", id="going on", name="research_tiny", run_id="going on")])
    odd = run_reports.Made("odd", "r", "of before", {"run_id": "odd", "answers": 42})
    run_reports.keep(store, "acme", odd, BUILT_IN)
    yield store
    store.close()


@pytest.fixture(scope="module")
def served(store, in_thread):
    me = person_at_the_machine("acme", "setup")
    users.add_user(store, me, "ann", "viewer", NOW)
    key = users.new_key(store, me, "ann", NOW).text
    with in_thread(Litestar([store_routes(store, LedgerFiles.of(store, None), None)], logging_config=None)) as address:
        yield address, key


@pytest.fixture
def ask(served):
    address, key = served
    return lambda path: httpx.get(address + path, headers={"authorization": f"Bearer {key}"}, timeout=30)


def test_runs_are_listed_with_what_they_came_to(ask):
    told = ask("/runs").text
    assert "first came &lt;script&gt;" in told and "going on" in told and "no report yet" in told
    assert "betas" not in told


def test_a_run_shows_its_report_and_each_row_leads_to_its_cards(ask):
    told = ask("/runs/first").text
    assert 'id="scores"' in told and 'id="training"' in told and "<script>document" not in told
    assert "/cards?q=run%3A%22first%22+kind%3Aeval+row%3A%22row-00%22" in told
    assert "What was the revenue" not in told, "what was asked is on the cards, which are redacted"


def test_runs_stand_beside_each_other(ask):
    told = ask("/runs/first?beside=second").text
    assert "Beside first, on the same rows: second" in told and "What differs" in told


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/runs/nothing", 404, "there is no run"),
        ("/runs/betas", 404, "there is no run"),
        ("/runs/first?beside=betas", 404, "there is no report of a run"),
        ("/runs/odd", 400, "was made by another version"),
        ("/runs/going%20on", 200, "has left no report in this store yet"),
    ],
)
def test_what_is_not_there_is_said(ask, path, status, words):
    answer = ask(path)
    assert (answer.status_code, words in answer.text) == (status, True)
    assert "numerical_qa" not in answer.text


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (2560, "dark")])
def test_the_pages_are_legible_and_quiet(chromium, hard_to_read, served, width, scheme):
    address, key = served
    context = chromium.new_context(viewport={"width": width, "height": 1000}, color_scheme=scheme, base_url=address)
    said = []
    page = context.new_page()
    page.on("console", lambda message: message.type in ("error", "warning") and said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: request.url.startswith((address, "data:")) or said.append(request.url))
    try:
        page.goto("/login?next=/runs")
        page.get_by_label("Key").fill(key)
        page.get_by_role("button", name="Sign in").click()
        page.get_by_role("link", name="second", exact=True).click()
        page.get_by_role("heading", name="Scoreboard").wait_for()
        for _ in range(2):
            assert page.evaluate(SPILT) == 0 and page.evaluate(CROWDED) == [] and page.evaluate(PALE) == [] and hard_to_read(page) == []
            page.locator("select[name=beside]").select_option("first")
            page.get_by_role("button", name="Compare").click()
            page.get_by_role("heading", name="What differs").wait_for()
        assert said == [] and page.title() == "Run second"
    finally:
        context.close()
