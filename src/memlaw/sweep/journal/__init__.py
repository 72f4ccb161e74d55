"""The journal of a probe: one immutable file for every finished cell, and everything else rebuilt from them.

    OUT/probe.json          what this directory is the probe of; written once, by the first run
    OUT/cells/KEY.json      the result of a cell; first writer wins, never changed again
    OUT/failures/KEY.json   why a cell could not be finished the last time; means nothing once the cell is there
    OUT/checkpoints/        packs in training, to be gone on with
    OUT/quarantine/         files that cannot be trusted, kept for a person to look at
    OUT/results.parquet     all of it as one table; may be deleted, is rebuilt and never read back

A file appears under its name whole or not at all, and holds the SHA-256 of its body, which is checked whenever it is
read. Any number of processes may write to one directory, and any of them may be killed at any moment: a cell that was
acknowledged is there, once, readable. No decision looks at a clock or at the time of a file.
Kills, full disks, damaged files and file systems without hard links are covered; disks that lie about fsync are not.
"""

from memlaw.sweep.journal.journal import Journal
from memlaw.sweep.journal.spec import PROBE, ProbeSpec
from memlaw.sweep.journal.status import CheckpointStatus, PackCounts, ProbeStatus, Reason, status
from memlaw.sweep.journal.table import COLUMNS, TABLE
from memlaw.sweep.journal.upkeep import Fault, RebuildReport, VerifyReport, export, rebuild, verify

__all__ = [
    "COLUMNS",
    "PROBE",
    "TABLE",
    "CheckpointStatus",
    "Fault",
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
