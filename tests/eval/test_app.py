"""The explorer as people use it: in a headless Chromium, desktop and phone."""

import os
import shutil
from importlib.util import find_spec

import pytest
from datasets import Dataset
from explorable import OTHER, TEXT, explorable, perceiver

from concept_encoder import encode
from concept_encoder.eval.explorer.explorer import finder, load_explorer
from concept_encoder.scripts import explore

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("gradio") is None, reason="the extra `explore` is not installed"),
    pytest.mark.skipif(find_spec("playwright") is None, reason="playwright is not installed"),
    pytest.mark.skipif(find_spec("datatrove") is None, reason="the extra `corpus` is not installed"),
]


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Address of the explorer of each kind of checkpoint."""
    # Here, so that collecting tests is without the seconds of gradio.
    from concept_encoder.eval.explorer.app import build_app, launch_app

    folder, apps, urls = tmp_path_factory.mktemp("served"), [], {}
    folders = {
        "latent": explorable(folder / "latent"),
        "none": explorable(folder / "none", decoder_context="none"),
        "perceiver": perceiver(folder / "perceiver"),
    }
    table = Dataset.from_dict({"text": [OTHER, TEXT, "<b>The baker</b> saw a barn.", " "]})
    encode(folders["latent"], table, folder / "corpus")
    for name, path in folders.items():
        find = finder(folder / "corpus", str(path)) if name == "latent" else None
        apps.append(build_app(load_explorer(str(path)), find))
        urls[name] = launch_app(apps[-1], prevent_thread_lock=True, quiet=True, inbrowser=False)[1]
    yield urls
    for app in apps:
        app.close(verbose=False)


@pytest.fixture
def visit(browser, served):
    """Opens a page; at the end nothing may have failed in it or been asked of another machine."""
    contexts, troubles = [], []

    def visit(name="latent", size="desktop", scheme="light"):
        width, height = SIZES[size]
        contexts.append(
            browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, locale="en")
        )
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith((served[name], "data:", "blob:")) else troubles.append(request.url)
            ),
        )
        page.goto(served[name])
        open_tab(page, "Read")
        page.wait_for_selector("#read-map td")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not troubles


def open_tab(page, name):
    page.get_by_role("tab", name=name).click()


def test_searching_and_reading_what_was_found(visit):
    page = visit()
    open_tab(page, "Search")
    page.locator("#search-question textarea, #search-question input").fill(TEXT)
    page.locator("#search").click()
    page.wait_for_selector("#search-hits tbody tr")
    assert page.locator("#search-hits tbody tr").count() == 4
    first = page.locator("#search-hits tbody tr").first
    assert first.locator("td").nth(1).inner_text() == "1.000" and TEXT in first.inner_text()
    page.wait_for_selector(f"#search-document p:has-text('{TEXT}')")
    assert page.locator("#search-document .ce-table tbody tr").count() == 5  # its concepts, matched
    row = page.locator("#search-hits tbody tr:has-text('The baker')")
    row.click()
    page.wait_for_selector("#search-document p:has-text('The baker')")
    assert page.locator("#search-document p b:has-text('The baker')").count() == 0  # text, not markup
    page.locator("#search-question textarea, #search-question input").fill(" ")
    page.locator("#search").click()
    page.wait_for_selector("text=There is no text; type one.")


def test_reading_what_was_typed(visit):
    page = visit()
    page.locator("#read-text textarea").fill(TEXT + " <b>bold</b>")
    page.locator("#read").click()
    page.wait_for_selector("#read-map th:has-text('garden')")
    assert page.locator("#read-map tbody tr").count() == 5
    assert page.locator("#read-map b").count() == 0  # what was typed is text, not markup


def test_a_click_on_a_row_chooses_the_concept(visit):
    page = visit()
    row = page.locator("#read-map tbody tr").last
    number = row.locator("th").inner_text()
    row.click()
    page.wait_for_selector(f"#read-detail h4:has-text('What concept {number} reads')")
    page.wait_for_selector(f"#read-map tr.ce-active th:text-is('{number}')")
    page.get_by_label("positions read concepts").check()
    page.wait_for_selector("#read-map figcaption:has-text('Which concepts each position reads')")


def test_comparing_and_swapping(visit):
    page = visit()
    open_tab(page, "Compare")
    page.locator("#compare-first textarea").fill(TEXT)
    page.locator("#compare-second textarea").fill(OTHER)
    page.locator("#compare").click()
    page.wait_for_selector("#compare-matches td")
    assert page.locator("#compare-matches tbody tr").count() == 5
    assert page.locator("#compare-figures tbody tr").count() == 2
    page.locator("#swap").click()  # none chosen yet
    page.wait_for_selector("text=concepts to swap must be indices in [0, 5), got []")
    page.locator("#swap-which input").nth(1).check()
    page.locator("#swap").click()
    page.wait_for_selector("#swap-result h4:has-text('Second text, rebuilt after the swap')")


def test_filling_in_and_a_text_without_gaps(visit):
    page = visit()
    open_tab(page, "Fill in")
    page.wait_for_selector(".ce-notice:has-text('has never met [MASK] in training')")
    page.locator("#infill-text textarea").fill("The [MASK] saw a [MASK].")
    filled = page.locator("#infill-result .ce-new")
    for _ in range(10):  # on a busy machine a click can overtake what was typed
        page.locator("#infill").click()
        page.wait_for_selector("#infill-result li")
        page.wait_for_timeout(500)
        if filled.count() == 2:
            break
    assert filled.count() == 2
    page.locator("#infill-text textarea").fill(TEXT)
    page.locator("#infill").click()
    page.wait_for_selector("text=There is no [MASK] in the text")


def test_rebuilding_from_fewer_concepts(visit):
    page = visit()
    open_tab(page, "Rebuild")
    page.locator("#rebuild").click()
    page.wait_for_selector("#rebuild-result h4:has-text('Rebuilt from the first 5')")
    page.get_by_role("slider", name="First concepts to keep").focus()
    page.keyboard.press("ArrowLeft")
    page.locator("#rebuild").click()
    page.wait_for_selector("#rebuild-result h4:has-text('Rebuilt from the first 4')")
    assert page.locator("#rebuild-result .ce-bars > div").count() == 5


def test_a_checkpoint_without_context_says_that_it_cannot_fill_in(visit):
    page = visit("none")
    open_tab(page, "Fill in")
    page.wait_for_selector(".ce-notice code:has-text('--decoder_context latent')")
    assert page.locator("#infill").count() == 0
    open_tab(page, "Rebuild")
    page.wait_for_selector("#rebuild")


def test_a_checkpoint_without_decoder_offers_reading_and_comparison_alone(visit):
    page = visit("perceiver")
    assert page.get_by_label("positions read concepts").count() == 0
    for tab, button in (("Compare", "#swap"), ("Fill in", "#infill"), ("Rebuild", "#rebuild")):
        open_tab(page, tab)
        page.locator(".ce-notice:visible", has_text="It has no diffusion decoder").wait_for()
        assert page.locator(button).count() == 0
    open_tab(page, "Compare")
    page.locator("#compare").click()
    page.wait_for_selector("#compare-matches td")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_no_page_is_wider_than_the_screen_and_text_stands_out(visit, size, scheme, tmp_path):
    page = visit(size=size, scheme=scheme)
    page.get_by_text("All concepts as a table").click()
    page.wait_for_selector("#read-table [role=gridcell]")
    for tab, button, result in (
        ("Search", "#search", "#search-document td"),
        ("Read", "#read", "#read-detail .ce-chip"),
        ("Compare", "#compare", "#compare-matches td"),
        ("Fill in", "#infill", "#infill-result li"),
        ("Rebuild", "#rebuild", "#rebuild-result .ce-bars"),
    ):
        open_tab(page, tab)
        page.locator(button).click()
        page.wait_for_selector(result)
        assert page.evaluate("document.documentElement.scrollWidth") == SIZES[size][0], tab
    picture = page.screenshot(path=tmp_path / "page.png")
    assert len(picture) > 10_000
    channels = page.locator(".ce-head h1").evaluate(
        "h => [getComputedStyle(h).color, getComputedStyle(document.body).backgroundColor]"
        ".map(c => c.match(/[\\d.]+/g).slice(0, 3).map(Number))"
    )
    text, ground = (sum(rgb) / 3 for rgb in channels)
    assert (ground < 60 and text > 200) if scheme == "dark" else (ground > 240 and text < 80)


def test_the_script_serves_what_it_is_given(tmp_path, monkeypatch):
    folder, seen = explorable(tmp_path / "mine"), {}
    monkeypatch.setattr(
        "concept_encoder.eval.explorer.app.launch_app", lambda app, **options: seen.update(app=app, **options)
    )
    explore.main([str(folder), "--no_browser", "--port", "7999"])
    assert seen["app"].title == "Concept explorer: mine"
    assert (seen["server_port"], seen["inbrowser"]) == (7999, False)
    explore.main([])
    assert seen["app"].title == "Concept explorer: box" and seen["inbrowser"]
