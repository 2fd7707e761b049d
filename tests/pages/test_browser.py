"""Pages in a real browser: numbers of the DOM, console, network, keyboard, axe-core, print.

`make pages` writes the pages and runs this in an environment with a browser and without crystalmix.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from helpers.pages import Number, wrong

if not os.environ.get("PAGES"):
    pytest.skip("no browser and no pages here: run `make pages`", allow_module_level=True)

from playwright.sync_api import (  # pyright: ignore[reportMissingImports]
    Browser,
    Page,
    sync_playwright,
)

FOLDER = Path(os.environ["PAGES"])
NAMES = ("run", "audited", "build", "redacted", "imported", "strangers", "ablation")
WIDTHS, THEMES = (1280, 390), ("light", "dark")
ARGUMENTS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
AXE = (FOLDER / "package" / "axe.min.js").read_text("utf-8")
NUMBERS = """() => [...document.querySelectorAll("data")].map((e) => [
  e.getAttribute("value"), e.dataset.at ?? null, e.dataset.sum ?? null, e.textContent])"""
FOCUSABLE = "a[href], button, select, input, summary, [tabindex='0']"
SEEN = """(selector) => [...document.querySelectorAll(selector)].filter(
  (e) => e.checkVisibility()).length"""


@dataclass
class Opened:
    """A page, what its console said, and what it asked for."""

    page: Page
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        path = shutil.which("chromium")
        assert path, "chromium is not installed"
        started = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield started
        started.close()


def opened(browser: Browser, name: str, width: int = 1280, theme: Any = "light") -> Opened:
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=theme, offline=True
    )
    found = Opened(context.new_page())
    found.page.on("console", lambda message: found.console.append(message.text))
    found.page.on("pageerror", lambda error: found.console.append(str(error)))
    found.page.on("request", lambda request: found.requests.append(request.url))
    found.page.goto((FOLDER / "reported" / f"{name}.html").as_uri())
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_numbers_of_the_dom_are_those_of_json(name: str, browser: Browser) -> None:
    content = json.loads((FOLDER / "reported" / f"{name}.json").read_text("utf-8"))
    found = opened(browser, name).page.evaluate(NUMBERS)
    numbers = [Number(*each) for each in found]
    assert len(numbers) >= 20
    assert wrong(numbers, content) == []


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_sound_at_any_width_and_theme(
    name: str, width: int, theme: str, browser: Browser
) -> None:
    found = opened(browser, name, width, theme)
    page = found.page
    page.evaluate("document.querySelectorAll('details').forEach((e) => { e.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.evaluate(AXE)
    violations = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    assert [(v["id"], v["nodes"][0]["html"]) for v in violations] == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) > 380) == (theme == "light")
    assert found.console == []
    assert found.requests == [page.url]


@pytest.mark.parametrize("name", ["audited", "ablation"])
def test_everything_is_reached_by_keyboard(name: str, browser: Browser) -> None:
    page = opened(browser, name).page
    wanted = page.evaluate(SEEN, FOCUSABLE)
    reached = set[int]()
    page.evaluate("(s) => document.querySelectorAll(s).forEach((e, i) => { e.n = i; })", FOCUSABLE)
    for _ in range(wanted + 5):
        page.keyboard.press("Tab")
        number = page.evaluate("document.activeElement.n ?? -1")
        if number >= 0:
            reached.add(number)
    assert len(reached) == wanted > 10


def test_rows_are_browsed_and_spikes_opened_by_keyboard(browser: Browser) -> None:
    page = opened(browser, "audited").page
    rows = page.locator("article.row")
    assert rows.filter(visible=True).count() == 1
    first = rows.filter(visible=True).inner_text()
    page.focus("#next")
    page.keyboard.press("Enter")
    assert rows.filter(visible=True).inner_text() != first
    page.keyboard.press("ArrowLeft")
    assert rows.filter(visible=True).inner_text() == first
    part = page.locator("#part option").nth(2).inner_text()
    page.select_option("#part", part)
    assert rows.filter(visible=True).get_attribute("data-part") == part
    page.locator("a.dot").first.focus()
    page.keyboard.press("Enter")
    opened_spike = page.locator("details.spike[open]")
    opened_spike.wait_for()
    assert opened_spike.locator("tbody tr").count() >= 1
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"


def test_the_theme_is_chosen_and_print_is_light_and_whole(browser: Browser) -> None:
    page = opened(browser, "build", theme="dark").page
    page.click("#theme")
    assert page.locator("#theme").inner_text() == "Theme: light"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(246, 247, 249)"
    page.click("#theme")
    assert page.locator("#theme").inner_text() == "Theme: dark"
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert (
        page.locator("article.row").filter(visible=True).count()
        == page.locator("article.row").count()
    )
    assert page.pdf().startswith(b"%PDF")


def test_without_script_every_row_is_there(browser: Browser) -> None:
    context = browser.new_context(java_script_enabled=False, offline=True)
    page = context.new_page()
    page.goto((FOLDER / "reported" / "build.html").as_uri())
    rows = page.locator("article.row")
    assert rows.filter(visible=True).count() == rows.count() > 1


@pytest.fixture(scope="module", params=["a-run", "a-build"])
def served(request: pytest.FixtureRequest) -> Iterator[str]:
    words = [os.environ["CRYSTALMIX"], "serve", FOLDER / "reported" / request.param]
    words += ["--build", FOLDER / "reported" / "a-build"] * (request.param == "a-run")
    words += ["--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_a_served_run_or_build_is_asked_by_keyboard(
    width: int, theme: Any, served: str, browser: Browser
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
    page = context.new_page()
    console: list[str] = []
    page.on("console", lambda message: console.append(message.text))
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(served)
    page.locator("select[name=phase]").select_option("code")
    page.locator("input[name=step]").fill("3")
    page.keyboard.press("Enter")
    page.wait_for_url("**/step?*")
    name = page.locator("tbody tr").first.locator("td").nth(4).inner_text()
    _is_accessible(page)
    page.locator("input[name=name]").fill(name)
    page.keyboard.press("Enter")
    page.wait_for_url("**/document?*")
    steps = page.locator("tbody tr").all_inner_texts()
    assert any("code" in step.split() and "3" in step.split() for step in steps)
    _is_accessible(page)
    assert console == []
    assert {request.split("/")[2] for request in requests if request != "data:,"} == {
        served.split("/")[2]
    }


def _is_accessible(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.evaluate(AXE)
    violations = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    assert [(v["id"], v["nodes"][0]["html"]) for v in violations] == []
