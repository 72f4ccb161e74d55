"""Does a certificate hold? Certified records decoded again, one by one and 32 at a time, in float32 and bfloat16.

    OMP_NUM_THREADS=1 python benchmarks/certificates.py

Facts are stretches of Python's own standard library that the bundled base gives p > 1/2 token by token. `failed` counts
certified records that a second greedy decoding, with batches of another size, did not reproduce: it must be 0.
The last line is the time of a whole recall, with decoding, of 1,000 phone-book records of 10 digits.
"""

from __future__ import annotations

import argparse
import json
import sysconfig
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from memlaw.core.facts import EncodedFact
from memlaw.data import Reading, encode
from memlaw.data.load import load_memory_set
from memlaw.diagnosis.measure import measure
from memlaw.model.base import Base, load
from memlaw.model.reach import reachable_ids

WINDOW, PROMPT = 192, 32


def stretches(base: Base, tokens: int) -> list[EncodedFact]:
    """Facts of two tokens and more, all of which the base gives p > 1/2 in the window they were found in."""
    found: list[EncodedFact] = []
    stored = 0
    for rows in windows(base):
        with torch.no_grad():
            p = base.model(input_ids=rows).logits[:, :-1].float().softmax(-1)
        likely = (p.gather(-1, rows[:, 1:, None])[..., 0] > 0.5) & (rows[:, 1:] != base.tokenizer.eos_token_id)
        for row, ordered in zip(rows.tolist(), likely.tolist(), strict=True):
            start = PROMPT
            for end in range(PROMPT, WINDOW + 1):
                if end == WINDOW or not ordered[end - 1]:
                    if end - start > 1:
                        found.append(EncodedFact(f"s{len(found)}", tuple(row[start - PROMPT : end]), PROMPT))
                        stored += end - start
                    start = end + 1
            if stored >= tokens:
                return found
    return found


def windows(base: Base) -> Iterator[torch.Tensor]:
    """The standard library as rows of `WINDOW` tokens, a file at a time."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        ids = base.tokenizer(path.read_text(encoding="utf-8"), verbose=False).input_ids
        if len(ids) >= WINDOW:
            yield from torch.tensor(ids[: len(ids) // WINDOW * WINDOW]).view(-1, WINDOW).split(16)


def again(base: Base, facts: Sequence[EncodedFact], rows: int) -> int:
    """How many of `facts` greedy decoding misses in batches of `rows`."""
    batches = (facts[start : start + rows] for start in range(0, len(facts), rows))
    return sum(not item.exact for batch in batches for item in measure(base, batch, decode=True).items)


def certificates(dtype: str, tokens: int) -> Iterator[dict[str, object]]:
    base = load(dtype=dtype)
    facts = stretches(base, tokens)
    report = measure(base, facts, decode=True, explain=True)
    certified = [fact for fact, item in zip(facts, report.items, strict=True) if item.certified]
    unexplained = sum(item.reason is None and not item.certified for item in report.items)
    for rows in (1, 32):
        begun = time.perf_counter()
        failed = again(base, certified, rows)
        yield {
            "benchmark": "certificates",
            "case": f"{dtype}, batches of {rows}",
            "records": report.records,
            "certified": len(certified),
            "tokens": sum(fact.length for fact in certified),
            "failed": failed,
            "unexplained": unexplained,
            "rounding": report.rounding,
            "tolerance": report.tolerance,
            "seconds": round(time.perf_counter() - begun, 1),
        }


def phonebook() -> dict[str, object]:
    base = load()
    ids = partial(reachable_ids, base)
    book = load_memory_set("task:phonebook:tokens=10000", base.tokenizer, ids, Reading(eos=False))
    facts = encode(book, base.tokenizer, context=base.context)
    begun = time.perf_counter()
    report = measure(base, facts, decode=True, explain=True)
    seconds = time.perf_counter() - begun
    return {
        "benchmark": "certificates",
        "case": "recall of a phone book",
        "records": report.records,
        "tokens": report.tokens,
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=32_000, help="target tokens to look for, of which most certify")
    tokens = parser.parse_args().tokens
    for dtype in ("float32", "bfloat16"):
        for line in certificates(dtype, tokens):
            print(json.dumps(line), flush=True)
    print(json.dumps(phonebook()), flush=True)


if __name__ == "__main__":
    main()
