from __future__ import annotations

from typing import Any


def words(lines: Any) -> str:
    """The text without its layout."""
    return " ".join(" ".join(lines).split())
