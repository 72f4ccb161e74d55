"""SIGKILL real updates of a ledger, which train, measure and publish: no fact is lost, and no version is half there.

    OMP_NUM_THREADS=1 python benchmarks/chaos/ledger_updates.py [--kills 1000] [--seed 0]

The base is a random Qwen3 of two layers. Each update adds a fact or two, changes one and retracts one or two, with
--auto-grow at a low rank, so that many versions have several adapters. Half of the kills are aimed at publishing, the
others come at any time; in every third round a second writer waits for the first, or is refused in a sentence. After
every kill HEAD must lead to a version that is whole, no older than the last acknowledged one, and that holds what its
parent held but for what its writer was about to change. After every tenth the facts are measured again with the
adapters on disk. A ledger lasts for 25 kills; then one more update must leave no temporary file behind. The line counts
what the killed writers were doing (`while_`): "intends" is before the first step.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import os
import random
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from memlaw.core.config import UNTIL_RECALLED
from memlaw.core.errors import GateError, LedgerError, MemlawError
from memlaw.core.facts import Fact
from memlaw.ledger import training
from memlaw.ledger.audited import audit
from memlaw.ledger.gate import Measured, Terms
from memlaw.ledger.records import Version
from memlaw.ledger.store import Store
from memlaw.ledger.training import Watch
from memlaw.ledger.update import NewLedger, Request, create, update
from memlaw.ledger.upkeep import verify
from memlaw.model.base import Base, wrap

KILLS_PER_LEDGER = 25
MEASURED_EVERY = 10
PATIENCE = 120.0
"""Seconds after which a writer that says nothing counts as stuck."""

RANK, PLACEMENT = 2, "down_proj@0-1"
CONFIG = replace(UNTIL_RECALLED, steps=20, learning_rate=6e-2, protect=0.0)
ANY_HARM = Terms(max_harm=math.inf)

_CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 -?:.,;'\"!()"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn")
    ) as server:  # one thread, which can fork
        print(json.dumps(server.submit(killed, options.kills, options.seed).result()), flush=True)


def killed(kills: int, seed: int) -> dict[str, object]:
    """The counts of so many kills."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    base, chance, begun = a_base(), random.Random(seed), time.monotonic()
    _warm(base)
    counts = Counter[str]()
    while counts["kills"] < kills:
        with tempfile.TemporaryDirectory() as folder:
            counts += Trial(Path(folder) / "ledger", base, chance).run(min(KILLS_PER_LEDGER, kills - counts["kills"]))
        print(counts["kills"], dict(counts), file=sys.stderr, flush=True)
    zero = (
        "lost_facts",
        "half_versions",
        "uncertified",
        "came_back",
        "leftovers_after_update",
        "failed_writers",
        "stuck_writers",
    )
    return {
        "benchmark": "chaos", "case": "ledger, SIGKILL of updates that train", **dict.fromkeys(zero, 0),
        **dict(sorted(counts.items())), "seconds": round(time.monotonic() - begun), "seed": seed,
    }  # fmt: skip


@dataclass
class Writer:
    """A process that updates, and what it has said so far."""

    process: int
    pipe: int
    begun: float = field(default_factory=time.monotonic)
    phase: str = "starting"
    ended: bool = False
    rest: bytes = b""


class Trial:
    """One ledger and the writers that are killed at it."""

    def __init__(self, root: Path, base: Base, chance: random.Random) -> None:
        self.root, self.base, self.chance = root, base, chance
        self.store = Store(root)
        create(self.store, base, NewLedger(RANK, PLACEMENT, CONFIG))
        self.counts = Counter[str]()
        self.writers = 0
        self.living: list[Writer] = []
        self.intended: dict[str, tuple[dict[str, str], list[str]]] = {}
        """Name of an update -> id -> target of the facts it gives, and the ids that it retracts."""
        self.expected: dict[int, dict[str, str]] = {0: {}}
        """Version -> id -> target."""
        self.acknowledged = 0
        """The last version that was."""
        self.lasting = [1.0]
        """Seconds from the start of an update to its publication."""
        self.publishing = [0.1]
        self._update_unharmed(2)

    def run(self, kills: int) -> Counter[str]:
        while self.counts["kills"] < kills:
            self._round(two=self.chance.random() < 1 / 3)
        self._update_unharmed(1)
        report = verify(self.store)
        self.counts["leftovers_after_update"] += len(report.leftovers)
        self.counts["half_versions"] += len(report.damaged) + len(report.unreadable)
        self.counts["published_but_never_current"] += len(report.aside)
        return self.counts

    def _round(self, *, two: bool) -> None:
        first = self._writer(self._write)
        self.living = [first]
        if two and self._until(first, lambda: first.phase != "starting"):
            wait = self.chance.choice([0.0, math.inf])
            second = self._writer(lambda say, number: self._add(say, number, wait))
            if wait == 0.0:
                self._until(second, lambda: second.ended)
                self._bury(second)
            else:
                self.living.append(second)
        while self.living:
            self._kill_some_time(self.living.pop(0))

    def _kill_some_time(self, writer: Writer) -> None:
        if self.chance.random() < 0.5:
            self._until(writer, lambda: writer.phase == "publishing")
            time.sleep(self.chance.uniform(0.0, 1.2) * _mean(self.publishing))
        else:
            time.sleep(self.chance.uniform(0.0, 1.3) * _mean(self.lasting))
        os.kill(writer.process, signal.SIGKILL)
        _, status = os.waitpid(writer.process, 0)
        self._hear(writer)
        os.close(writer.pipe)
        self.counts["kills"] += 1
        self.counts[f"while_{writer.phase}"] += 1
        self.counts["failed_writers"] += not os.WIFSIGNALED(status)
        self._check()

    def _writer(self, work: Callable[[Voice, int], None]) -> Writer:
        self.writers += 1
        number, (reading, writing) = self.writers, os.pipe()
        process = os.fork()
        if process:
            os.close(writing)
            os.set_blocking(reading, False)
            return Writer(process, reading)
        try:
            work(Voice(writing), number)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        os._exit(1)  # and not back into the code of the parent

    def _write(self, say: Voice, number: int, most: float = math.inf) -> None:
        """So many updates, or until killed."""
        store, chance = Announced(self.root, say), random.Random(f"{self.root}{number}")
        done = 0
        for turn in itertools.count():
            if done == most:
                return
            with store.locked(math.inf):
                head = store.head()
                known = {fact.id: fact.target for fact in store.texts(head).of(head.held)}
                leaving = chance.sample(sorted(known), min(max(0, len(known) - 1), 1 + (len(known) > 6)))
                changing = chance.sample(sorted(known.keys() - set(leaving)), min(1, len(known) - len(leaving)))
                new = [f"{number}.{turn}-{place}" for place in range(chance.randint(1, 2))]
                given = {name: _target(chance, known.get(name, "")) for name in (*changing, *new)}
                done += _update(store, self.base, given, leaving, say)

    def _add(self, say: Voice, number: int, wait: float) -> None:
        """Add a fact beside another writer, once or, if that is waited for, until killed."""
        store, chance = Announced(self.root, say), random.Random(f"{self.root}{number}")
        for turn in itertools.count():
            try:
                done = _update(store, self.base, {f"{number}.{turn}-0": _target(chance)}, [], say, wait)
            except LedgerError as error:
                say("refused", "Another process is writing" in str(error) and "--wait" in str(error))
                return
            if done and wait == 0.0:
                return

    def _until(self, writer: Writer, condition: Callable[[], bool]) -> bool:
        """Listen until the condition holds; False if the writer is stuck or has died."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            self._hear(writer)
            if condition():
                return True
            if writer.ended:
                return False
            time.sleep(0.0005)
        self.counts["stuck_writers"] += 1
        return False

    def _hear(self, writer: Writer) -> None:
        while True:
            try:
                content = os.read(writer.pipe, 1 << 16)
            except BlockingIOError:
                return
            if not content:
                writer.ended = True
                return
            *lines, writer.rest = (writer.rest + content).split(b"\n")
            for line in lines:
                self._take(writer, *json.loads(line))

    def _take(self, writer: Writer, when: float, what: str, *more: Any) -> None:
        if what == "intends":
            name, given, leaving = more
            self.intended[name] = (given, leaving)
            writer.begun = when
        elif what == "publishing":
            self.lasting.append(when - writer.begun)
            writer.begun = when
        elif what == "published":
            self.counts["acknowledged"] += 1
            self.acknowledged = max(self.acknowledged, *more)
            self.publishing.append(when - writer.begun)
        elif what == "refused_by_gate":
            self.counts[what] += 1
        elif what == "refused":
            self.counts["refused_in_a_sentence" if all(more) else "failed_writers"] += 1
        writer.phase = what

    def _check(self) -> None:
        """HEAD is whole, whatever a living writer does meanwhile, and so is every version that is new."""
        acknowledged = self.acknowledged
        try:
            version = self.store.head()
            new = self.store.numbers()
            for writer in self.living:  # so that what they meant to publish is known
                self._hear(writer)
            for number in sorted({version.number, *new} - (self.expected.keys() - {version.number})):
                self._check_version(number)
        except (MemlawError, ValueError, KeyError):
            traceback.print_exc()
            self.counts["half_versions"] += 1
            return
        self.counts["lost_facts"] += version.number < acknowledged
        self.counts["heads_of_several_adapters"] += len(version.adapters) > 1
        if self.counts["kills"] % MEASURED_EVERY == 0:
            self._measure(version)

    def _check_version(self, number: int) -> None:
        """A version is whole, and holds what its parent held but for what its writer was to change."""
        version = self.store.version(number)
        self.store.check_files(self.store.manifest(number))
        facts = {fact.id: fact.target for fact in self.store.texts(version).of(version.held)}
        if number not in self.expected:
            self.counts["versions"] += 1
            given, leaving = self.intended[version.change.added[0].split("-")[0]]
            before = self.expected[version.parent or 0]
            self.expected[number] = {name: before[name] for name in before.keys() - set(leaving)} | given
        expected = self.expected[number]
        self.counts["lost_facts"] += len(expected.items() ^ facts.items())

    def _measure(self, version: Version) -> None:
        found = audit(self.store, self.base, version.number)
        self.counts["measured_again"] += 1
        self.counts["facts_measured_again"] += len(found.held)
        self.counts["uncertified"] += sum(fact.verdict != "certified" for fact in found.held)
        self.counts["came_back"] += len(found.returned)

    def _update_unharmed(self, updates: int) -> None:
        writer = self._writer(lambda say, number: self._write(say, number, updates))
        self._until(writer, lambda: writer.ended)
        self._bury(writer)

    def _bury(self, writer: Writer) -> None:
        """A writer that ends by itself."""
        _, status = os.waitpid(writer.process, 0)
        os.close(writer.pipe)
        self.counts["failed_writers"] += status != 0


class Voice:
    """What a writer says of itself to the process that kills it."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe
        self.last = ""
        measured = training.measured

        def announced(*given: Any) -> Measured:
            self("measuring")
            return measured(*given)

        training.measured = announced  # in this process alone

    def __call__(self, what: str, *more: object) -> None:
        if what != self.last or more:
            os.write(self.pipe, f"{json.dumps([time.monotonic(), what, *more])}\n".encode())
        self.last = what


class Announced(Store):
    """A store that says when it publishes."""

    def __init__(self, root: Path, say: Voice) -> None:
        super().__init__(root)
        self.say = say

    def publish(self, version: Version, **more: Any) -> Version:
        self.say("publishing")
        return super().publish(version, **more)


def _update(
    store: Store, base: Base, given: Mapping[str, str], leaving: Sequence[str], say: Voice, wait: float = 0.0
) -> bool:
    """Whether the gate let the update pass."""
    say("intends", next(reversed(given)).split("-")[0], given, leaving)
    facts = tuple(Fact(f"Is {name}? ", target, name) for name, target in given.items())
    request = Request(facts, tuple(leaving), auto_grow=True, terms=ANY_HARM)
    try:
        version = update(store, base, request, Watch(on_step=lambda _: say("training"), wait=wait))
    except GateError:
        say("refused_by_gate", True)
        return False
    say("published", version.number)
    return True


def _warm(base: Base) -> None:
    """Load what an update needs before the first fork: no writer should spend its life on imports."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "ledger")
        create(store, base, NewLedger(RANK, PLACEMENT, CONFIG))
        update(store, base, Request((Fact("Is it? ", "A0", "it"),), auto_grow=True, terms=ANY_HARM))


def _target(chance: random.Random, other: str = "") -> str:
    """A target that is not the other."""
    drawn = "".join(chance.choice("ABCDEFGH0123456789") for _ in range(2))
    return drawn if drawn != other else _target(chance, other)


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values[-20:])


def a_base() -> Base:
    """A random model with a token for each character; its weights are larger than usual, so that every layer matters
    and every token can be reached."""
    torch.manual_seed(0)
    vocabulary = {token: place for place, token in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *_CHARACTERS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    config = transformers.Qwen3Config(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=32, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
        model.get_output_embeddings().weight.mul_(8.0)
    return wrap(model, tokenizer, name="tiny-qwen3")


if __name__ == "__main__":
    main()
