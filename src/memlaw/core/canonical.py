"""Canonical JSON, one spelling for every value, and its hash."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any


def canonical_json(value: Any) -> str:
    """`value` with sorted keys, no spaces and no NaN: the spelling that hashes and journals rely on."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256, in hexadecimal, of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()


def to_dict(record: Any) -> dict[str, Any]:
    """A record as plain JSON values (tuples become lists)."""
    plain: dict[str, Any] = json.loads(canonical_json(dataclasses.asdict(record)))
    return plain
