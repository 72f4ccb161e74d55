from __future__ import annotations

import pytest

from helpers.browsers import CHROMIUM, QUIET
from helpers.pages import content
from memlaw.report import render


@pytest.fixture(scope="module")
def full() -> str:
    return render(content())


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=QUIET)
        yield chromium
        chromium.close()
