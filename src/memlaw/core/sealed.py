"""The format of sealed files, one line: {"body":BODY,"sha256":"HEX"}.

BODY is canonical JSON, and HEX is the SHA-256 of its bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from memlaw.core.canonical import canonical_json, digest
from memlaw.core.errors import ConfigError

UNKNOWN_FIELDS = (KeyError, TypeError, ConfigError, ValidationError)
"""What reading an intact body raises if another version of memlaw wrote it."""

_SEALED = re.compile(rb'\{"body":(.*),"sha256":"([0-9a-f]{64})"\}\n', re.DOTALL)


@dataclass(frozen=True)
class Fault:
    """A file that cannot be used, and why."""

    path: str
    """Relative to the directory that was checked."""
    why: str


def seal(body: Any) -> bytes:
    """The content of a file for `body`. Raises ValueError for NaN and infinities, which JSON does not have."""
    return (canonical_json({"body": body, "sha256": digest(body)}) + "\n").encode("utf-8", "surrogatepass")


def unseal(content: bytes) -> Any:
    """The body. Raises ValueError, which says what is wrong, if a single bit has changed since `seal`."""
    parts = _SEALED.fullmatch(content)
    if parts is None:
        raise ValueError("it is cut short or not a file that memlaw sealed")
    if hashlib.sha256(parts[1]).hexdigest().encode() != parts[2]:
        raise ValueError("its SHA-256 does not match")
    return json.loads(parts[1])
