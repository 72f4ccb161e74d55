"""SIGKILL the processes of a probe again and again: no acknowledged result is lost, duplicated or unreadable.

    python benchmarks/chaos/driver_kills.py [--inline 1500] [--isolated 20] [--workers 400] [--drivers 30] [--nodes 30]

`inline` kills drivers that train real tiny cells in their own process, `isolated` drivers whose packs have a process
each, `workers`, `drivers` and `nodes` those of Ray clusters with simulated cells. Killed runs are repeated until their
probe is complete; its cells must equal those of an undisturbed run byte for byte.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from engine_simulated import acknowledge, cells_of, run_all, specs

from memlaw.core.cells import CellResult
from memlaw.core.facts import Fact, MemorySet
from memlaw.sweep.engines.base import Inline
from memlaw.sweep.engines.isolated import Isolated
from memlaw.sweep.engines.ray import OnRay
from memlaw.sweep.journal import Journal
from memlaw.sweep.scheduler import ProbeProgress, ProbeRun

FACTS = MemorySet(tuple(Fact(f"key {n}:", f"#{7919 * n % 10_000:04d}", f"f{n}") for n in range(1, 9)), False, "codes")

GRID: dict[str, Any] = {"ranks": [1, 2, 3], "lengths": [5, 10, 15, 20], "methods": ["sft", "ot"], "steps": 4}

MODELING = "transformers.models.qwen3.modeling_qwen3"

FORKED = multiprocessing.get_context("forkserver")
"""A server that has loaded the libraries but started no thread, so that a driver starts in milliseconds."""


def drive_probe(model: str, out: str, isolated: bool) -> None:
    """A whole probe on one thread; a cell is acknowledged once the probe reports it."""
    import torch

    from memlaw.model.base import load
    from memlaw.sweep.config import ProbeConfig
    from memlaw.sweep.probe import probe

    def on_progress(progress: ProbeProgress) -> None:
        if isinstance(progress.news, CellResult):
            acknowledge(Path(out), progress.news.cell.key)
        elif isolated:  # reported after the pack
            for name in cells_of(Path(out)):
                acknowledge(Path(out), name.removesuffix(".json"))

    torch.set_num_threads(1)
    engine = Isolated() if isolated else Inline()
    probe(load(model, device="cpu"), FACTS, ProbeConfig(**GRID), out, ProbeRun(engine=engine, on_progress=on_progress))


def drive_simulated(out: str) -> None:
    tempfile.tempdir = str(Path(out).parent)  # a killed driver cannot clean up after its Ray
    for _ in run_all(OnRay(cpus=2), specs(40, 5, 0.2), Path(out)):
        pass


class Checked:
    """Counts kills and checks, after each of them, that all acknowledged cells are there."""

    def __init__(self, quiet: dict[str, bytes]) -> None:
        self.quiet, self.kills, self.probes, self.acknowledged = quiet, 0, 0, 0

    def check(self, out: Path, *, whole: bool) -> None:
        acks = out.with_suffix(".acks")
        acknowledged = acks.read_text().split() if acks.exists() else []
        there = cells_of(out)
        lost = [key for key in acknowledged if f"{key}.json" not in there]
        other = [name for name, content in there.items() if self.quiet.get(name) != content]
        if lost or other or list(out.glob("quarantine/*")) or (whole and there != self.quiet):
            raise SystemExit(f"FAILED in {out}: lost {lost}, changed {other}, {len(there)} of {len(self.quiet)} cells")
        if whole:
            findings = Journal(out)
            assert len(findings.results()) == len(self.quiet), findings.findings
            self.probes += 1
            self.acknowledged += len(set(acknowledged))


def kill_drivers(checked: Checked, wanted: int, start: Callable[[Path], Any], longest: float, seed: int) -> None:
    """Start drivers and kill them at random moments until each probe is complete."""
    dice = random.Random(seed)
    while checked.kills < wanted:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            out, whole = Path(folder, "out"), False
            while not whole:
                driver = start(out)
                driver.join(dice.uniform(0, longest) if checked.kills < wanted else None)
                whole = driver.exitcode == 0
                if driver.exitcode is None:
                    kill(driver.pid)
                    driver.join()
                    checked.kills += 1
                elif not whole:
                    raise SystemExit(f"FAILED: a driver that was not killed ended with {driver.exitcode}")
                checked.check(out, whole=whole)


def kill(pid: int) -> None:
    with suppress(psutil.NoSuchProcess):
        psutil.Process(pid).kill()


@contextmanager
def striking(checked: Checked, wanted: int, every: tuple[float, float], strike: Callable[[], bool]) -> Iterator[None]:
    """Call `strike` at random intervals until it has returned True `wanted` times."""
    ended, dice = threading.Event(), random.Random(0)

    def strikes() -> None:
        while checked.kills < wanted and not ended.wait(dice.uniform(*every)):
            checked.kills += strike()

    thread = threading.Thread(target=strikes)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def kill_a_worker() -> bool:
    dice = random.Random()
    workers = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if process.cmdline()[:1] == ["ray::pack"]:
                workers.append(process)
    if not workers:
        return False
    kill(dice.choice(workers).pid)
    return True


def kill_workers(checked: Checked, wanted: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        while checked.kills < wanted:
            out = Path(folder, f"out{checked.probes}")
            with striking(checked, wanted, (0.0, 1.0), kill_a_worker):
                for _ in run_all(OnRay(cpus=2), specs(40, 5, 0.2), out):
                    pass
            checked.check(out, whole=True)


def kill_nodes(checked: Checked, wanted: int) -> None:
    """Two nodes beside a head without CPUs; a killed node is replaced."""
    from memlaw.sweep.engines import ray

    ray._imported(local=True)
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]

    dice = random.Random(0)
    try:
        with tempfile.TemporaryDirectory() as folder:
            while checked.kills < wanted:
                out = Path(folder, f"out{checked.probes}")
                for _ in run_all(OnRay(cluster.address), specs(40, 5, 0.2), out):
                    if checked.kills < wanted and dice.random() < 0.2:  # the other packs go on meanwhile
                        cluster.remove_node(nodes.pop(0), allow_graceful=False)
                        checked.kills += 1
                        nodes.append(cluster.add_node(num_cpus=1))
                checked.check(out, whole=True)
    finally:
        cluster.shutdown()


def saved_model(folder: str) -> str:
    """A model of four small layers on disk."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
    from helpers import tiny

    tiny.model().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, count in {"inline": 1500, "isolated": 20, "workers": 400, "drivers": 30, "nodes": 30}.items():
        parser.add_argument(f"--{name}", type=int, default=count, metavar="KILLS")
    options = vars(parser.parse_args())
    os.environ["OMP_NUM_THREADS"] = os.environ["HF_HUB_OFFLINE"] = "1"
    FORKED.set_forkserver_preload(["memlaw.training.stack", "memlaw.diagnosis.measure", "memlaw.sweep.probe", MODELING])
    with tempfile.TemporaryDirectory() as folder:
        model = saved_model(f"{folder}/model")
        drive_probe(model, f"{folder}/quiet", False)
        trained = cells_of(Path(folder, "quiet"))
        for _ in run_all(Inline(), specs(40, 5, 0.0), Path(folder, "simulated")):
            pass
        simulated = cells_of(Path(folder, "simulated"))

        def start(target: Callable[..., None], *more: Any) -> Callable[[Path], Any]:
            def started(out: Path) -> Any:
                arguments = (model, str(out), *more) if more else (str(out),)
                process = FORKED.Process(target=target, args=arguments)
                process.start()
                return process

            return started

        runs: dict[str, tuple[dict[str, bytes], Callable[[Checked, int], None]]] = {
            "inline": (trained, lambda c, n: kill_drivers(c, n, start(drive_probe, False), 1.5, seed=1)),
            "isolated": (trained, lambda c, n: kill_drivers(c, n, start(drive_probe, True), 20.0, seed=2)),
            "workers": (simulated, kill_workers),
            "drivers": (simulated, lambda c, n: kill_drivers(c, n, start(drive_simulated), 15.0, seed=3)),
            "nodes": (simulated, kill_nodes),
        }
        for name, (quiet, run) in runs.items():
            if options[name]:
                checked, begun = Checked(quiet), time.monotonic()
                run(checked, options[name])
                print(json.dumps({
                    "benchmark": "driver_kills", "case": name, "kills": checked.kills, "probes": checked.probes,
                    "acknowledged": checked.acknowledged, "lost": 0, "doubled": 0, "unreadable": 0,
                    "identical": True, "seconds": round(time.monotonic() - begun),
                }), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
