"""Sealed files (`memlaw.core.sealed`) that hold the result of a cell."""

from __future__ import annotations

from typing import Any

from memlaw.core.canonical import digest
from memlaw.core.sealed import unseal


def unseal_cell(key: str, content: bytes) -> dict[str, Any]:
    """The result of the cell `key`, as JSON values. Raises ValueError, which says what is wrong.

    The key is hashed from the text of the file, not from a `Cell`: later versions have more settings and must still
    recognise the cells of this one.
    """
    body = unseal(content)
    if not isinstance(body, dict) or "cell" not in body or digest(body["cell"]) != key:
        raise ValueError("it holds a cell other than the one in its name")
    return body
