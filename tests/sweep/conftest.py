from __future__ import annotations

from pathlib import Path

import pytest

from helpers.probes import FACTS, GRID, on_one_thread
from memlaw.model.base import Base, load
from memlaw.sweep.config import ProbeConfig
from memlaw.sweep.probe import probe


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Base:
    """A base that another process can load."""
    made, folder = on_one_thread(), tmp_path_factory.mktemp("base")
    made.model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    return load(str(folder), device="cpu")


@pytest.fixture(scope="module")
def quiet(base, tmp_path_factory) -> Path:
    """The directory of a probe of GRID, trained inline, that nothing disturbed."""
    out = tmp_path_factory.mktemp("probe") / "out"
    probe(base, FACTS, ProbeConfig(**GRID), out)
    return out
