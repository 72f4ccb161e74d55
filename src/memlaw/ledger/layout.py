"""The names of the files and folders of a ledger."""

from __future__ import annotations

LEDGER, HEAD, LOCK, VIEW = "ledger.json", "HEAD", "lock", "ledger.db"
VERSIONS, AUDITS = "versions", "audits"
MANIFEST, TEXTS, ADAPTERS = "manifest.json", "facts.jsonl", "adapters"

PRIVATE = 0o600
"""Mode of files with texts or the key: readable by their owner only."""


def version_folder(number: int) -> str:
    """The name of a version's folder in VERSIONS, and of its audit in AUDITS."""
    return f"{number:06d}"


def adapter_folder(number: int) -> str:
    """The name of an adapter's folder in the folder of a version."""
    return f"{ADAPTERS}/{number}"
