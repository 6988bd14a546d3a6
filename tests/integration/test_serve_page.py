"""The page at `/` in headless Chromium: ask at one count, at every count, own images, snippets, the chart, a key."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from endpoint_lab import COUNTS, PNG, ScriptedBackend, running
from playwright.sync_api import Browser, Page, expect, sync_playwright
from tokendial.serve.ingress import Options, create_app
from tokendial.serve.keys import Key, KeyStore

pytestmark = pytest.mark.slow
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium or google-chrome is installed")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def backend() -> ScriptedBackend:
    return ScriptedBackend()


@pytest.fixture
def page(browser: Browser, backend: ScriptedBackend) -> Iterator[Page]:
    with running(create_app(backend, Options())) as url:
        context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
        shown = context.new_page()
        faults: list[str] = []
        outside: list[str] = []
        shown.on("pageerror", lambda error: faults.append(str(error)))
        shown.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
        shown.on("request", lambda sent: outside.append(sent.url) if not sent.url.startswith((url, "data:")) else None)
        shown.goto(url)
        expect(shown.locator("#name")).to_have_text("scripted")
        yield shown
        context.close()
    assert faults == []
    assert outside == []


def test_an_example_is_asked_at_the_dials_count(page: Page, backend: ScriptedBackend) -> None:
    page.locator("#dial").fill("1")
    expect(page.locator("#count")).to_have_text(str(COUNTS[1]))
    page.get_by_role("button", name="Ask", exact=True).click()
    cells = page.locator("#answers tr td")
    expect(cells.nth(1)).to_have_text("what is it")
    expect(cells.nth(0)).to_have_text(str(COUNTS[1]))
    expect(cells.nth(4)).to_have_text("0.750")
    expect(cells.nth(5)).to_have_text("asked")
    assert backend.requests[-1].asks[0].count == COUNTS[1]


def test_every_count_is_asked_side_by_side(page: Page) -> None:
    page.get_by_role("button", name="Ask at every count").click()
    rows = page.locator("#answers tr")
    expect(rows).to_have_count(len(COUNTS))
    for row, count in zip(rows.all(), COUNTS, strict=True):
        expect(row.locator("td").nth(0)).to_have_text(str(count))
        expect(row.locator("td").nth(1)).to_have_text("what is it")
        assert float(row.locator("td").nth(2).inner_text()) >= 0


def test_an_image_and_a_question_of_ones_own(page: Page, backend: ScriptedBackend, tmp_path: Path) -> None:
    own = tmp_path / "own.png"
    own.write_bytes(PNG + b"own")
    page.locator("#file").set_input_files(own)
    page.get_by_label("Question").fill("mine <b>bold</b>")
    page.get_by_label("Question").press("Enter")
    expect(page.locator("#answers tr td").nth(1)).to_have_text("mine <b>bold</b>")
    assert backend.requests[-1].images[0] == PNG + b"own"


def test_a_refusal_is_said_where_it_is_seen(page: Page) -> None:
    page.get_by_label("Question").fill(" ")
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator("#said")).to_have_text("ask something")


def test_snippets_follow_the_dial_and_are_copied(page: Page) -> None:
    page.locator("#dial").fill("0")
    for name, words in {"curl": "base64 <", "Python": "from openai import OpenAI", "JavaScript": "fetch("}.items():
        page.get_by_role("tab", name=name).click()
        text = page.locator("#snippet").inner_text()
        assert words in text
        assert f"scripted@{COUNTS[0]}" in text
    page.get_by_role("button", name="Copy").click()
    expect(page.locator("#copy")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == page.locator("#snippet").inner_text()


def test_the_chart_shows_load_and_level(page: Page) -> None:
    expect(page.locator("#now")).to_have_text("1 replica, 1 in work, level 1")
    expect(page.locator("#chart polyline")).to_have_count(2)


def test_the_curl_snippet_is_a_command_that_works(page: Page, tmp_path: Path) -> None:
    import json
    import subprocess

    # Longer than an argument may be.
    (tmp_path / "image.png").write_bytes(PNG + bytes(300_000))
    page.get_by_label("Question").fill('it\'s "quoted"')
    command = page.locator("#snippet").inner_text()
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == 'it\'s "quoted" '


def test_a_key_is_asked_for_where_one_is_needed(browser: Browser, tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.db")
    secret = store.add(Key("alice"))
    with running(create_app(ScriptedBackend(), Options(), store)) as url:
        shown = browser.new_page()
        shown.goto(url)
        shown.get_by_label("API key").fill(secret)
        shown.get_by_label("API key").press("Enter")
        expect(shown.locator("#name")).to_have_text("scripted")
        shown.get_by_role("button", name="Ask", exact=True).click()
        expect(shown.locator("#answers tr td").nth(1)).to_have_text("what is it")
        shown.close()
