"""The format of sealed files, one line: {"body":BODY,"sha256":"HEX"}.

BODY is canonical JSON, and HEX is the SHA-256 of its bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from memlaw.core.canonical import canonical_json, digest
from memlaw.core.errors import ConfigError, MemlawError

UNKNOWN_FIELDS = (KeyError, TypeError, ConfigError, ValidationError)
"""What reading an intact body raises if another version of memlaw wrote it."""

_SEALED = re.compile(rb'\{"body":(.*),"sha256":"([0-9a-f]{64})"\}\n', re.DOTALL)


T = TypeVar("T")


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


class Inspection:
    """Reads the files of a directory, changing nothing, and collects the faults that it meets."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.damaged: list[Fault] = []
        """Files whose content has changed since they were written."""
        self.unreadable: list[Fault] = []
        """Files that the system cannot read, or that another version of memlaw wrote."""

    def read(self, path: Path, parse: Callable[[bytes], T]) -> T | None:
        """What `parse` makes of a file; None if it has a fault, which is then in one of the lists."""
        try:
            return parse(path.read_bytes())
        except UNKNOWN_FIELDS:
            self.unreadable.append(self.fault(path, "it has fields or values of another version of memlaw"))
        except MemlawError:  # what `parse` has to say to the user
            raise
        except OSError as error:
            self.unreadable.append(self.fault(path, error.strerror or str(error)))
        except ValueError as error:
            self.damaged.append(self.fault(path, str(error)))
        return None

    def fault(self, path: Path, why: str) -> Fault:
        return Fault(path.relative_to(self.root).as_posix(), why)
