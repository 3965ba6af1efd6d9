"""The pages of a leaderboard in a real Chromium, as files."""

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts import leaderboard
from template.receipts.files import read_receipt
from tests.fixtures.hostile import make_hostile
from tests.fixtures.network import call_main
from tests.fixtures.season import Season

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
PHONE, DESK = 360, 1280
CONTROLS = "[...document.querySelectorAll('a, button, [tabindex]')]"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium: apt-get install chromium")


@dataclasses.dataclass
class Browser:
    """A page of Chromium, and what it did: console messages, and requests beside files."""

    page: Any
    folder: Path
    complaints: list[str]

    def open(self, name: str) -> Any:
        self.page.set_viewport_size({"width": DESK, "height": 800})
        self.page.goto((self.folder / name).as_uri())
        return self.page

    def evaluate(self, code: str) -> Any:
        return self.page.evaluate(code)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """The site of two validators, one of which has a last round with strangers' texts."""
    from playwright.sync_api import sync_playwright

    folder = tmp_path_factory.mktemp("browser")
    season = Season(4, changes=0.2)
    paths = list(season.write(folder / "first", 12))
    list(Season(4, "second", changes=0.2).write(folder / "second", 12))
    make_hostile(paths[-1], season)
    sources = ["--rounds", folder / "first", folder / "second"]
    ended = call_main(leaderboard.main, *sources, "--out", folder / "site", "--work_dir", folder / "work")
    assert ended.status == 0, ended.logs
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = chromium.new_page(reduced_motion="reduce")
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append("a dialog"))
        page.on("request", lambda request: None if request.url.startswith("file:") else complaints.append(request.url))
        yield Browser(page, folder / "site", complaints)
        chromium.close()


def names(browser: Browser) -> list[str]:
    """Return every kind of page, of hotkeys and rounds the first and the last, and some with strangers' names."""
    folders = [browser.folder, browser.folder / "rounds", browser.folder / "hotkeys"]
    kinds = [sorted(folder.glob("*.html")) for folder in folders]
    top, rounds, hotkeys = ([path.relative_to(browser.folder).as_posix() for path in paths] for paths in kinds)
    strangers = [name for name in hotkeys if name.startswith("hotkeys/x")]
    return [*top, rounds[0], rounds[-1], hotkeys[0], *strangers[:3]]


def test_no_page_complains_leaves_the_machine_or_overflows(browser: Browser) -> None:
    """Every table has a caption, and every row a header cell."""
    browser.complaints.clear()
    pages, faults = names(browser), []
    for name in pages:
        page = browser.open(name)
        tables = page.evaluate(
            "[...document.querySelectorAll('main table:not(.u-legend)')].map(table => [Boolean(table.caption),"
            " table.querySelectorAll('thead th[scope]').length, table.querySelectorAll('tbody tr').length,"
            " table.querySelectorAll('tbody th[scope=row]').length])"
        )
        faults += [(name, table) for table in tables if not (table[0] and table[1] and table[2] == table[3])]
        for width in (DESK, PHONE):
            page.set_viewport_size({"width": width, "height": 800})
            if page.evaluate("document.documentElement.scrollWidth") > width:
                faults.append((name, width))
        assert page.title().endswith("- Dataset leaderboard"), name
    assert len(pages) == 11 and (faults, browser.complaints) == ([], [])


def test_charts_are_drawn_and_have_their_numbers_as_text(browser: Browser) -> None:
    page = browser.open("history.html")
    figures = page.locator("figure.chart")
    assert figures.count() == 2 and page.locator("figure canvas").count() == 2
    assert "The best loss went from" in str(page.locator(".plot").first.get_attribute("aria-label"))
    figures.first.locator("summary").click()
    rows = figures.first.locator(".scroll tbody tr")
    rows.last.wait_for()  # the table is made when it is opened
    assert rows.count() == 12


def test_rejected_dataset_has_a_text_in_place_of_empty_tables(browser: Browser) -> None:
    page = browser.open("index.html")
    page.locator("#others ~ .scroll .pill.bad").first.locator("xpath=ancestor::tr").locator("th a").click()
    text = page.locator("[data-table=evaluations] .empty").first.inner_text()
    assert text == "This validator did none for this hotkey."
    assert page.locator("[data-chart=own-loss]").count() == 0


def test_every_control_is_reached_by_the_keyboard(browser: Browser) -> None:
    page = browser.open("index.html")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    seen = set()
    for _ in range(200):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement === document.body"):
            break
        seen.add(
            page.evaluate("[...document.querySelectorAll('a, button, [tabindex]')].indexOf(document.activeElement)")
        )
    visible = page.evaluate(
        "[...document.querySelectorAll('a, button, [tabindex]')].filter(item => item.offsetParent).length"
    )
    assert len(seen) >= visible - 1


def test_command_of_a_receipt_names_the_downloaded_file(browser: Browser, tmp_path: Path) -> None:
    page = browser.page
    page.goto(f"{leaderboard.serve(browser.folder, 0)}index.html")
    page.locator("#paid ~ .scroll tbody th a.key").first.click()
    row = page.locator("[data-table=evaluations] tbody tr").first
    with page.expect_download() as started:
        row.locator("a[download]").click()
    path = tmp_path / started.value.suggested_filename
    started.value.save_as(path)
    button = row.locator("button")
    button.press("Enter")
    assert button.get_attribute("aria-expanded") == "true"
    command = page.locator("[data-table=evaluations] code").first.inner_text()
    assert command == f"subnet score --verify {path.name} --any_competition --model_path MODEL_FOLDER"
    assert "MODEL_FOLDER: put your folder" in page.locator("[data-table=evaluations] .opened").first.inner_text()
    assert str(read_receipt(path).result.lucky_num) in row.inner_text()


def test_strangers_texts_are_shown_and_do_nothing(browser: Browser) -> None:
    page = browser.open("index.html")
    text = page.locator("#others ~ .scroll").inner_text()
    assert "<script>document.title" in text and "\\u202egpj.exe" in text and '=HYPERLINK("http' in text
    assert page.evaluate("[...document.links].every(link => /^(file|https?):/.test(link.protocol))")
    assert page.locator("main img").count() == 0 and page.title() == "Standings - Dataset leaderboard"


def test_dark_and_light_have_enough_contrast(browser: Browser) -> None:
    """Text, dim text, links and each kind of pill have a contrast of 4.5 or more."""
    for scheme in ("light", "dark"):
        browser.page.emulate_media(color_scheme=scheme)
        browser.open("index.html")
        pairs = [("text", "bg"), ("dim", "bg"), ("dim", "panel"), ("accent", "bg"), ("accent", "panel")]
        pairs += [(kind, f"{kind}-bg") for kind in ("good", "bad", "busy")] + [("dim", "flat-bg")]
        for front, back in pairs:
            values = [browser.evaluate(f"getComputedStyle(document.documentElement).getPropertyValue('--{name}')")
                      for name in (front, back)]  # fmt: skip
            assert contrast(*map(str.strip, values)) >= 4.5, (scheme, front, back)


def contrast(first: str, second: str) -> float:
    """Return the contrast of two colours. Source: WCAG 2.2, relative luminance."""

    def luminance(color: str) -> float:
        parts = [int(color[index : index + 2], 16) / 255 for index in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)
