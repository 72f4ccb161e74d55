from __future__ import annotations

import pytest

from memlaw.core.stages import listening, tell


def test_progress_is_told_to_the_listener_that_was_set_last_and_otherwise_to_nobody() -> None:
    outer: list[tuple[str, int, int]] = []
    inner: list[tuple[str, int, int]] = []

    def tell_both() -> None:
        with listening(lambda *news: inner.append(news)):
            tell("rows", 1, 2)
            raise ValueError("while it listens")

    tell("rows", 0, 2)
    with listening(lambda *news: outer.append(news)):
        with pytest.raises(ValueError, match="while it listens"):
            tell_both()
        tell("rows", 2, 2)
    tell("rows", 3, 3)
    assert inner == [("rows", 1, 2)]
    assert outer == [("rows", 2, 2)]
