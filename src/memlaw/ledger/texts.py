"""The texts of facts: the only files of a ledger that spell them out."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from memlaw.core.canonical import canonical_json
from memlaw.core.errors import LedgerError, listed
from memlaw.core.facts import Fact
from memlaw.ledger.layout import TEXTS, version_folder
from memlaw.ledger.records import Held, Pair, Retracted, Version, pair_of


class Texts:
    """The texts of a version's facts, as far as they are known. A file is read once a fact of it is asked for: an
    update asks for the facts of the adapters that it trains, and a ledger may hold many more."""

    def __init__(
        self, given: Mapping[Pair, Fact], kept_in: Path | None, sources: Mapping[int, Callable[[], Mapping[Pair, Fact]]]
    ) -> None:
        """`sources` read the texts that a version introduced; `kept_in` is the folder of the versions, None if the
        ledger keeps no texts, so that only `given` originals are known."""
        self._known, self._kept_in, self._unread = dict(given), kept_in, dict(sources)

    def of(self, records: Sequence[Held | Retracted]) -> tuple[Fact, ...]:
        """The facts of the records, in their order. Raises LedgerError, which names the ids of those without text."""
        missing = self.missing(records)
        if missing:
            raise LedgerError(
                f"The texts of {listed(missing)} are needed to ask for these facts, but {self._lack(records)}. Add the "
                "original records to the file of the update: a record that is stored already changes nothing."
            )
        return tuple(replace(self._known[record.pair], id=record.id) for record in records)

    def every(self) -> Mapping[Pair, Fact]:
        """All that are known: hashes of prompt and target -> the fact. Raises LedgerError for a file that cannot be
        read."""
        self._read(tuple(self._unread))
        return dict(self._known)

    def missing(self, records: Sequence[Held | Retracted]) -> tuple[str, ...]:
        """Ids of the records whose text is not known. Raises LedgerError for a file that cannot be read."""
        self._read(record.since for record in self._unknown(records))
        if self._unknown(records):  # a file is damaged, and another version may have introduced the same fact
            self._read(tuple(self._unread))
        return tuple(record.id for record in self._unknown(records))

    def _unknown(self, records: Sequence[Held | Retracted]) -> list[Held | Retracted]:
        return [record for record in records if record.pair not in self._known]

    def _read(self, versions: Iterable[int]) -> None:
        for number in sorted(set(versions) & self._unread.keys()):
            self._known |= self._unread.pop(number)()

    def _lack(self, records: Sequence[Held | Retracted]) -> str:
        if self._kept_in is None:
            return "the ledger keeps no texts (--no-text)"
        since = sorted({record.since for record in self._unknown(records)})
        return (
            f"{listed(str(self._kept_in / version_folder(number) / TEXTS) for number in since)} is missing or damaged"
        )


def write_texts(version: Version, texts: Sequence[Fact], key: str) -> bytes:
    """The content of facts.jsonl. Raises ValueError unless `texts` are the facts that are new in this version."""
    new = {record.pair: record.id for record in version.held if record.since == version.number}
    given = {pair_of(fact, key): fact for fact in texts}
    if given.keys() != new.keys():
        raise ValueError(f"{len(new)} facts are new in this version, and {len(given)} texts do not match them.")
    rows = (_row(replace(fact, id=new[pair])) for pair, fact in given.items())
    return "".join(f"{canonical_json(row)}\n" for row in rows).encode("utf-8", "surrogatepass")


def read_texts(content: bytes, key: str) -> dict[Pair, Fact]:
    """The facts in facts.jsonl. Their hashes name what they are, so a damaged one is found by nobody."""
    known = {}
    for line in content.split(b"\n"):
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            fact = _fact(json.loads(line.decode("utf-8", "surrogatepass")))
            known[pair_of(fact, key)] = fact
    return known


def _row(fact: Fact) -> dict[str, Any]:
    """A fact as a record that `memlaw.read` reads too."""
    row: dict[str, Any] = {"id": fact.id, "prompt": fact.prompt, "completion": fact.target}
    exact = {"target_ids": fact.target_ids, "end": fact.end}
    return row | {name: value for name, value in exact.items() if value is not None}


def _fact(row: Mapping[str, Any]) -> Fact:
    ids = row.get("target_ids")
    return Fact(
        row["prompt"], row["completion"], row["id"], target_ids=None if ids is None else tuple(ids), end=row.get("end")
    )
