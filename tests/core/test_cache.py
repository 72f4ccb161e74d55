"""Where computed files are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from memlaw.core.cache import VARIABLE, cache_folder


def test_the_variable_names_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert cache_folder("reach") == tmp_path / "reach"
    assert not (tmp_path / "reach").exists()


def test_otherwise_it_lies_in_the_cache_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("reach") == tmp_path / "memlaw" / "reach"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder("reach") == tmp_path / ".cache" / "memlaw" / "reach"
