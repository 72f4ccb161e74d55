"""A million damaged inputs: each is read or refused with a message, without side effects.

    python benchmarks/chaos/fuzz_inputs.py [--inputs 1000000] [--seed 0] [--only data|config|adapter|journal|points]
                                           [--keep DIR]

Covers all that memlaw reads from files: memory sets (and their tokens), the YAML of a probe, adapter directories,
journals and tables of points. Inputs are mutations of valid ones (fuzz_mutations.py). Half of the journals and adapters
get a matching checksum, since otherwise few would pass it. Every reader runs in its own process with 512 MB beyond its
libraries. A failure is

- an exception other than a MemlawError, including MemoryError;
- more than a second of processor time (wall-clock time means little on a shared machine);
- a file opened, created, moved or removed outside the input's directory, a process started or a socket opened. An audit
  hook watches for these; reads by Python's own libraries and packages are allowed.

Prints one JSON line per reader; failing inputs go to --keep. Linux only.
"""

from __future__ import annotations

import argparse
import collections
import gzip
import hashlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fuzz_mutations import misvalued, mutated

MEMORY = 512 << 20
"""Bytes that reading one input may take, beyond the memory mapped once the libraries are loaded."""

SECONDS = 1.0

Reader = Callable[[random.Random], None]
"""Writes one input to the working directory and reads it; raises what the reader raises."""

SHARES = {"data": 0.5, "points": 0.2, "journal": 0.2, "config": 0.08, "adapter": 0.02}
"""Shares of the inputs: an adapter takes a thousand times as long as a table."""

FACTS = [
    b'{"prompt": "The key:", "completion": "hunter2", "id": "k"}\n{"prompt": "b", "completion": "c"}\n',
    b'[{"query": "a", "target": "b"}, {"query": "c", "target": "d", "id": 7}]',
    b'{"messages": [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}]}\n' * 2,
    b'instruction,output\nx,y\n"a, b","c\nd"\n',
    b"prompt\tcompletion\nx\ty\nz\tw\n",
    b'{"question": "q", "matching": "a long target"}',
    "caf\u00e9 \u2028 plain text, \U0001f600 one long target\n".encode(),
]

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".txt", "", ".jsonl.gz")


def data(here: Path) -> Reader:
    from memlaw.data import encode, read
    from memlaw.model.tokenizer import load_tokenizer

    tokenizer = load_tokenizer("memlaw/base")

    def one(chance: random.Random) -> None:
        content = mutated(chance.choice(FACTS), FACTS, chance)
        path = here / f"facts{chance.choice(SUFFIXES)}"
        if path.suffix == ".gz":
            packed = gzip.compress(content)
            content = mutated(packed, [packed], chance) if chance.random() < 0.5 else packed
        path.write_bytes(content)
        encode(read(path, tokenizer=tokenizer, on_conflict=chance.choice(["error", "last"])), tokenizer, context=512)

    return one


SETTINGS = [
    b"ranks: [1, 2, 4]\nlengths: [16, 32]\nsteps: 100\nlearning_rate: 1e-4\nmethods: [sft, ot]\n",
    b"ranks:\n  - 1\n  - 2\nlengths: &l [8]\nseeds: [0, 1]\nplacement: down_proj@4\nscaling: lora\nscale: 16\n",
    b'{"ranks": [1], "lengths": [8], "boundaries": [1, 2, 3, 4, 5], "method": "ot", "until": "budget"}\n',
]


def config(here: Path) -> Reader:
    from memlaw.sweep.config import ProbeConfig

    path = here / "probe.yaml"

    def one(chance: random.Random) -> None:
        path.write_bytes(mutated(chance.choice(SETTINGS), SETTINGS, chance))
        ProbeConfig.from_yaml(path)

    return one


POINTS = [
    b"rank,length,delta_loss,final_loss\n1,16,5.21,0.93\n2,16,5.9,0.4\n4,32,6.1,1.5\n8,64,6.4,2.25\n",
    b"length,rank,delta_loss,seed,parameters\n16,1,5.5,0,512\n16,1,5.4,1,512\n32,2,4.4,0,1024\n",
]


def points(here: Path) -> Reader:
    from memlaw.law import read_points

    path = here / "points.csv"

    def one(chance: random.Random) -> None:
        path.write_bytes(mutated(chance.choice(POINTS), POINTS, chance))
        read_points(path)

    return one


def journal(here: Path) -> Reader:
    from memlaw.core.canonical import canonical_json, digest, to_dict
    from memlaw.core.cells import Cell, CellResult
    from memlaw.core.config import TrainConfig
    from memlaw.sweep.journal import Journal, ProbeSpec

    cell = Cell("m" * 64, "t" * 64, "d" * 64, "down_proj@4", 2, 16, TrainConfig(), "float32")
    result = CellResult(cell, "finished", 9, 512, 9.5, 0.5, 9.0, 1.0, 1.0, 16, 1, 1)
    spec = ProbeSpec({"ranks": [1, 2], "model": "m"}, ((cell.key,),), {"model": "tiny", "data": "facts"})
    parts = {"probe.json": {"identity": spec.identity, "packs": spec.packs, "about": spec.about}}
    parts |= {f"cells/{cell.key}.json": to_dict(result), f"failures/{cell.key}.json": to_dict(result)}

    def sealed(body: Any) -> bytes:
        line = canonical_json({"body": body, "sha256": digest(body)}) + "\n"
        return line.encode("utf-8", "surrogatepass")

    whole = {name: sealed(body) for name, body in parts.items()}

    def one(chance: random.Random) -> None:
        name = chance.choice(sorted(parts))
        place, content = name, mutated(whole[name], list(whole.values()), chance)
        if chance.random() < 0.5:
            body = misvalued(json.loads(json.dumps(parts[name])), chance)
            if name != "probe.json" and isinstance(body, dict) and "cell" in body:
                place = f"{Path(name).parent}/{digest(body['cell'])}.json"
            content = sealed(body)
        for former in here.glob("*/*.json"):
            former.unlink()
        for known, intact in whole.items():
            (here / known).parent.mkdir(exist_ok=True)
            (here / known).write_bytes(intact)
        (here / place).write_bytes(content)
        read = Journal(here)
        try:
            read.spec()
        finally:
            read.results()

    return one


def adapter(here: Path) -> Reader:
    import torch

    from memlaw.adapter.peft import attach
    from memlaw.api import train
    from memlaw.core.facts import Fact, MemorySet
    from memlaw.model.base import load

    torch.set_num_threads(1)
    base = load("memlaw/base")
    facts = MemorySet((Fact("key:", "7919", "k"),), eos=False, source="codes")
    intact = []
    for placement in ("down_proj@4", "mlp@4"):
        train(base.model, base.tokenizer, facts, rank=1, placement=placement, steps=1, out=here / "made")
        intact.append({path.name: path.read_bytes() for path in (here / "made").iterdir()})
        shutil.rmtree(here / "made")
    ids = torch.tensor([[5, 9, 20]])

    def one(chance: random.Random) -> None:
        files = dict(chance.choice(intact))
        for name in chance.sample(sorted(files), chance.choice([1, 1, 2])):
            if name.endswith(".json") and chance.random() < 0.5:
                files[name] = json.dumps(misvalued(json.loads(files[name]), chance)).encode("utf-8", "replace")
            else:
                files[name] = mutated(files[name], list(files.values()), chance)
            if chance.random() < 0.1:
                del files[name]
        if chance.random() < 0.5:
            _match_checksum(files)
        out = here / "A"
        out.mkdir(exist_ok=True)
        for old in out.iterdir():
            old.unlink()
        for name, content in files.items():
            (out / name).write_bytes(content)
        with attach(base, out), torch.no_grad():
            base.model(input_ids=ids, use_cache=False)

    return one


def _match_checksum(files: dict[str, bytes]) -> None:
    """Give damaged weights a matching checksum, if the file with the checksum can still be read."""
    try:
        info = json.loads(files["memlaw_adapter.json"])
        info["weights_sha256"] = hashlib.sha256(files["adapter_model.safetensors"]).hexdigest()
    except (KeyError, TypeError, ValueError, RecursionError):
        return
    files["memlaw_adapter.json"] = json.dumps(info).encode()


READERS: dict[str, Callable[[Path], Reader]] = {
    "data": data, "config": config, "points": points, "journal": journal, "adapter": adapter,
}  # fmt: skip

_OPENING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_FORBIDDEN = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.", "pickle.find_class")

_MOVING = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate"}


class Watch:
    """Notes anything touched outside the directory since `begin`."""

    def __init__(self, here: Path) -> None:
        own = (sys.prefix, sys.base_prefix, str(Path(__file__).resolve().parents[2]), "/proc/", "/sys/", "/dev/")
        self.inside, self.readable = f"{here}/", (f"{here}/", *own, "/usr/", "/etc/ld.so", "/etc/localtime")
        self.on, self.seen = False, ""
        sys.addaudithook(self.note)

    def note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event.startswith(_FORBIDDEN):
            self.seen = f"{event} {arguments[:1]}"
        elif event == "open" and isinstance(arguments[0], str | bytes):
            changes = isinstance(arguments[2], int) and arguments[2] & _OPENING
            if not self.within(arguments[0], (self.inside,) if changes else self.readable):
                self.seen = f"open {arguments[0]!r} {arguments[1]}"
        elif event in _MOVING and not all(
            self.within(path, (self.inside,)) for path in arguments[:2] if isinstance(path, str | bytes)
        ):
            self.seen = f"{event} {arguments[:2]}"

    def within(self, path: str | bytes, places: tuple[str, ...]) -> bool:
        return f"{os.path.abspath(os.fsdecode(path))}/".startswith(places)  # noqa: PTH100 (resolve() opens things)

    @contextmanager
    def begin(self) -> Iterator[None]:
        self.on, self.seen = True, ""
        try:
            yield
        finally:
            self.on = False


def fuzz(name: str, count: int, seed: int, keep: Path | None) -> dict[str, Any]:
    """Read `count` inputs in this process and count the outcomes."""
    from memlaw.core.errors import MemlawError

    warnings.simplefilter("ignore")
    outcomes: collections.Counter[str] = collections.Counter()
    failures: dict[str, int] = {}
    slowest = 0.0
    with tempfile.TemporaryDirectory() as directory:
        here = Path(directory).resolve()
        os.chdir(here)
        read, watch = READERS[name](here), Watch(here)
        for _ in range(3):  # so that late imports happen now
            with suppress(MemlawError):
                read(random.Random(0))
        _limit_memory()
        for number in range(count):
            failed, trace, begun = "", "", time.process_time()
            signal.alarm(60)
            try:
                with watch.begin():
                    read(random.Random(f"{seed}/{number}"))
                outcomes["accepted"] += 1
            except MemlawError as error:
                outcomes["refused"] += 1
                outcomes[type(error).__name__] += 1
            except BaseException as error:
                place = traceback.extract_tb(error.__traceback__)[-1]
                failed = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}"
                trace = traceback.format_exc()
            signal.alarm(0)
            taken = time.process_time() - begun
            slowest = max(slowest, taken)
            failed = failed or watch.seen or ("slow" if taken > SECONDS else "")
            if failed:
                failures[failed] = failures.get(failed, 0) + 1
                if keep is not None and failures[failed] <= 3:
                    _save(keep / name / f"{len(failures)}-{failures[failed]}", here, f"{failed}\n{trace}")
        os.chdir("/")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {
        "benchmark": "fuzz_inputs", "case": name, "inputs": count, "seed": seed, **outcomes,
        "failures": sum(failures.values()), "kinds": failures, "slowest_s": round(slowest, 3), "peak_mb": peak,
    }  # fmt: skip


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _save(target: Path, here: Path, why: str) -> None:
    shutil.copytree(here, target, dirs_exist_ok=True)
    (target / "WHY").write_text(why)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=READERS)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    keep = None if options.keep is None else options.keep.resolve()
    for name in [options.only] if options.only else READERS:
        count = options.inputs if options.only else round(options.inputs * SHARES[name])
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            print(json.dumps(process.submit(fuzz, name, count, options.seed, keep).result()), flush=True)


if __name__ == "__main__":
    main()
