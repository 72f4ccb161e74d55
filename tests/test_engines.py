"""Packs run anywhere, in any order, more than once, and die in any way: the results are those of a quiet run."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import warnings
from collections import deque
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import tiny
import workers
from hypothesis import given
from hypothesis import strategies as st
from test_sweep import FACTS, GRID, SECRETS, assert_same, cells_of, on_one_thread

from memlaw.driver import RETRIES, Pack, ProbeProgress
from memlaw.engines import Engine, Inline, Outcome, Outcomes, Resources, Spec, WorkerDiedError
from memlaw.engines.isolated import Isolated
from memlaw.engines.on_ray import OnRay
from memlaw.engines.schedule import Shard, longest_first
from memlaw.errors import ConfigError, JournalError
from memlaw.journal import Journal
from memlaw.model import Base, load
from memlaw.packs import PackSpec, run_pack
from memlaw.records import CellResult, EncodedFact, Execution
from memlaw.sweep import ProbeConfig, probe

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Base:
    """A base that another process can load."""
    made, folder = on_one_thread(), tmp_path_factory.mktemp("base")
    made.model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    return load(str(folder), device="cpu")


@pytest.fixture(scope="module")
def quiet(base, tmp_path_factory) -> Path:
    """The directory of a probe of GRID, trained inline, that nothing disturbed."""
    out = tmp_path_factory.mktemp("probe") / "out"
    probe(base, FACTS, ProbeConfig(**GRID), out)
    return out


class Elsewhere:
    """Does here what others do elsewhere, several at a time or not; what it is told to strike never gets that far."""

    in_process = False

    def __init__(
        self, *, parallel: bool = False, strike: Callable[[int], Exception | None] = lambda _call: None
    ) -> None:
        self.parallel, self.strike, self.specs = parallel, strike, list[Any]()

    def run(self, fn: Callable[[Spec], object], specs: deque[Spec], _resources: Resources, /) -> Outcomes[Spec]:
        while specs:
            spec = specs.popleft()
            self.specs.append(spec)
            error = self.strike(len(self.specs) - 1)
            if error is None:
                fn(spec)
            yield Outcome(spec, error)


# --- engines ---------------------------------------------------------------------------------------------------------


def outcomes(engine: Engine, *specs: str) -> dict[str, Exception | None]:
    return {outcome.spec: outcome.error for outcome in engine.run(workers.work, deque(specs), Resources())}


def test_inline_goes_from_left_to_right_and_takes_what_is_added_on_the_way():
    seen: list[int] = []
    specs = deque([3, 1])
    for outcome in Inline().run(seen.append, specs, Resources()):
        assert outcome.error is None
        if outcome.spec == 3:
            specs.append(7)
    assert seen == [3, 1, 7]


def test_inline_hands_on_what_went_wrong_but_not_an_interrupt():
    assert isinstance(outcomes(Inline(), "raise:key")["raise:key"], KeyError)

    def interrupted(_spec: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        next(Inline().run(interrupted, deque([1]), Resources()))


def test_a_fresh_process_for_each_says_how_it_ended(tmp_path):
    written = [f"write:{tmp_path / name}" for name in ("a", "b")]
    found = outcomes(Isolated(), *written, "exit:3", "kill:9", "kill:11", "raise:journal", "raise:picky")
    assert [found[spec] for spec in written] == [None, None]
    assert len({(tmp_path / name).read_text() for name in ("a", "b")} | {str(os.getpid())}) == 3
    said = {spec: str(error) for spec, error in found.items() if isinstance(error, WorkerDiedError)}
    assert said == {
        "exit:3": "The process of the pack ended with exit code 3 before it was done.",
        "kill:9": "The process of the pack was ended by SIGKILL, as the kernel does where memory runs out.",
        "kill:11": "The process of the pack was ended by SIGSEGV, a crash in compiled code.",
    }
    assert isinstance(found["raise:journal"], JournalError)
    assert (type(found["raise:picky"]), str(found["raise:picky"])) == (RuntimeError, "PickyError")


def test_an_interrupt_ends_the_process_of_the_pack(tmp_path):
    path = tmp_path / "pid"
    threading.Thread(target=lambda: (workers.appears(path), os.kill(os.getpid(), signal.SIGINT))).start()
    with pytest.raises(KeyboardInterrupt):
        outcomes(Isolated(), f"hang:{path}")
    assert workers.gone(int(path.read_text()))


def killed_driver_leaves_nobody(engine: str, path: Path, temporary: str | None = None) -> None:
    driver = SPAWN.Process(target=workers.drive, args=(engine, [f"hang:{path}"], temporary))
    driver.start()
    worker = int(workers.appears(path))
    assert driver.pid is not None
    os.kill(driver.pid, signal.SIGKILL)
    driver.join()
    assert workers.gone(worker)


def test_a_killed_driver_leaves_no_process_behind(tmp_path):
    killed_driver_leaves_nobody("isolated", tmp_path / "pid")


@pytest.mark.parametrize(("cpus", "gpus"), [(0, 0.0), (1, -0.5), (1, 1.5), (1, float("nan")), (1, float("inf"))])
def test_what_no_pack_can_take_is_refused(cpus, gpus):
    with pytest.raises(ConfigError, match=r"A pack cannot (compute on 0 CPUs|take .* GPUs): choose"):
        Resources(cpus=cpus, gpus=gpus)
    assert Resources(gpus=0.5).gpus + Resources(gpus=2).gpus == 2.5


# --- which first, and who --------------------------------------------------------------------------------------------

costs = st.lists(st.integers(0, 10**12), max_size=60)


@given(costs=costs)
def test_the_longest_come_first(costs):
    order = longest_first(costs)
    assert sorted(order) == list(range(len(costs)))
    assert [costs[number] for number in order] == sorted(costs, reverse=True)


@given(costs=costs, count=st.integers(1, 12))
def test_shards_divide_the_packs_and_none_has_more_than_its_part_and_one_pack(costs, count):
    shares = [Shard(index, count).share(costs) for index in range(1, count + 1)]
    assert sorted(number for share in shares for number in share) == list(range(len(costs)))
    assert all(share == sorted(share) for share in shares)
    for share in shares:
        assert sum(costs[number] for number in share) <= sum(costs) / count + max(costs, default=0)


def test_shards_are_read_as_schedulers_number_them():
    assert Shard.parse("3/20") == Shard(3, 20)
    for text in ("0/20", "21/20", "3", "3/0", "-1/2", "1/2/3", "a/b", ""):
        with pytest.raises(ConfigError, match=r"is not of the form 3/20, .* Shards count from 1: in a Slurm array"):
            Shard.parse(text)


# --- what travels ----------------------------------------------------------------------------------------------------

token_ids = st.lists(st.integers(0, 95), min_size=2, max_size=9).map(tuple)
facts = st.lists(st.builds(EncodedFact, st.text(max_size=8), token_ids, st.just(1)), min_size=1, max_size=4)


@given(facts=facts, execution=st.builds(Execution, compiled=st.booleans(), checkpoint_minutes=st.floats(0, 60)))
def test_what_a_worker_is_told_arrives_as_it_was(facts, execution):
    from test_sweep import a_cell

    spec = PackSpec("m", "float32", "cpu", 1, (a_cell(2, 8), a_cell(3, 8, "ot", 7)), tuple(facts), execution)
    assert PackSpec.from_json(spec.to_json()) == spec
    json.loads(spec.to_json())


def test_a_pack_run_from_what_it_was_told_gives_the_same_bits_and_run_again_does_nothing(base, quiet, tmp_path):
    engine = Elsewhere(parallel=True)
    events: list[ProbeProgress] = []
    summary = probe(base, FACTS, ProbeConfig(**GRID), tmp_path / "out", engine=engine, on_progress=events.append)
    assert (summary.cells, summary.finished, summary.failed) == (8, 8, 0)
    assert_same(tmp_path / "out", quiet)
    specs = [PackSpec.from_json(text) for text in engine.specs]
    assert [spec.cells[0].length for spec in specs] == [20, 10], "the longest first"
    assert [(event.pack, event.recorded, event.failed) for event in events] == [(2, 4, 0), (1, 8, 0)]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    for text, spec in zip(engine.specs, specs, strict=True):
        assert run_pack(text, str(tmp_path / "out")) == [cell.key for cell in spec.cells]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def test_a_model_that_is_only_in_memory_trains_inline_alone(tmp_path):
    events: list[ProbeProgress] = []
    with pytest.raises(ConfigError) as refused:
        probe(tiny.base(), FACTS, ProbeConfig(**GRID), tmp_path / "out", engine=Isolated(), on_progress=events.append)
    assert str(refused.value) == (
        "The model tiny-qwen3 is in the memory of this process only, and another process has nothing to load it from. "
        "Save it and its tokenizer with `save_pretrained` and load them from there, or train inline."
    )
    assert events == []
    assert not (tmp_path / "out").exists()


def test_another_model_under_the_same_name_stops_the_probe(base, tmp_path):
    changed = dataclasses.replace(tiny.base(seed=1), name=base.name)
    with pytest.raises(ConfigError, match="in the process of a pack is not the one the probe was started with"):
        probe(changed, FACTS, ProbeConfig(**GRID), tmp_path / "out", engine=Elsewhere())
    assert Journal(tmp_path / "out").results() == ()


# --- when things go wrong --------------------------------------------------------------------------------------------


def dies(*calls: int) -> Callable[[int], Exception | None]:
    return lambda call: WorkerDiedError("The process of the pack was ended by SIGKILL.") if call in calls else None


def test_a_pack_whose_worker_dies_is_tried_again_behind_the_others(base, quiet, tmp_path):
    engine = Elsewhere(strike=dies(0, 2))
    assert probe(base, FACTS, ProbeConfig(**GRID), tmp_path / "out", engine=engine).failed == 0
    lengths = [PackSpec.from_json(text).cells[0].length for text in engine.specs]
    assert lengths == [20, 10, 20, 20]
    assert cells_of(tmp_path / "out") == cells_of(quiet)
    again = Elsewhere()
    probe(base, FACTS, ProbeConfig(**GRID), tmp_path / "out", engine=again)
    assert again.specs == []


def test_a_pack_that_dies_three_times_is_recorded_with_how_and_left_to_the_next_run(base, quiet, tmp_path):
    engine = Elsewhere(strike=lambda call: dies(*range(9))(call) if call != 1 else None)
    events: list[ProbeProgress] = []
    summary = probe(base, FACTS, ProbeConfig(**GRID), tmp_path / "out", engine=engine, on_progress=events.append)
    assert len(engine.specs) == 1 + 1 + RETRIES
    assert (summary.finished, summary.failed) == (4, 4)
    assert [(event.recorded, event.failed) for event in events] == [(0, 4), (4, 4), (4, 4), (4, 4)]
    failed = [result for result in Journal(tmp_path / "out").results() if result.status == "failed"]
    assert {result.message for result in failed} == {"WorkerDiedError: The process of the pack was ended by SIGKILL."}
    assert {result.parameters for result in failed} == {80, 240}
    assert probe(base, FACTS, ProbeConfig(**GRID), tmp_path / "out").finished == 8
    assert cells_of(tmp_path / "out") == cells_of(quiet)


def test_a_journal_that_cannot_be_written_stops_everybody(base, tmp_path):
    engine = Elsewhere(strike=lambda call: JournalError("disk full") if call == 1 else None)
    with pytest.raises(JournalError, match="disk full"):
        probe(base, FACTS, ProbeConfig(**GRID), tmp_path / "out", engine=engine)
    assert len(engine.specs) == 2
    assert len(Journal(tmp_path / "out").results()) == 4


def test_no_secret_is_in_what_a_failed_pack_leaves_behind(base, tmp_path, capfd):
    engine = Elsewhere(strike=lambda call: KeyError(SECRETS[0]))
    probe(base, FACTS, ProbeConfig(**GRID), tmp_path / "out", engine=engine)
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert {result.message for result in Journal(tmp_path / "out").results()} == {"KeyError"}
    said = "".join(capfd.readouterr())
    assert not [secret for secret in SECRETS if secret.encode() in written or secret in said]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_is_finished_and_rebuilds_the_table(base, quiet, tmp_path, number):
    out, before = tmp_path / "out", signal.getsignal(signal.SIGTERM)

    def interrupt(event: ProbeProgress) -> None:
        if isinstance(event.news, CellResult) and event.recorded == 5:
            signal.raise_signal(number)

    with pytest.raises(KeyboardInterrupt):
        probe(base, FACTS, ProbeConfig(**GRID), out, on_progress=interrupt)
    assert signal.getsignal(signal.SIGTERM) == before
    assert len(cells_of(out)) == 5
    assert (out / "results.parquet").exists()
    probe(base, FACTS, ProbeConfig(**GRID), out)
    assert_same(out, quiet)


# --- shards and choices ----------------------------------------------------------------------------------------------

WIDE: dict[str, Any] = {"ranks": [1, 3], "lengths": [5, 10, 15, 20], "steps": 3}


def test_shards_in_any_order_make_the_probe_and_each_tells_of_its_own_cells(base, tmp_path):
    probe(base, FACTS, ProbeConfig(**WIDE), tmp_path / "whole")
    counted = []
    for index in (2, 3, 1):
        summary = probe(base, FACTS, ProbeConfig(**WIDE), tmp_path / "out", shard=Shard(index, 3))
        assert summary.finished == summary.cells
        counted.append(summary.cells)
        assert len(cells_of(tmp_path / "out")) == sum(counted)
    assert sorted(counted) == [2, 2, 4]
    assert_same(tmp_path / "out", tmp_path / "whole")


def test_a_shard_with_nothing_to_do_is_done(base, tmp_path):
    summary = probe(base, FACTS, ProbeConfig(**WIDE), tmp_path / "out", shard=Shard(5, 5))
    assert (summary.cells, summary.finished, summary.failed) == (0, 0, 0)


def test_the_packs_to_train_can_be_chosen_one_by_one(base, tmp_path):
    offered: list[tuple[list[int], int]] = []

    def longest_then_enough(packs: Any, results: Any) -> Pack | None:
        offered.append(([pack[0].length for pack in packs], len(results)))
        return None if len(offered) == 3 else max(packs, key=lambda pack: pack[0].length)

    summary = probe(base, FACTS, ProbeConfig(**WIDE), tmp_path / "out", choose=longest_then_enough)
    assert offered == [([5, 10, 15, 20], 0), ([5, 10, 15], 2), ([5, 10], 4)]
    assert (summary.cells, summary.finished, summary.failed) == (8, 4, 0)
    assert {result.cell.length for result in Journal(tmp_path / "out").results()} == {15, 20}
    assert probe(base, FACTS, ProbeConfig(**WIDE), tmp_path / "out").finished == 8


def test_choosing_is_refused_where_others_train(base, tmp_path):
    with pytest.raises(ConfigError, match="can only be chosen where packs are trained one after the other"):
        probe(base, FACTS, ProbeConfig(**WIDE), tmp_path / "out", engine=Elsewhere(), choose=lambda packs, _: packs[0])
    assert not (tmp_path / "out").exists()


def test_a_probe_finds_what_another_kept_and_comes_to_the_same_bits(base, quiet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shared, engine = Execution(prefix_cache="cache"), Elsewhere()
    for name in ("a", "b"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            probe(base, FACTS, ProbeConfig(**GRID), tmp_path / name, execution=shared, engine=engine)
        assert_same(tmp_path / name, quiet)
        assert len(list((tmp_path / "cache").iterdir())) == 2, "one for each length"
    assert PackSpec.from_json(engine.specs[0]).execution.prefix_cache == str(tmp_path / "cache")


# --- processes and clusters, for real --------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_probe_in_fresh_processes_comes_to_the_same_bits(base, quiet, tmp_path):
    assert probe(base, FACTS, ProbeConfig(**GRID), tmp_path / "out", engine=Isolated()).failed == 0
    assert_same(tmp_path / "out", quiet)


@pytest.mark.slow
def test_a_probe_on_ray_comes_to_the_same_bits_whoever_is_killed_on_the_way(base, quiet, tmp_path):
    killed: list[int] = []
    ended = threading.Event()
    killer = threading.Thread(target=kill_one, args=("ray::pack", killed, ended))
    killer.start()
    try:
        summary = probe(base, FACTS, ProbeConfig(**GRID), tmp_path / "out", engine=OnRay(cpus=2))
    finally:
        ended.set()
        killer.join()
    assert len(killed) == 1
    assert (summary.finished, summary.failed) == (8, 0)
    assert cells_of(tmp_path / "out") == cells_of(quiet)
    assert not sys.modules["ray"].is_initialized()


def kill_one(name: str, killed: list[int], ended: threading.Event) -> None:
    """Kill the first of our processes under a name that shows up."""
    while not killed and not ended.wait(0.02):
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if process.cmdline()[:1] == [name]:
                    process.kill()
                    killed.append(process.pid)
                    break


@pytest.mark.slow
def test_a_cluster_of_this_machine_asks_for_a_token_and_listens_on_the_loopback_alone(tmp_path, monkeypatch):
    ray = OnRay(cpus=1).run(workers.work, deque([f"write:{tmp_path / 'a'}"]), Resources())
    terminated = signal.getsignal(signal.SIGTERM)
    with tempfile.TemporaryDirectory() as folder, monkeypatch.context() as patch, closing(ray):
        patch.setattr(tempfile, "tempdir", folder)
        next(ray)
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        sockets = [socket for process in processes for socket in process.net_connections("inet")]
        listening = {socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN}
        assert listening
        assert listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
        assert len(list(Path(folder).iterdir())) == 1
        assert signal.getsignal(signal.SIGTERM) == terminated
        ray.close()
        assert not list(Path(folder).iterdir())
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


@pytest.mark.slow
def test_a_worker_of_ray_that_dies_and_what_it_raises_are_told(tmp_path):
    found = outcomes(OnRay(cpus=2), "exit:3", "kill:9", "raise:journal", "raise:key", f"write:{tmp_path / 'a'}")
    for spec in ("exit:3", "kill:9"):
        assert str(found[spec]) == "The worker of the pack was lost (WorkerCrashedError)."
    assert isinstance(found["raise:journal"], JournalError)
    assert isinstance(found["raise:key"], KeyError)
    assert (tmp_path / "a").exists()


@pytest.mark.slow
def test_a_killed_driver_takes_its_ray_along(tmp_path):
    with tempfile.TemporaryDirectory() as folder:  # sockets need a short path, and nobody else cleans up after it
        killed_driver_leaves_nobody("ray", tmp_path / "pid", folder)


@pytest.mark.slow
def test_a_cluster_that_does_not_answer_is_told():
    with pytest.raises(ConfigError, match=r"No Ray cluster lets us in at auto .* RAY_AUTH_TOKEN_PATH"):
        outcomes(OnRay("auto"), "exit:0")


@pytest.mark.slow
def test_a_ray_that_cannot_start_is_told(tmp_path, monkeypatch):
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with pytest.raises(ConfigError, match=r"Ray cannot start on this machine \(.*path .*\)\. .* point TMPDIR to a"):
        outcomes(OnRay(cpus=1), "exit:0")
    assert not list(folder.iterdir())


@pytest.mark.slow
def test_more_than_any_node_has_is_told():
    nothing = OnRay(cpus=1).run(workers.work, deque[str](), Resources(cpus=2))
    with pytest.warns(UserWarning, match="No node of the Ray cluster has the 2 CPUs and 0 GPUs that a pack takes"):
        assert list(nothing) == []
