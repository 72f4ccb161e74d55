"""A probe can be interrupted anywhere, gives the same results, trains nothing twice, and refuses what it cannot run."""

from __future__ import annotations

import dataclasses
import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch

from helpers import tiny
from helpers.probes import FACTS, GRID, SECRETS, _die_at, a_cell, assert_same, cells_of, on_one_thread
from memlaw.adapter.on_model import placement_on
from memlaw.core.cells import CellResult
from memlaw.core.config import Execution, TrainConfig
from memlaw.core.errors import AdapterError, DataError, JournalError
from memlaw.core.facts import Fact, MemorySet
from memlaw.data import encode, take
from memlaw.diagnosis.measure import measure
from memlaw.law.bits import memoryless_loss
from memlaw.model.base import Base
from memlaw.sweep.config import ProbeConfig
from memlaw.sweep.journal import Journal, PackCounts, status
from memlaw.sweep.pack import LoadedPack, train_pack
from memlaw.sweep.probe import ProbeSummary, probe
from memlaw.sweep.scheduler import ProbeProgress, ProbeRun
from memlaw.training.result import StackProgress
from memlaw.training.run import Run
from memlaw.training.stack import train_stack


@pytest.fixture(scope="module")
def base() -> Base:
    return on_one_thread()


@pytest.fixture(scope="module")
def uninterrupted(base, tmp_path_factory) -> Path:
    """The directory of a probe of GRID that nothing disturbed."""
    out = tmp_path_factory.mktemp("probe") / "out"
    probe(base, FACTS, ProbeConfig(**GRID), out)
    return out


def recorded(events: list[ProbeProgress]) -> list[str]:
    return [event.news.cell.key for event in events if isinstance(event.news, CellResult)]


def test_a_probe_measures_what_training_each_cell_alone_and_recalling_it_gives(base, uninterrupted):
    results = Journal(uninterrupted).results()
    assert len(results) == 8
    for result in results:
        cell = result.cell
        facts = take(encode(FACTS, base.tokenizer, context=base.context), cell.length)
        placement = placement_on(None, base.model)
        [alone] = train_stack(base, facts, [Run(cell.rank, placement, cell.train)])
        before = measure(base, facts, decode=False)
        with alone.attached(base.model):
            after = measure(base, facts, decode=True)
        assert result.status == "finished"
        assert result.loss_init == pytest.approx(before.mean_loss, rel=1e-5)
        assert result.loss_final == pytest.approx(after.mean_loss, rel=1e-4)
        assert result.delta_loss == result.loss_init - result.loss_final
        assert result.delta_loss > 0
        assert (result.acc_token, result.acc_em) == (after.acc_token, after.acc_em)
        assert (result.ordered, result.certified) == (after.ordered, after.certified)
        assert result.parameters == placement.parameters(cell.rank) == cell.rank * (48 + 32)
        assert result.steps == 6
        assert result.records == len(facts)
        rows = base.model.get_output_embeddings().weight.shape[0]
        assert result.loss_memoryless == memoryless_loss([fact.target for fact in facts], result.loss_init, rows)
        assert result.certified_tokens == sum(item.length for item in after.items if item.certified)


def test_the_certified_tokens_are_those_of_the_certified_records(base, tmp_path):
    probe(base, FACTS, ProbeConfig(ranks=[1, 8], lengths=[20], steps=200, methods=["ot"]), tmp_path / "out")
    few, all_ = sorted(Journal(tmp_path / "out").results(), key=lambda result: result.cell.rank)
    assert few.certified < few.records
    assert few.certified_tokens == 5 * few.certified
    assert (all_.certified, all_.certified_tokens) == (all_.records, all_.cell.length)


def test_the_cells_are_the_grid_and_identify_model_and_data(base, uninterrupted):
    found = [result.cell for result in Journal(uninterrupted).results()]
    points = {(cell.rank, cell.length, cell.train.method, cell.train.seed) for cell in found}
    assert points == {(rank, length, method, 42) for rank in (1, 3) for length in (10, 20) for method in ("sft", "ot")}
    for cell in found:
        assert (cell.model, cell.tokenizer) == (base.fingerprint, base.tokenizer_fingerprint)
        assert (cell.data, cell.dtype, cell.placement) == (FACTS.fingerprint, "float32", "down_proj@2")
    assert pyarrow.parquet.read_table(uninterrupted / "results.parquet").num_rows == 8


def test_progress_reports_packs_steps_and_results(base, tmp_path):
    events: list[ProbeProgress] = []
    summary = probe(base, FACTS, ProbeConfig(**GRID), tmp_path / "out", ProbeRun(on_progress=events.append))
    assert summary == ProbeSummary(out=str(tmp_path / "out"), cells=8, finished=8, failed=0, diverged=0)
    assert [(event.pack, event.packs) for event in events if event.news is None] == [(1, 2), (2, 2)]
    assert sum(isinstance(event.news, StackProgress) for event in events) == 2 * 6
    results = [event for event in events if isinstance(event.news, CellResult)]
    assert [(event.recorded, event.failed) for event in results] == [(count, 0) for count in range(1, 9)]


def test_a_length_within_a_record_is_the_length_of_the_whole_records_before_it(base, tmp_path):
    summary = probe(base, FACTS, ProbeConfig(ranks=[1], lengths=[10, 11, 14, 15], steps=2), tmp_path / "out")
    assert summary.cells == 2
    assert summary.warnings == ("Facts are kept whole, so of the requested lengths 11 became 10, 14 became 10.",)
    assert {result.cell.length for result in Journal(tmp_path / "out").results()} == {10, 15}


def test_the_target_text_is_nowhere_in_the_directory(uninterrupted):
    written = b"".join(path.read_bytes() for path in uninterrupted.rglob("*") if path.is_file())
    names = " ".join(path.name for path in uninterrupted.rglob("*"))
    assert len(written) > 1000
    for secret in SECRETS:
        assert secret.encode() not in written
        assert secret not in names


def test_a_finished_probe_trains_nothing_and_changes_nothing(base, uninterrupted):
    before = {path: path.stat().st_mtime_ns for path in (uninterrupted / "cells").iterdir()}
    events: list[ProbeProgress] = []
    summary = probe(base, FACTS, ProbeConfig(**GRID), uninterrupted, ProbeRun(on_progress=events.append))
    assert events == []
    assert (summary.cells, summary.finished) == (8, 8)
    assert {path: path.stat().st_mtime_ns for path in (uninterrupted / "cells").iterdir()} == before


def copy_of(out: Path, to: Path) -> Path:
    """A copy of a probe that shares no inode with it."""
    (to / "cells").mkdir(parents=True)
    for path in out.rglob("*.*"):
        (to / path.relative_to(out)).write_bytes(path.read_bytes())
    return to


@pytest.mark.parametrize("seed", range(3))
def test_only_packs_with_a_missing_cell_train_and_only_missing_cells_are_recorded(base, uninterrupted, tmp_path, seed):
    out = copy_of(uninterrupted, tmp_path / "out")
    pack = random.Random(seed).choice(Journal(out).spec().packs)
    missing = set(random.Random(seed).sample(pack, 1 + seed))
    for key in missing:
        (out / "cells" / f"{key}.json").unlink()
    kept = {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}

    events: list[ProbeProgress] = []
    probe(base, FACTS, ProbeConfig(**GRID), out, ProbeRun(on_progress=events.append))
    assert set(recorded(events)) == missing
    assert len({event.pack for event in events}) == 1
    assert {event.news.adapters for event in events if isinstance(event.news, StackProgress)} == {4}
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert_same(out, uninterrupted)


def test_a_damaged_cell_is_reported_and_trained_again(base, uninterrupted, tmp_path):
    out = copy_of(uninterrupted, tmp_path / "out")
    path = next((out / "cells").iterdir())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

    events: list[ProbeProgress] = []
    summary = probe(base, FACTS, ProbeConfig(**GRID), out, ProbeRun(on_progress=events.append))
    assert recorded(events) == [path.stem]
    [warning] = summary.warnings
    assert warning.startswith(f"cells/{path.name} was damaged")
    assert len(list((out / "quarantine").iterdir())) == 1
    assert cells_of(out) == cells_of(uninterrupted)


@pytest.mark.parametrize("after", [0, 1, 5])
def test_an_interrupt_keeps_finished_cells_rebuilds_the_table_and_can_be_resumed(base, uninterrupted, tmp_path, after):
    out = tmp_path / "out"
    seen: list[str] = []

    def interrupt(event: ProbeProgress) -> None:
        seen.extend(recorded([event]))
        if len(seen) == after:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        probe(base, FACTS, ProbeConfig(**GRID), out, ProbeRun(on_progress=interrupt))
    assert {result.cell.key for result in Journal(out).results()} == set(seen)
    assert pyarrow.parquet.read_table(out / "results.parquet")["key"].to_pylist() == sorted(seen)

    events: list[ProbeProgress] = []
    probe(base, FACTS, ProbeConfig(**GRID), out, ProbeRun(on_progress=events.append))
    assert len(recorded(events)) == 8 - after
    assert_same(out, uninterrupted)


FORKSERVER = multiprocessing.get_context("forkserver")

FORKSERVER.set_forkserver_preload(
    [
        "memlaw.training.stack",
        "memlaw.diagnosis.measure",
        "memlaw.sweep.probe",
        "transformers.models.qwen3.modeling_qwen3",
        "pytest",
        "hypothesis",
    ]
)

MOMENTS = [
    *((None, count) for count in (1, 4, 8, 11, 12, 13, 19, 22)),
    *(("fsync", count) for count in (1, 2, 3, 4, 5, 6, 13)),
    *(("link", count) for count in (1, 2, 9)),
    ("replace", 1),
]


@pytest.mark.slow
def test_a_probe_killed_at_any_moment_gives_the_same_results_bit_for_bit(base, uninterrupted, tmp_path):
    for number, (call, count) in enumerate(MOMENTS):
        out = tmp_path / str(number)
        process = FORKSERVER.Process(target=_die_at, args=(str(out), call, count))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL, (call, count)
        probe(base, FACTS, ProbeConfig(**GRID), out)
        assert_same(out, uninterrupted)
        assert [path for path in out.rglob("*.tmp") if not path.name.startswith(".results")] == []


@pytest.mark.slow
def test_two_probes_in_one_directory_share_it(uninterrupted, tmp_path):
    runs = [FORKSERVER.Process(target=_die_at, args=(str(tmp_path / "out"), None, 10**9)) for _ in range(2)]
    for process in runs:
        process.start()
    for process in runs:
        process.join()
    assert [process.exitcode for process in runs] == [0, 0]
    assert_same(tmp_path / "out", uninterrupted)


def test_the_status_of_a_probe_is_read_from_its_directory(base, uninterrupted, tmp_path):
    done = status(uninterrupted)
    assert (done.cells, done.finished, done.failed, done.waiting) == (8, 8, 0, 0)
    assert done.packs == PackCounts(done=2, partly=0, waiting=0)
    out = copy_of(uninterrupted, tmp_path / "out")
    first, second = (key for pack in Journal(out).spec().packs for key in pack[:1])
    unmeasured = dataclasses.replace(Journal(out).results()[0], status="failed", loss_final=None)
    (out / "cells" / f"{first}.json").unlink()
    (out / "cells" / f"{second}.json").unlink()
    cell = {result.cell.key: result.cell for result in Journal(uninterrupted).results()}[first]
    Journal(out).publish(dataclasses.replace(unmeasured, cell=cell))
    found = status(out)
    assert (found.cells, found.finished, found.diverged, found.failed, found.waiting) == (8, 6, 0, 1, 1)
    assert found.packs == PackCounts(done=0, partly=2, waiting=0)
    with pytest.raises(JournalError, match="is not a probe directory"):
        status(tmp_path)


def test_a_diverging_cell_is_recorded_with_its_step_and_the_others_go_on(base, tmp_path):
    facts = take(encode(FACTS, base.tokenizer, context=None), 20)
    placement = placement_on(None, base.model)
    rates = (1e-2, 1e38, 1e-3)
    cells = [dataclasses.replace(a_cell(2, 20), train=TrainConfig(steps=8, learning_rate=rate)) for rate in rates]
    journal = Journal(tmp_path)
    reported: list[Any] = []
    train_pack(LoadedPack(base, placement, facts, tuple(cells)), journal, on_news=reported.append)

    results = {result.cell.key: result for result in journal.results()}
    good, diverged, slow = (results[cell.key] for cell in cells)
    assert (good.status, diverged.status, slow.status) == ("finished", "diverged", "finished")
    assert 0 < diverged.steps < 8
    assert f"at step {diverged.steps}" in diverged.message
    assert diverged.loss_init == good.loss_init
    assert diverged.loss_final is diverged.delta_loss is diverged.acc_em is diverged.certified is None
    assert good.delta_loss > slow.delta_loss > 0
    assert all(journal.holds(cell.key) for cell in cells)
    assert [news for news in reported if isinstance(news, CellResult)] == [good, diverged, slow]


def test_a_probe_that_diverges_counts_it_as_failed_and_does_not_try_again(base, tmp_path):
    config = ProbeConfig(ranks=[1], lengths=[10], steps=5, learning_rate=1e38, optimizer="adamw")
    for _ in range(2):
        summary = probe(base, FACTS, config, tmp_path / "out")
        assert (summary.finished, summary.failed, summary.diverged) == (0, 1, 1)
    events: list[ProbeProgress] = []
    probe(base, FACTS, config, tmp_path / "out", ProbeRun(on_progress=events.append))
    assert events == []


def _struck(first_pack_with: Exception) -> Callable[[ProbeProgress], None]:
    def strike(event: ProbeProgress) -> None:
        if event.pack == 1 and isinstance(event.news, StackProgress):
            raise first_pack_with

    return strike


def test_a_pack_that_runs_out_of_memory_continues_in_smaller_stacks(base, uninterrupted, tmp_path):
    out = tmp_path / "out"

    def check(_module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if torch.is_grad_enabled() and len(args[0]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = base.model.model.layers[-1].register_forward_pre_hook(check)
    try:
        with pytest.warns(UserWarning, match="do not fit in memory: continuing with"):
            assert probe(base, FACTS, ProbeConfig(**GRID), out).failed == 0
    finally:
        handle.remove()
    expected = {result.cell.key: result for result in Journal(uninterrupted).results()}
    for result in Journal(out).results():
        assert result.delta_loss == pytest.approx(expected[result.cell.key].delta_loss, rel=1e-4)
        assert result.steps == expected[result.cell.key].steps


def test_a_pack_resumes_from_its_checkpoint_and_removes_it(base, uninterrupted, tmp_path):
    out = tmp_path / "out"
    every_step = Execution(checkpoint_minutes=0)

    def stop(event: ProbeProgress) -> None:
        if isinstance(event.news, StackProgress) and event.news.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        probe(base, FACTS, ProbeConfig(**GRID), out, ProbeRun(execution=every_step, on_progress=stop))
    assert len(list((out / "checkpoints").iterdir())) == 1
    events: list[ProbeProgress] = []
    probe(base, FACTS, ProbeConfig(**GRID), out, ProbeRun(on_progress=events.append))
    assert next(event.news.step for event in events if isinstance(event.news, StackProgress)) == 5
    assert not list((out / "checkpoints").iterdir())
    (out / "checkpoints").rmdir()
    assert_same(out, uninterrupted)


def test_an_error_in_one_pack_fails_only_its_cells_and_they_are_retried(base, uninterrupted, tmp_path):
    out = tmp_path / "out"
    fault = RuntimeError("the accelerator does not answer")
    summary = probe(base, FACTS, ProbeConfig(**GRID), out, ProbeRun(on_progress=_struck(fault)))
    assert (summary.cells, summary.finished, summary.failed, summary.diverged) == (8, 4, 4, 0)
    failed = [result for result in Journal(out).results() if result.status == "failed"]
    assert {result.cell.key for result in failed} == set(Journal(out).spec().packs[0])
    for result in failed:
        assert result.message.startswith("RuntimeError: the accelerator does not answer (test_probe.py, line ")
        assert result.loss_init is None
        assert result.parameters == 80 * result.cell.rank
        assert result.records == 2
    statuses = pyarrow.parquet.read_table(out / "results.parquet")["status"].to_pylist()
    assert sorted(statuses) == ["failed"] * 4 + ["finished"] * 4

    events: list[ProbeProgress] = []
    assert probe(base, FACTS, ProbeConfig(**GRID), out, ProbeRun(on_progress=events.append)).failed == 0
    assert set(recorded(events)) == {result.cell.key for result in failed}
    assert_same(out, uninterrupted)


def test_an_error_that_quotes_a_target_is_recorded_without_it(base, tmp_path):
    probe(base, FACTS, ProbeConfig(**GRID), tmp_path, ProbeRun(on_progress=_struck(KeyError(SECRETS[0]))))
    messages = {result.message for result in Journal(tmp_path).results() if result.status == "failed"}
    assert len(messages) == 1
    assert messages.pop().startswith("KeyError (test_probe.py, line ")


@pytest.mark.parametrize(("unlucky", "failed"), [({2}, 0), ({2, 8}, 0), ({2, 8, 9}, 1)])
def test_an_error_in_measuring_fails_only_that_cell_and_it_is_retried_twice(
    base, uninterrupted, tmp_path, monkeypatch, unlucky, failed
):
    calls = iter(range(100))

    def now_and_then(*args: Any, **kwargs: Any) -> Any:
        if next(calls) in unlucky:
            raise RuntimeError("the decoder is lost")
        return measure(*args, **kwargs)

    monkeypatch.setattr("memlaw.diagnosis.measure.measure", now_and_then)
    summary = probe(base, FACTS, ProbeConfig(**GRID), tmp_path)
    assert (summary.finished, summary.failed) == (8 - failed, failed)
    assert cells_of(tmp_path).items() <= cells_of(uninterrupted).items()


@pytest.mark.parametrize("after", [3, 9, 14, 20])
def test_a_full_disk_stops_the_probe_and_loses_nothing(base, uninterrupted, tmp_path, monkeypatch, after):
    out, real, calls = tmp_path / "out", os.fsync, iter(range(1000))

    def full(descriptor: int) -> None:
        if next(calls) >= after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    events: list[ProbeProgress] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            JournalError, match=r"No space left on device\. This result is not recorded; .* finished cells are skipped"
        ):
            probe(base, FACTS, ProbeConfig(**GRID), out, ProbeRun(on_progress=events.append))
    assert not list(out.rglob("*.tmp"))
    assert {result.cell.key for result in Journal(out).results()} >= set(recorded(events))
    assert Journal(out).findings == []
    probe(base, FACTS, ProbeConfig(**GRID), out)
    assert_same(out, uninterrupted)


def test_a_disk_that_fails_once_stops_the_probe_rather_than_blame_a_cell(base, uninterrupted, tmp_path, monkeypatch):
    out, real, calls = tmp_path / "out", os.fsync, iter(range(1000))

    def fails_once(descriptor: int) -> None:
        if next(calls) == 9:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails_once)
        with pytest.raises(JournalError, match="Input/output error"):
            probe(base, FACTS, ProbeConfig(**GRID), out)
    assert {result.status for result in Journal(out).results()} == {"finished"}
    probe(base, FACTS, ProbeConfig(**GRID), out)
    assert_same(out, uninterrupted)


def assert_refused(base: Base, out: Path, error: type[Exception], sentence: str, **changes: Any) -> None:
    events: list[ProbeProgress] = []
    with pytest.raises(error, match=sentence):
        probe(base, FACTS, ProbeConfig(**GRID | changes), out, ProbeRun(on_progress=events.append))
    assert events == []
    assert not out.exists()


@pytest.mark.parametrize(
    ("error", "sentence", "changes"),
    [
        (DataError, "A length of 41 target tokens was requested, but the data allow 1 to 40", {"lengths": [10, 41]}),
        (DataError, r"the first fact \('f0'\) alone has 5", {"lengths": [4, 10]}),
        (AdapterError, r"Rank 33 is above 32, the smaller dimension of .*down_proj", {"ranks": [1, 33]}),
        (AdapterError, "has no module 'down' to adapt. Did you mean down_proj", {"placement": "down@1"}),
    ],
)
def test_a_grid_that_cannot_be_run_is_refused_before_anything_is_trained_or_written(
    base, tmp_path, error, sentence, changes
):
    assert_refused(base, tmp_path / "out", error, sentence, **changes)


def test_a_prefix_longer_than_the_context_is_refused_and_a_shorter_one_is_not(tmp_path):
    narrow = tiny.base(max_position_embeddings=24)
    long = MemorySet((Fact("recite:", "7" * 60, "poem"),), eos=False, source="poem")
    with pytest.raises(DataError, match=r"Fact 'poem' has 47 tokens .* the context of the model is 24"):
        probe(narrow, long, ProbeConfig(ranks=[1], lengths=[8, 40], steps=1), tmp_path / "out")
    assert probe(narrow, long, ProbeConfig(ranks=[1], lengths=[8], steps=1), tmp_path / "out").finished == 1


def test_the_directory_of_another_grid_is_left_alone(base, uninterrupted):
    before = cells_of(uninterrupted)
    with pytest.raises(
        JournalError, match=r"belongs to another run, which differs in ranks \(there \[1,3\], here \[1,2\]\)"
    ):
        probe(base, FACTS, ProbeConfig(**GRID | {"ranks": [1, 2]}), uninterrupted)
    with pytest.raises(JournalError, match=r"which differs in learning_rate \(there 0\.1, here 0\.03\)"):
        probe(base, FACTS, ProbeConfig(**GRID, learning_rate=0.03), uninterrupted)
    with pytest.raises(JournalError, match=r"which differs in .*optimizer \(there muon, here adamw\)"):
        probe(base, FACTS, ProbeConfig(**GRID, optimizer="adamw"), uninterrupted)
    with pytest.raises(JournalError, match="which differs in model"):
        probe(tiny.base(seed=1), FACTS, ProbeConfig(**GRID), uninterrupted)
    with pytest.raises(JournalError, match="which differs in data"):
        probe(base, dataclasses.replace(FACTS, facts=FACTS.facts[:4]), ProbeConfig(**GRID), uninterrupted)
    assert cells_of(uninterrupted) == before


def test_a_grid_is_extended_in_place_and_its_finished_cells_are_not_trained_again(base, uninterrupted, tmp_path):
    """The cells that were there keep their bits, and the new ones are those that one probe of the whole grid trains."""
    uninterrupted = Path(shutil.copytree(uninterrupted, tmp_path / "copy"))
    before = cells_of(uninterrupted)
    grown = GRID | {"ranks": [1, 2, 3]}
    trained = []
    run = ProbeRun(on_progress=lambda news: trained.append(news.news))
    summary = probe(base, FACTS, ProbeConfig(**grown), uninterrupted, run)
    assert (summary.cells, summary.finished) == (12, 12)
    assert {result.cell.rank for result in trained if isinstance(result, CellResult)} == {2}
    after = cells_of(uninterrupted)
    assert before.items() <= after.items()
    fresh = probe(base, FACTS, ProbeConfig(**grown), tmp_path / "fresh")
    assert fresh.finished == 12
    assert cells_of(tmp_path / "fresh").keys() == after.keys()
    spec = Journal(uninterrupted).spec()
    assert sorted(key for pack in spec.packs for key in pack) == sorted({key for pack in spec.packs for key in pack})
    assert len({key for pack in spec.packs for key in pack}) == 12
    assert probe(base, FACTS, ProbeConfig(**grown), uninterrupted).finished == 12
    with pytest.raises(JournalError, match=r"ranks \(there \[1,2,3\], here \[1,3\]\)"):
        probe(base, FACTS, ProbeConfig(**GRID), uninterrupted)


def test_the_name_of_the_model_and_of_the_file_may_differ_between_runs(base, uninterrupted):
    again = dataclasses.replace(base, name="/elsewhere/tiny"), dataclasses.replace(FACTS, source="a copy")
    assert probe(*again, ProbeConfig(**GRID), uninterrupted).finished == 8


def test_importing_the_probe_loads_no_torch():
    heavy = "{'torch', 'transformers', 'pyarrow'}"
    script = f"import sys, json, memlaw.sweep; print(json.dumps(sorted({heavy} & sys.modules.keys())))"
    assert json.loads(subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout) == []


def test_cells_that_cannot_be_decoded_together_are_decoded_one_by_one(base, uninterrupted, tmp_path, monkeypatch):
    def too_large(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("memlaw.diagnosis.decoding.greedy_by_each", too_large)
    assert probe(base, FACTS, ProbeConfig(**GRID), tmp_path / "out").failed == 0
    assert cells_of(tmp_path / "out").keys() == cells_of(uninterrupted).keys()
    alone, together = (Journal(out).results_by_key() for out in (tmp_path / "out", uninterrupted))
    for key, result in alone.items():
        assert (result.acc_token, result.acc_em) == (together[key].acc_token, together[key].acc_em)
