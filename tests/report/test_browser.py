from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
from PIL import Image

from helpers.browsers import needs_chromium, opened_quietly
from helpers.pages import HOSTILE, content, hostile_content, laws
from helpers.sample import recall
from memlaw.core.recall import LN2
from memlaw.report import write


@pytest.mark.browser
@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_opens_quietly_in_a_browser(browser, tmp_path, width, scheme):
    path = Path(tmp_path) / "report.html"
    write(dataclasses.replace(hostile_content(), fits=laws()), path, show_text=True)
    with opened_quietly(browser, path, width=width, scheme=scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        drawn = [svg.bounding_box() for svg in page.locator("figure svg").all()]
        assert len(drawn) == 13
        assert all(box["width"] > 200 and box["height"] > 50 for box in drawn)
        assert len(Image.open(io.BytesIO(page.screenshot())).getcolors(1 << 24)) > 100
        details = page.locator("details").first
        was_open = details.evaluate("element => element.open")
        details.locator("summary").focus()
        page.keyboard.press("Enter")
        assert details.evaluate("element => element.open") != was_open

        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 24, 28)"}[scheme]


@pytest.fixture
def opened(browser, tmp_path):
    """A page of thirty records, one of them with hostile text."""
    records = {f"record-{k:02d}": [0.1, 0.1 + 0.03 * k, 0.2] for k in range(29)} | {HOSTILE: [0.1, 2.0, 0.1]}
    path = Path(tmp_path) / "report.html"
    texts = {name: ["one", HOSTILE, "three"] for name in records}
    write(content(recall=recall(records), texts=texts), path, show_text=True)
    with opened_quietly(browser, path, width=1000) as page:
        yield page


@pytest.mark.browser
@needs_chromium
def test_a_record_opens_to_its_tokens_by_mouse(opened):
    worst_row = opened.locator("#records button.row").first
    assert worst_row.locator("bdi").text_content() == HOSTILE
    worst_row.click()
    assert worst_row.get_attribute("aria-expanded") == "true"
    details = opened.locator("#records .details")
    assert details.locator(".why").text_content().startswith("Decoding goes wrong at position 1: the target's token")
    assert details.locator(".token-status").text_content().startswith("position 1: p 0.135, loss 2.000 nats; stubborn")
    assert details.locator(".token").all_text_contents() == ["one", HOSTILE, "three"]
    details.locator(".token").nth(2).hover()
    assert details.locator(".token-status").text_content() == "position 2: p 0.905, loss 0.100 nats; ordered"
    worst_row.click()
    assert details.count() == 0


@pytest.mark.browser
@needs_chromium
def test_a_record_opens_to_its_tokens_by_keyboard(opened):
    opened.locator("#find").focus()
    opened.keyboard.type("record-07")
    assert opened.locator("#matches").text_content() == "1 of 30 records"
    for _ in range(3):  # the order, the box, the only record
        opened.keyboard.press("Tab")
    opened.keyboard.press("Enter")
    opened.keyboard.press("Tab")
    shown = opened.locator("#records .token-status")
    assert shown.text_content().startswith("position 0:")
    for key, position in (("ArrowRight", 1), ("End", 2), ("ArrowRight", 2), ("ArrowLeft", 1), ("Home", 0)):
        opened.keyboard.press(key)
        assert shown.text_content().startswith(f"position {position}:")
        assert opened.evaluate("document.activeElement.getAttribute('aria-label')") == shown.text_content()


@pytest.mark.browser
@needs_chromium
def test_records_are_found_ordered_and_filtered(opened):
    shown = opened.locator("#records button.row")
    assert shown.count() == 25
    opened.locator("#more").click()
    assert shown.count() == 30
    assert opened.locator("#more").is_hidden()
    opened.locator("#order").select_option("id")
    assert shown.nth(1).locator("bdi").text_content() == "record-00"
    opened.locator("#order").select_option("failure")
    assert shown.first.locator("bdi").text_content() == HOSTILE
    opened.locator("#stubborn-only").check()
    stubborn = sum(0.1 + 0.03 * k >= LN2 for k in range(29)) + 1
    assert opened.locator("#matches").text_content() == f"{stubborn} of 30 records"
    assert shown.count() == stubborn


@pytest.mark.browser
@needs_chromium
def test_the_slider_shows_the_predicted_loss(opened):
    prediction = opened.locator("#law-prediction")
    opened.locator("#law-size").focus()
    opened.keyboard.press("Home")
    opened.locator("#law-length").focus()
    opened.keyboard.press("Home")
    gain = laws()[0].predictor.predict(1, 16)
    assert prediction.text_content() == (
        f"At rank 1 and 16 target tokens, the mean loss falls by {gain:.3f} nats per token, from 10.000 to "
        f"{10 - gain:.3f}, which is not under ln 2."
    )
    opened.locator("#law-size").focus()
    opened.keyboard.press("End")
    assert prediction.text_content().startswith("At rank 8 and 16 target tokens")


@pytest.mark.browser
@needs_chromium
def test_a_printed_page_shows_the_table_and_not_the_list(opened):
    assert opened.locator(".still").is_hidden()
    opened.emulate_media(media="print")
    assert opened.locator(".still").is_visible()
    assert opened.locator("#explorer").is_hidden()
