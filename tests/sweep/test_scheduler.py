"""Packs run anywhere, in any order, more than once, and die in any way: results equal those of a quiet run."""

from __future__ import annotations

import dataclasses
import signal
import warnings
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from helpers import tiny
from helpers.probes import FACTS, GRID, SECRETS, assert_same, cells_of
from memlaw.core.cells import CellResult
from memlaw.core.config import Execution
from memlaw.core.errors import ConfigError, JournalError
from memlaw.sweep.config import ProbeConfig
from memlaw.sweep.engines.base import Outcome, Outcomes, Resources, Spec, WorkerDiedError
from memlaw.sweep.engines.shards import Shard
from memlaw.sweep.journal import Journal
from memlaw.sweep.pack import Pack, PackSpec, run_pack
from memlaw.sweep.probe import probe
from memlaw.sweep.scheduler import RETRIES, ProbeProgress, ProbeRun


class Elsewhere:
    """Stands in for an engine of other processes but runs here; calls that `strike` hits never start."""

    in_process = False

    def __init__(
        self, *, parallel: bool = False, strike: Callable[[int], Exception | None] = lambda _call: None
    ) -> None:
        self.parallel, self.strike, self.specs = parallel, strike, list[PackSpec]()

    def run(self, fn: Callable[[Spec], object], specs: deque[Spec], _resources: Resources, /) -> Outcomes[Spec]:
        while specs:
            spec = specs.popleft()
            self.specs.append(spec)
            error = self.strike(len(self.specs) - 1)
            if error is None:
                fn(spec)
            yield Outcome(spec, error)


def test_a_pack_run_from_its_spec_gives_the_same_bits_and_a_rerun_does_nothing(base, quiet, tmp_path):
    engine = Elsewhere(parallel=True)
    events: list[ProbeProgress] = []
    summary = probe(
        base, FACTS, ProbeConfig(**GRID), tmp_path / "out", ProbeRun(engine=engine, on_progress=events.append)
    )
    assert (summary.cells, summary.finished, summary.failed) == (8, 8, 0)
    assert_same(tmp_path / "out", quiet)
    assert [spec.cells[0].length for spec in engine.specs] == [20, 10], "the longest first"
    assert [(event.pack, event.recorded, event.failed) for event in events] == [(2, 4, 0), (1, 8, 0)]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    for spec in engine.specs:
        assert run_pack(spec, str(tmp_path / "out")) == [cell.key for cell in spec.cells]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def test_another_model_under_the_same_name_stops_the_probe(base, tmp_path):
    changed = dataclasses.replace(tiny.base(seed=1), name=base.name)
    with pytest.raises(ConfigError, match="got a model other than the one the probe was started with"):
        probe(changed, FACTS, ProbeConfig(**GRID), tmp_path / "out", ProbeRun(engine=Elsewhere()))
    assert Journal(tmp_path / "out").results() == ()


def dies(*calls: int) -> Callable[[int], Exception | None]:
    return lambda call: WorkerDiedError("The process of the pack was ended by SIGKILL.") if call in calls else None


def test_a_pack_whose_worker_dies_is_retried_after_the_others(base, quiet, tmp_path):
    engine = Elsewhere(strike=dies(0, 2))
    assert probe(base, FACTS, ProbeConfig(**GRID), tmp_path / "out", ProbeRun(engine=engine)).failed == 0
    lengths = [spec.cells[0].length for spec in engine.specs]
    assert lengths == [20, 10, 20, 20]
    assert cells_of(tmp_path / "out") == cells_of(quiet)
    again = Elsewhere()
    probe(base, FACTS, ProbeConfig(**GRID), tmp_path / "out", ProbeRun(engine=again))
    assert again.specs == []


def test_a_pack_that_dies_three_times_is_recorded_and_left_to_the_next_run(base, quiet, tmp_path):
    engine = Elsewhere(strike=lambda call: dies(*range(9))(call) if call != 1 else None)
    events: list[ProbeProgress] = []
    summary = probe(
        base, FACTS, ProbeConfig(**GRID), tmp_path / "out", ProbeRun(engine=engine, on_progress=events.append)
    )
    assert len(engine.specs) == 1 + 1 + RETRIES
    assert (summary.finished, summary.failed) == (4, 4)
    assert [(event.recorded, event.failed) for event in events] == [(0, 4), (4, 4), (4, 4), (4, 4)]
    failed = [result for result in Journal(tmp_path / "out").results() if result.status == "failed"]
    assert {result.message for result in failed} == {"WorkerDiedError: The process of the pack was ended by SIGKILL."}
    assert {result.parameters for result in failed} == {80, 240}
    assert probe(base, FACTS, ProbeConfig(**GRID), tmp_path / "out").finished == 8
    assert cells_of(tmp_path / "out") == cells_of(quiet)


def test_a_journal_that_cannot_be_written_stops_the_probe(base, tmp_path):
    engine = Elsewhere(strike=lambda call: JournalError("disk full") if call == 1 else None)
    with pytest.raises(JournalError, match="disk full"):
        probe(base, FACTS, ProbeConfig(**GRID), tmp_path / "out", ProbeRun(engine=engine))
    assert len(engine.specs) == 2
    assert len(Journal(tmp_path / "out").results()) == 4


def test_no_secret_is_in_what_a_failed_pack_leaves_behind(base, tmp_path, capfd):
    engine = Elsewhere(strike=lambda call: KeyError(SECRETS[0]))
    probe(base, FACTS, ProbeConfig(**GRID), tmp_path / "out", ProbeRun(engine=engine))
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert {result.message for result in Journal(tmp_path / "out").results()} == {"KeyError"}
    output = "".join(capfd.readouterr())
    assert not [secret for secret in SECRETS if secret.encode() in written or secret in output]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_is_finished_and_rebuilds_the_table(base, quiet, tmp_path, number):
    before = signal.SIG_DFL
    signal.signal(signal.SIGTERM, before)  # as in a process of its own: Ray, which other tests load, leaves a handler
    out = tmp_path / "out"

    def interrupt(event: ProbeProgress) -> None:
        if isinstance(event.news, CellResult) and event.recorded == 5:
            signal.raise_signal(number)

    with pytest.raises(KeyboardInterrupt):
        probe(base, FACTS, ProbeConfig(**GRID), out, ProbeRun(on_progress=interrupt))
    assert signal.getsignal(signal.SIGTERM) == before
    assert len(cells_of(out)) == 5
    assert (out / "results.parquet").exists()
    probe(base, FACTS, ProbeConfig(**GRID), out)
    assert_same(out, quiet)


WIDE: dict[str, Any] = {"ranks": [1, 3], "lengths": [5, 10, 15, 20], "steps": 3}


def test_shards_in_any_order_complete_the_probe_and_each_counts_its_own_cells(base, tmp_path):
    probe(base, FACTS, ProbeConfig(**WIDE), tmp_path / "whole")
    counted = []
    for index in (2, 3, 1):
        summary = probe(base, FACTS, ProbeConfig(**WIDE), tmp_path / "out", ProbeRun(shard=Shard(index, 3)))
        assert summary.finished == summary.cells
        counted.append(summary.cells)
        assert len(cells_of(tmp_path / "out")) == sum(counted)
    assert sorted(counted) == [2, 2, 4]
    assert_same(tmp_path / "out", tmp_path / "whole")


def test_a_shard_with_nothing_to_do_is_done(base, tmp_path):
    summary = probe(base, FACTS, ProbeConfig(**WIDE), tmp_path / "out", ProbeRun(shard=Shard(5, 5)))
    assert (summary.cells, summary.finished, summary.failed) == (0, 0, 0)


def test_the_packs_to_train_can_be_chosen_one_by_one(base, tmp_path):
    offered: list[tuple[list[int], int]] = []

    def longest_then_enough(packs: Any, results: Any) -> Pack | None:
        offered.append(([pack[0].length for pack in packs], len(results)))
        return None if len(offered) == 3 else max(packs, key=lambda pack: pack[0].length)

    summary = probe(base, FACTS, ProbeConfig(**WIDE), tmp_path / "out", ProbeRun(chooser=longest_then_enough))
    assert offered == [([5, 10, 15, 20], 0), ([5, 10, 15], 2), ([5, 10], 4)]
    assert (summary.cells, summary.finished, summary.failed) == (8, 4, 0)
    assert {result.cell.length for result in Journal(tmp_path / "out").results()} == {15, 20}
    assert probe(base, FACTS, ProbeConfig(**WIDE), tmp_path / "out").finished == 8


def test_choosing_packs_is_refused_with_another_process(base, tmp_path):
    with pytest.raises(ConfigError, match="only works while packs train one by one in this process"):
        probe(
            base,
            FACTS,
            ProbeConfig(**WIDE),
            tmp_path / "out",
            ProbeRun(engine=Elsewhere(), chooser=lambda packs, _: packs[0]),
        )
    assert not (tmp_path / "out").exists()


def test_probes_share_a_prefix_cache_and_give_the_same_bits(base, quiet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shared, engine = Execution(prefix_cache="cache"), Elsewhere()
    for name in ("a", "b"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            probe(base, FACTS, ProbeConfig(**GRID), tmp_path / name, ProbeRun(execution=shared, engine=engine))
        assert_same(tmp_path / name, quiet)
        assert len(list((tmp_path / "cache").iterdir())) == 2, "one for each length"
    assert engine.specs[0].execution.prefix_cache == str(tmp_path / "cache")
