"""A ledger of real adapters on a tiny model: two updates, in seconds."""

from __future__ import annotations

import math
from pathlib import Path

from memlaw.core.facts import Fact
from memlaw.ledger.gate import Terms
from memlaw.ledger.store import Store
from memlaw.ledger.update import NewLedger, Request, create, update
from memlaw.model.base import Base

FIRST = (Fact("key a:", "qmzkdw", "a"), Fact("key b:", "hxfjuo", "b"), Fact("key c:", "sygnei", "c"))
SECOND = (Fact("key a:", "plvtrb", "a"), Fact("key d:", "wkodcm", "d"))
"""Changes a and adds d."""


def two_updates(root: Path, base: Base, *, texts: bool = True) -> Store:
    """Version 1 holds a, b and c; version 2 changes a, adds d and retracts b."""
    store, terms = Store(root), Terms(max_harm=math.inf)
    create(store, base, NewLedger(16, texts=texts))
    update(store, base, Request(FIRST, terms=terms))
    update(store, base, Request(SECOND, retract=("b",), originals=FIRST, terms=terms))
    return store
