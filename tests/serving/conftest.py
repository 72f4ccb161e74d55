"""A tiny model with an adapter that holds four facts, shared by the tests of this room."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import memlaw
from helpers import tiny
from helpers.serving import FACTS, KINDS, Fake, Mind, Running, Start, serving
from memlaw.adapter.peft import attach
from memlaw.core.config import ADAMW
from memlaw.model.base import Base


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained until every fact of FACTS is recalled."""
    base, out = tiny.base(), tmp_path_factory.mktemp("serving") / "A"
    trained = memlaw.train(
        base.model, base.tokenizer, FACTS, rank=16, config=ADAMW, protect=0.0, learning_rate=2e-2, out=out
    )
    assert trained.status == "finished"
    return out


@pytest.fixture(scope="session")
def minds(adapter: Path) -> Iterator[dict[str, Mind]]:
    """The model, and the model with the adapter."""
    bare, adapted = tiny.base(), tiny.base()
    with ExitStack() as stack:
        stack.enter_context(attach(adapted, adapter))
        yield {"base": Mind(bare), "facts": Mind(adapted)}


@pytest.fixture(scope="session")
def adapted(minds: dict[str, Mind]) -> Base:
    return minds["facts"].base


@pytest.fixture(scope="session")
def start(minds: dict[str, Mind]) -> Start:
    """Starts a server of a kind, for the model and its adapter; keywords change the kind's own settings."""

    @contextmanager
    def started(kind: str, **settings: object) -> Iterator[Running]:
        fake: Fake = KINDS[kind](minds)
        for name, value in settings.items():
            setattr(fake, name, value)
        with serving(fake.routes()) as running:
            yield running

    return started
