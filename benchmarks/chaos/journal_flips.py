"""Flip single bits in the files of a journal: every flip is detected, and no intact file is reported as damaged.

python benchmarks/chaos/journal_flips.py [--flips 10000] [--seed 0]
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections import Counter
from pathlib import Path

from journal_cells import SPEC, report, result

from memlaw.core import files
from memlaw.sweep.journal import Journal, verify


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flips", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        fill(root)
        flips, missed, accused = flip(root, options.flips, random.Random(options.seed))
    report("journal, one-bit flips", flips=flips, missed=missed, accused=accused, seed=options.seed)


def fill(root: Path) -> None:
    """probe.json, cells of every kind, and a signed checkpoint."""
    journal = Journal(root)
    journal.claim(SPEC)
    for rank in range(1, 9):
        journal.publish(result(rank, "é\u2028" * (rank % 3), ("finished", "diverged", "failed")[rank % 3]))
    files.make_folders(journal.checkpoint(SPEC.packs[0]))
    with files.new_folder(journal.checkpoint(SPEC.packs[0]) / "1") as saved:
        (saved / "tensors.safetensors").write_bytes(random.Random(1).randbytes(2000))
        (saved / "state.json").write_text('{"step":7}')
        files.sign(saved)


def flip(root: Path, count: int, chance: random.Random) -> tuple[dict[str, int], int, int]:
    """(flips by folder, flips that went undetected, intact files that were reported as damaged)."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    flips: Counter[str] = Counter()
    missed = accused = 0
    for _ in range(count):
        file = chance.choice(files)
        good = file.read_bytes()
        bit = chance.randrange(8 * len(good))
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        file.write_bytes(bad)
        name = str(file.relative_to(root))
        damaged = {fault.path for fault in verify(root).damaged}
        struck = {path for path in damaged if name == path or name.startswith(f"{path}/")}
        missed += not struck
        accused += len(damaged - struck)
        flips[name.partition("/")[0]] += 1
        file.write_bytes(good)
    return dict(flips), missed, accused


if __name__ == "__main__":
    main()
