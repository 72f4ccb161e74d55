"""A small probe on a machine that is busy with something else: what waiting threads cost.

    python benchmarks/busy.py

Threads of OpenMP spin while they wait for each other, which takes the time that the other process would use. `default`
is memlaw with OpenMP's own policy, `passive` what the command line sets, `one thread` OMP_NUM_THREADS=1. Each line:
seconds by the clock and of processor time, quiet and beside one process that computes without end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CASES = {
    "default": {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "300000"},
    "passive": {},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
PROBE = ["probe", "task:random:tokens=64", "--ranks", "1,2,4", "--lengths", "32,64", "--steps", "100", "--json"]
UNSET = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def measured(settings: dict[str, str]) -> dict[str, float]:
    env = {name: value for name, value in os.environ.items() if name not in UNSET} | settings
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "memlaw", *PROBE, "--out", str(Path(folder, "P"))]
        begun, before = time.perf_counter(), os.times()
        subprocess.run(command, env=env, check=True, capture_output=True)
        after = os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return {"seconds": round(time.perf_counter() - begun, 1), "processor_seconds": round(processor, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--situations", default="quiet,busy")
    for situation in parser.parse_args().situations.split(","):
        spin = [sys.executable, "-c", "while True: pass"]
        other = subprocess.Popen(spin) if situation == "busy" else None
        try:
            for case, settings in CASES.items():
                line = {"benchmark": "busy", "case": f"{situation}, {case}", **measured(settings)}
                print(json.dumps(line), flush=True)
        finally:
            if other is not None:
                other.kill()
                other.wait()


if __name__ == "__main__":
    main()
