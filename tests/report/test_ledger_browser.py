"""The map of a ledger in a real browser: what is chosen opens, by mouse and by keyboard."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from helpers.browsers import needs_chromium, opened_quietly
from helpers.ledger_pages import a_large_content, a_story
from helpers.pages import HOSTILE
from memlaw.report.ledger import collect_ledger
from memlaw.report.ledger_page import write_ledger

pytestmark = [pytest.mark.browser, needs_chromium]

ACTIVE = "document.activeElement"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a story whose first fact has a hostile id, with texts."""
    room = tmp_path_factory.mktemp("pages")
    write_ledger(
        collect_ledger(a_story(room / "KB", HOSTILE).root, show_text=True), room / "story.html", show_text=True
    )
    return room / "story.html"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pages") / "large.html"
    write_ledger(a_large_content(1000, 50), path)
    return path


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_opens_quietly_and_fits(browser, hostile, width, scheme):
    with opened_quietly(browser, hostile, width=width, scheme=scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("#heat .heat-row").count() == 5
        assert page.locator("#panel h3").text_content() == "Version 4"
        assert page.locator(".still").is_hidden()
        page.emulate_media(media="print")
        assert page.locator(".still").is_visible()
        assert page.locator("#explorer").is_hidden()


def test_a_click_opens_a_cell_a_fact_and_a_version(browser, hostile):
    with opened_quietly(browser, hostile) as page:
        panel = page.locator("#panel")
        page.locator('[data-row="0"] [data-column="2"]').click()  # of the hostile fact, under version 3
        assert panel.locator("h3").text_content() == HOSTILE
        assert panel.locator("p").text_content() == (
            "Certified since version 4. Its margin under version 4 is 0.300 nats. "
            "Version 3 cost it most: from 0.400 to \N{MINUS SIGN}0.100 nats."
        )
        assert panel.locator("tr.on td").all_text_contents() == [
            "3", "lost", "\N{MINUS SIGN}0.100", "\N{MINUS SIGN}0.500",
        ]  # fmt: skip
        assert [text for text in panel.locator("dd").all_text_contents() if HOSTILE in text] == [
            f"What is {HOSTILE}? ", f"hunter2-and-more {HOSTILE}", f"hunter2-and-more {HOSTILE}!",
        ]  # fmt: skip

        page.locator(".name", has_text="door-b").click()
        assert panel.locator("p").text_content() == "Retracted, gone since version 2."

        panel.locator("table button", has_text="2").click()  # the version, from the table of the fact
        assert panel.locator("h3").text_content() == "Version 2"
        assert panel.locator("dd").first.text_content() == "2026-11-03 12:00 UTC, from version 1"
        assert "8,484 tokens forwarded" in panel.text_content()
        assert "+0.004 nats a token on neutral text" in panel.text_content()
        assert "rounding0.00400 nats at most" in panel.text_content()

        page.locator(".version").nth(3).click()
        assert panel.locator("h4").all_text_contents() == ["1 changed", "Margins that it took most from"]
        panel.locator("table button", has_text="notice").click()
        assert panel.locator("h3").text_content() == "notice"


def test_on_a_narrow_screen_the_panel_comes_into_view_and_leads_back(browser, hostile):
    with opened_quietly(browser, hostile, width=390) as page:
        page.locator(".name", has_text="price").click()
        shown = page.locator("#panel h3").bounding_box()
        assert 0 <= shown["y"] < 200
        page.locator("#panel .back").click()
        assert page.evaluate(f"{ACTIVE}.textContent") == "price"


def test_the_keyboard_reaches_everything(browser, hostile):
    with opened_quietly(browser, hostile) as page:
        label = f"{ACTIVE}.getAttribute('aria-label') ?? {ACTIVE}.textContent"
        page.locator("#order").focus()
        page.keyboard.press("Tab")
        assert page.evaluate(label) == "version 4, 2026-11-05, ~1"
        for key, expected in (
            ("ArrowDown", "version 4: certified, margin 0.300 nats"),
            ("ArrowLeft", "version 3: lost, margin \N{MINUS SIGN}0.100 nats"),
            ("ArrowDown", "version 3: retracted, gone, log p +1.500 nats beside the model alone"),
            ("Home", "door-b"),
            ("ArrowLeft", "door-b"),
            ("Control+End", "version 4: certified, margin 0.400 nats, new target"),
            ("PageUp", "version 4: certified, margin 0.300 nats"),
            ("Control+Home", "version 1, 2026-11-02, +3"),
            ("End", "version 4, 2026-11-05, ~1"),
            ("ArrowDown", "version 4: certified, margin 0.300 nats"),
        ):
            page.keyboard.press(key)
            assert page.evaluate(label) == expected, key
        page.keyboard.press("Enter")
        assert page.evaluate(f"{ACTIVE}.closest('#panel') && {ACTIVE}.textContent") == HOSTILE
        page.keyboard.press("Escape")
        assert page.evaluate(label) == "version 4: certified, margin 0.300 nats"
        page.keyboard.press("ArrowUp")
        page.keyboard.press("Enter")
        assert page.evaluate(f"{ACTIVE}.textContent") == "Version 4"


def test_every_state_has_a_sign_of_its_own_beside_its_colour(browser, large):
    with opened_quietly(browser, large) as page:
        page.locator("#which").select_option("cost")
        signs = page.evaluate(
            "[...new Set([...document.querySelectorAll('.cell')].map("
            "cell => `${cell.title.replace(/.*?: /, '').split(', margin')[0].split(', log')[0]}|${cell.textContent}`))]"
        )
        signs = dict(sign.split("|") for sign in signs)
        assert signs == {
            "certified": "", "at risk": "?", "lost": "\N{MULTIPLICATION SIGN}", "retracted, gone": "\N{EN DASH}",
            "not held": "",
        }  # fmt: skip
        filled = "getComputedStyle(document.querySelector(%r), '::before').backgroundColor"
        assert page.evaluate(filled % ".cell.c") != page.evaluate(filled % ".cell:not(.c, .k-r, .k-l, .k-g)")


def test_a_thousand_facts_under_fifty_versions_stay_quick(browser, large):
    assert large.stat().st_size < 600_000
    with opened_quietly(browser, large) as page:
        assert page.locator("#matches").text_content() == "1,000 of 1,000 facts"
        assert page.locator(".cell").count() < 50 * 60  # only the rows in sight
        page.locator("#heat .name").first.click()
        page.keyboard.press("Escape")
        page.keyboard.press("Control+End")
        assert page.evaluate(f"{ACTIVE}.title").startswith("fact-50-019, version 50: ")
        box, cell = (
            page.locator("#heat").bounding_box(),
            page.evaluate(
                f"(({{top, bottom, left, right}}) => ({{top, bottom, left, right}}))({ACTIVE}.getBoundingClientRect())"
            ),
        )
        assert box["y"] <= cell["top"] < cell["bottom"] <= box["y"] + box["height"]
        assert box["x"] <= cell["left"] < cell["right"] <= box["x"] + box["width"]
        page.locator("#heat").evaluate("heat => { heat.scrollTop = 500 * 24; }")
        page.wait_for_function("document.querySelector('[data-row=\"505\"]')")
        assert page.locator(".cell").count() < 50 * 60


def test_facts_are_found_sorted_and_filtered(browser, large):
    with opened_quietly(browser, large) as page:
        names = page.locator("#heat .name")
        page.locator("#find").fill("FACT-07-01")
        assert page.locator("#matches").text_content() == "10 of 1,000 facts"
        assert names.all_text_contents() == [f"fact-07-01{k}" for k in range(10)]
        page.locator("#find").fill("nothing like it")
        assert page.locator("#heat").text_content().endswith("No fact matches.")
        page.locator("#find").fill("")
        page.locator("#order").select_option("margin")
        latest = '.heat-row [data-column="49"]'
        margins = [
            float(found[1].replace("\N{MINUS SIGN}", "-"))
            for title in page.locator(latest).evaluate_all("cells => cells.map(cell => cell.title)")
            if (found := re.search(r"margin (\S+) nats", title))
        ]
        assert len(margins) > 10
        assert margins == sorted(margins)
        page.locator("#which").select_option("unsafe")
        assert set(page.locator(latest).all_text_contents()) <= {"?", "\N{MULTIPLICATION SIGN}"}
        page.locator("#which").select_option("retracted")
        shown = page.locator("#heat .heat-row").evaluate_all("rows => rows.map(row => row.textContent)")
        assert shown
        assert all("\N{EN DASH}" in row for row in shown)
