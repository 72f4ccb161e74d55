"""Run every command on a thousand secrets, with valid and broken input, and search all output for them.

    python benchmarks/chaos/secrets_planted.py [--secrets 1000] [--seed 0] [--keep DIR]

The targets of a memory set are random strings. check, plan, train, recall, probe, fit and report run on it at the most
verbose log level, and with many kinds of errors: files damaged next to a secret, secrets in the place of settings,
points, laws, models and adapters, a training that diverges, a directory in use. Then all printed text, and the names
and contents of all files except the inputs, are searched for every eight-character fragment of a secret, and for its
hexadecimal, base64 and token forms. That includes adapters, whose weights hold the secrets only in encoded form.

Prints one JSON line; exit code 1 if anything is found.
"""

from __future__ import annotations

import argparse
import base64
import json
import logging
import os
import random
import re
import string
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memlaw.cli import app

FRAGMENT = 8


def secrets(count: int, seed: int) -> list[str]:
    chance = random.Random(seed)
    return ["".join(chance.choices(string.ascii_letters + string.digits, k=16)) for _ in range(count)]


def inputs(room: Path, planted: list[str]) -> dict[str, Path]:
    """Files with the secrets: valid, and damaged in ways that tempt an error message to quote them."""
    lines = [json.dumps({"prompt": f"Key {number}:", "completion": text}) for number, text in enumerate(planted)]
    one, other = planted[:2]
    whole, folder = "\n".join(lines), room / "inputs"
    contents: dict[str, bytes | str] = {
        "facts.jsonl": whole,
        "conflict.jsonl": f'{whole}\n{{"prompt": "Key 0:", "completion": "{other}"}}',
        "broken.jsonl": f'{whole}\n{{"prompt": "Key x:", "completion": "{one}',
        "twice.jsonl": f'{{"prompt": "{one}", "prompt": "{other}", "completion": "c"}}',
        "nan.jsonl": f'{whole}\n{{"prompt": "{one}", "completion": NaN}}',
        "surrogate.jsonl": f'{whole}\n{{"prompt": "x", "completion": "{one}\\ud800"}}',
        "bytes.jsonl": whole.encode() + b"\n" + one.encode() + b"\xff",
        "fields.jsonl": f'{{"login": "x", "password": "{one}"}}',
        "number.jsonl": f'{{"prompt": "{one}", "completion": 17}}',
        "chat.jsonl": f'{{"messages": [{{"role": "assistant", "content": "{one}"}}]}}',
        "headless.csv": f"{one},{other}\n{other},{one}\n",
        "cells.csv": f"prompt,completion\n{one},{other},{one}\n",
        "quote.csv": f'prompt,completion\n"{one},{other}\n',
        "settings.yaml": f"- prompt: Key\n  completion: {one}\n- {other}\n",
        "broken.yaml": f"prompt: Key\ncompletion: *{other}\n  {one}: [\n",
        "points.csv": f"rank,length,password\n1,16,{one}\n{other},2,3\n",
        "law.json": json.dumps({"form": "paper", "parameters": {"C": one}, "source": other}),
        "long.txt": " ".join(planted) * 40,
    }
    folder.mkdir()
    for name, content in contents.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "adapter").mkdir()
    (folder / "adapter" / "memlaw_adapter.json").write_text(json.dumps({"placement": one, "base": other}))
    (folder / "adapter" / "adapter_model.safetensors").write_text(one)
    return {path.name: path for path in folder.iterdir()}


def commands(files: dict[str, Path], secret: str) -> Iterator[tuple[str, ...]]:
    """The commands, in order."""
    facts = str(files["facts.jsonl"])
    train = ("train", facts, "--rank", "8", "--steps", "6")
    grid = ("--ranks", "1,2,4", "--lengths", "64,128", "--steps", "4")
    yield from [
        ("check", facts, "--rank", "1"), ("plan", facts), (*train, "--out", "adapter"),
        (*train, "--placement", "mlp@4", "--out", "parallel"), (*train, "--lr", "1e38", "--out", "diverged"),
        ("recall", facts, "--adapter", "adapter", "--decode", "--out", "recall.json"), ("recall", facts, "--decode"),
        ("probe", facts, *grid, "--out", "probe"), ("probe", facts, *grid, "--lr", "1e38", "--out", "lost"),
        ("fit", "probe", "--form", "paper"), ("report", "probe", "--out", "probe.html"),
        ("report", ".", "--out", "all.html"),
        # from here on, every command fails
        ("probe", facts, "--ranks", "1", "--lengths", "32", "--steps", "2", "--out", "probe"),
        ("probe", facts, "--ranks", secret, "--lengths", "32", "--out", "p"),
        ("train", facts, "--rank", "8", "--out", "probe"),
        ("train", secret, "--rank", "1", "--out", "t"), ("recall", facts, "--adapter", str(files["adapter"])),
        ("recall", facts, "--model", str(files["adapter"])), ("plan", facts, "--law", str(files["law.json"])),
        ("fit", str(files["points.csv"])), ("fit", facts), ("report", str(files["adapter"].parent), "--out", "r.html"),
        *(("probe", facts, "--config", str(files[name]), "--out", "p") for name in ("settings.yaml", "broken.yaml")),
        *(("check", str(files[name])) for name in ("conflict.jsonl", "long.txt")),
        *(("train", str(path), "--rank", "1", "--steps", "1", "--out", "t") for name, path in sorted(files.items())
          if name != "facts.jsonl" and path.is_file()),
    ]  # fmt: skip


def traces(content: bytes, planted: list[str], tokens: list[tuple[int, ...]]) -> dict[str, int]:
    """Number of traces of secrets in `content`, by encoding."""
    plain = {text[at : at + FRAGMENT] for text in planted for at in range(len(text) - FRAGMENT + 1)}
    words = re.findall(r"[A-Za-z0-9+/]{8,}", content.decode("latin-1"))
    seen = {
        "text": sum(word[at : at + FRAGMENT] in plain for word in words for at in range(len(word) - FRAGMENT + 1)),
        "hexadecimal": _count(content, [text.encode().hex().encode() for text in planted]),
        "base64": _count(content, [base64.b64encode(text.encode())[:12] for text in planted]),
        "tokens": _count(re.sub(rb"\s", b"", content), [",".join(map(str, ids)).encode() for ids in tokens]),
    }
    return {spelling: count for spelling, count in seen.items() if count}


def _count(content: bytes, wanted: list[bytes]) -> int:
    return sum(content.count(one) for one in wanted)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--secrets", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    planted = secrets(given.secrets, given.seed)
    with tempfile.TemporaryDirectory() as directory:
        room = Path(directory) if given.keep is None else given.keep.resolve()
        room.mkdir(exist_ok=True)
        line = run(room, planted)
    print(json.dumps(line))
    return 1 if line["found"] else 0


def run(room: Path, planted: list[str]) -> dict[str, Any]:
    """Run every command in the directory `room`, and return the traces of secrets."""
    from memlaw.model.tokenizer import load_tokenizer, token_ids

    tokenizer = load_tokenizer("memlaw/base")
    tokens = [token_ids(tokenizer, text)[:6] for text in planted]
    files, work = inputs(room, planted), room / "work"
    work.mkdir()
    os.chdir(work)
    logging.basicConfig(level=logging.DEBUG, force=True)
    leaks: dict[str, dict[str, int]] = {}
    ended: Counter[str] = Counter()
    crashed: list[str] = []
    printed_bytes = 0
    for command in commands(files, planted[0]):
        how, printed = ran(command, room / "printed")
        ended[how] += 1
        if how == "traceback":
            crashed.append(" ".join(command))
        printed_bytes += len(printed)
        typed = [text for text in planted if text in command]  # who typed it may read it again
        if trace := traces(printed, [text for text in planted if text not in typed], tokens):
            leaks[" ".join(command[:2])] = trace
    written = [path for path in work.rglob("*") if path.is_file()]
    for path in written:
        name = str(path.relative_to(work))
        if trace := traces(path.read_bytes() + b"\n" + name.encode(), planted, tokens):
            leaks[name] = trace
    return {
        "benchmark": "secrets_planted", "case": "every command", "secrets": len(planted), "commands": ended.total(),
        "ended": ended, "crashed": crashed, "printed_bytes": printed_bytes, "files": len(written),
        "file_bytes": sum(path.stat().st_size for path in written), "found": leaks,
    }  # fmt: skip


def ran(command: tuple[str, ...], output: Path) -> tuple[str, bytes]:
    """How a command ended in this process, and all that it printed, whoever in it did."""
    sys.argv = ["memlaw", *command]
    kept = os.dup(1), os.dup(2)
    with output.open("wb") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
        try:
            app.main()
            how = "returned"
        except SystemExit as ending:
            how = f"exit {ending.code}"
        except BaseException:
            how = "traceback"
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, former in zip((1, 2), kept, strict=True):
                os.dup2(former, descriptor)
                os.close(former)
    return how, output.read_bytes()


if __name__ == "__main__":
    sys.exit(main())
