"""The journal of a probe: one immutable file for every finished cell, and everything else rebuilt from them.

    OUT/probe.json          the settings and packs of the probe; written once, by the first run
    OUT/cells/KEY.json      the result of a cell; the first writer wins, and the file never changes
    OUT/failures/KEY.json   why a cell last failed; ignored once the cell has a result
    OUT/checkpoints/        packs in training, from which the next run resumes
    OUT/quarantine/         files that cannot be trusted, kept for inspection
    OUT/results.parquet     every result as one table; rebuilt from the files above, never read back

A file appears whole or not at all, and holds the SHA-256 of its body, which is checked on every read. Any number of
processes may write to one directory, and any of them may be killed at any moment: a cell that was acknowledged is
there, once, and readable. No decision depends on a clock or on the time of a file.
Kills, full disks, damaged files and file systems without hard links are covered; disks that lie about fsync are not.
"""

from memlaw.sweep.journal.journal import Journal
from memlaw.sweep.journal.spec import PROBE, ProbeSpec
from memlaw.sweep.journal.status import CheckpointStatus, PackCounts, ProbeStatus, Reason, status
from memlaw.sweep.journal.table import COLUMNS, TABLE
from memlaw.sweep.journal.upkeep import RebuildReport, VerifyReport, export, rebuild, verify

__all__ = [
    "COLUMNS",
    "PROBE",
    "TABLE",
    "CheckpointStatus",
    "Journal",
    "PackCounts",
    "ProbeSpec",
    "ProbeStatus",
    "Reason",
    "RebuildReport",
    "VerifyReport",
    "export",
    "rebuild",
    "status",
    "verify",
]
