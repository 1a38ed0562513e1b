"""What tests of pages share: Debian's Chromium, and which words hardly stand out from their ground."""

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

POOR_CONTRAST = """(which) => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255).map((c) => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  const ground = (one) => { for (; one; one = one.parentElement) {
    const found = rgb(getComputedStyle(one).backgroundColor); if (found.length < 4 || found[3] > 0) return found; }
    return [255, 255, 255]; };
  return [...document.querySelectorAll(which)]
    .filter((one) => one.innerText && getComputedStyle(one).opacity === "1" && !one.closest("details:not([open])")).map((one) => {
    const [low, high] = [light(rgb(getComputedStyle(one).color)), light(ground(one))].sort((a, b) => a - b);
    return [one.outerHTML.slice(0, 60), (high + .05) / (low + .05)]; }).filter(([, ratio]) => ratio < 4.5);
}"""
"""Words against their ground: at least 4.5 to 1, as WCAG asks for."""
WORDS = "h1, h2, h3, p, button, .button, a, label, td, th, dd, dt, .text, .soft, .badge, .grade, mark, summary, figcaption"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no chromium here: apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture
def sign_in_at(chromium: Any) -> Iterator[Callable[..., Any]]:
    """A page of one who has signed in by the key, in a window of its own. It must say nothing on the console and ask nobody but the
    server (and who `besides`) for anything."""
    opened, complaints = [], []

    def sign_in(server: str, key: str, path: str, *, besides: tuple[str, ...] = ("data:",), **window: Any) -> Any:
        context = chromium.new_context(base_url=server, **window)
        opened.append(context)
        page = context.new_page()
        page.set_default_timeout(8000)
        page.on("console", lambda said: said.type in ("error", "warning") and complaints.append(said.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda asked: asked.url.startswith((server, *besides)) or complaints.append(asked.url))
        page.goto(f"/login?next={path}")
        page.get_by_label("Key").fill(key)
        return page

    yield sign_in
    for context in opened:
        context.close()
    assert complaints == []


@pytest.fixture(scope="session")
def hard_to_read() -> Callable[[Any], list[Any]]:
    return lambda page: page.evaluate(POOR_CONTRAST, WORDS)
