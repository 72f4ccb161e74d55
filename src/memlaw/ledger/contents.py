"""What the sealed files of a ledger say: their bodies as records, checked as they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memlaw.core.canonical import to_dict
from memlaw.core.config import identity
from memlaw.core.errors import LedgerError
from memlaw.core.sealed import unseal
from memlaw.ledger.records import FORMAT, Audit, Settings, Version, duplicates, from_dict


@dataclass(frozen=True)
class Manifest:
    """A version, and the hashes of the files beside its manifest."""

    version: Version
    files: Mapping[str, str]
    """Path in the version's folder, with slashes -> SHA-256."""
    sha256: str
    """Of the manifest file, as HEAD names it."""


def parse_settings(content: bytes) -> Settings:
    """The content of ledger.json. Raises LedgerError for a later format, ValueError, or one of UNKNOWN_FIELDS."""
    body = unseal(content)
    written = body.get("format") if isinstance(body, dict) else None
    if isinstance(written, int) and written > FORMAT:
        raise LedgerError(
            f"The ledger was written by a later version of memlaw (format {written}; this one reads format {FORMAT}). "
            "Upgrade memlaw: what this version would read or write might be wrong."
        )
    return from_dict(Settings, body)


def settings_to_dict(settings: Settings) -> dict[str, Any]:
    """The content of ledger.json."""
    return to_dict(settings) | {"train": identity(settings.train)}


def parse_head(content: bytes) -> tuple[int, str]:
    """The content of HEAD. Raises ValueError, or one of UNKNOWN_FIELDS."""
    body = unseal(content)
    return int(body["version"]), str(body["manifest"])


def parse_manifest(number: int, content: bytes) -> Manifest:
    """The content of a manifest. Raises ValueError, or one of UNKNOWN_FIELDS."""
    body = unseal(content)
    version = from_dict(Version, body["version"])
    if version.number != number:
        raise ValueError(f"it is of version {version.number}")
    return Manifest(version, dict(body["files"]), hashlib.sha256(content).hexdigest())


def parse_audit(number: int, content: bytes) -> Audit:
    """The content of an audit. Raises ValueError, or one of UNKNOWN_FIELDS."""
    audit = from_dict(Audit, unseal(content))
    if audit.version != number:
        raise ValueError(f"it is of version {audit.version}")
    return audit


def check_consistent(version: Version) -> None:
    """Raise ValueError for a version that contradicts itself."""
    held = {fact.pair for fact in version.held}
    doubled = duplicates(fact.id for fact in version.held) | duplicates(fact.prompt for fact in version.held)
    both = [old.id for old in version.retracted if old.pair in held]
    if doubled or both:
        raise ValueError(f"Version {version.number} holds facts twice, or facts that it has retracted: {doubled}{both}")
    homeless = {fact.adapter for fact in version.held} - {one.number for one in version.adapters}
    if homeless:
        raise ValueError(f"Version {version.number} holds facts in adapters that it does not have: {homeless}")
