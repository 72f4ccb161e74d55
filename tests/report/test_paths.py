from __future__ import annotations

from pathlib import Path

import pytest

from memlaw.report.paths import without_paths

HERE = Path("/srv/probes")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/ada/models/smollm2", "smollm2"),
        ("/home/ada/my facts/phone book.jsonl (JSONL)", "phone book.jsonl (JSONL)"),
        ("C:\\Users\\Ada\\facts.csv", "facts.csv"),
        ("~/facts.jsonl", "facts.jsonl"),
        ("/srv/probes/random/law.json", "random/law.json"),
        ("memlaw train /home/ada/f.jsonl --model /opt/m --rank 8", "memlaw train f.jsonl --model m --rank 8"),
        ("memlaw train '/home/ada/my facts.jsonl' --rank 8", "memlaw train 'my facts.jsonl' --rank 8"),
        ("OSError: [Errno 28] No space left: '/scratch/ada/x'", "OSError: [Errno 28] No space left: 'x'"),
        ("The law of /home/ada/m. It is borrowed.", "The law of m. It is borrowed."),
        ("/home/ada/a.jsonl and /home/ada/b.jsonl", "a.jsonl and b.jsonl"),
    ],
)  # fmt: skip
def test_a_path_is_shown_by_its_name(text: str, shown: str) -> None:
    assert without_paths(text, HERE) == shown


@pytest.mark.parametrize(
    "text",
    [
        "Qwen/Qwen3-0.6B", "memlaw/base", "examples/facts.jsonl (JSONL)", "120 of 120 tokens have p > 1/2",
        "https://arxiv.org/abs/2605.30260", "down_proj@4", "task:random:tokens=128", "rank 5 (3 to 9) and/or a split",
    ],
)  # fmt: skip
def test_what_is_no_path_of_a_machine_stays(text: str) -> None:
    assert without_paths(text, HERE) == text


def test_lists_and_mappings_are_gone_through() -> None:
    plan = {"rank": {"value": 3}, "law": {"source": "/a/b/P"}, "near": ["of /a/m"], "pair": ("/a/x", None)}
    assert without_paths(plan, HERE) == {
        "rank": {"value": 3}, "law": {"source": "P"}, "near": ["of m"], "pair": ("x", None),
    }  # fmt: skip
