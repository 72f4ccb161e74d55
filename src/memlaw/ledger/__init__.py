"""The ledger: facts that come, change and go, as immutable versions of adapters and of what they hold.

    KB/ledger.json           what all versions share: base, tokenizer, placement, training, the key of the hashes
    KB/versions/000007/      a version: manifest.json says what it holds and seals the other files, adapters/1/ is an
                             adapter in PEFT's format, facts.jsonl has the texts of the facts that it introduced
    KB/HEAD                  which version is current
    KB/audits/000007.json    the latest audit of a version
    KB/ledger.db             a view for queries (SQLite); rebuilt from the files above, never read back
    KB/lock                  held by the only writer

A version appears whole, by one rename, and never changes; HEAD then moves to it, by another. Killed anywhere, the
ledger is the version before or the new one. A version that HEAD never reached stays, and `rollback` can make it
current; numbers are never used twice. Every file holds the SHA-256 of its body or is named with its own in a manifest.
No decision depends on a clock. Kills, full disks and damaged files are covered; disks that lie about fsync are not.

Manifests name facts by id and by keyed hashes of prompt and target. Texts are in facts.jsonl alone, readable by their
owner only, or nowhere.
"""

from memlaw.ledger.ledger import AuditOptions, CreateOptions, Ledger, UpdateOptions, create, open  # noqa: A004 - as gzip.open
from memlaw.ledger.records import Adapter, Audit, Change, Effort, Held, Retracted, Room, Settings, Status, Version
from memlaw.ledger.review import Review
from memlaw.ledger.served import Routes, routes
from memlaw.ledger.upkeep import VerifyReport
from memlaw.ledger.view import Entry, Log, Seen

__all__ = [
    "Adapter",
    "Audit",
    "AuditOptions",
    "Change",
    "CreateOptions",
    "Effort",
    "Entry",
    "Held",
    "Ledger",
    "Log",
    "Retracted",
    "Review",
    "Room",
    "Routes",
    "Seen",
    "Settings",
    "Status",
    "UpdateOptions",
    "VerifyReport",
    "Version",
    "create",
    "open",
    "routes",
]
