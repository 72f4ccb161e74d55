from __future__ import annotations

import pytest

from helpers import tiny
from memlaw.model.base import Base


@pytest.fixture(scope="module")
def base() -> Base:
    return tiny.base()
