from __future__ import annotations

import pytest

from helpers.pages import content
from memlaw.report import render


@pytest.fixture(scope="module")
def full() -> str:
    return render(content())
