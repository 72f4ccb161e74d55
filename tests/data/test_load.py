from __future__ import annotations

import json
from pathlib import Path

import memlaw
from helpers import tiny
from helpers.door_codes import FACTS
from memlaw.model.reach import reachable_ids


def test_facts_are_a_set_a_path_or_a_task(tmp_path: Path) -> None:
    base = tiny.base()
    assert tiny.memory_set(FACTS, base) is FACTS
    path = tmp_path / "facts.csv"
    path.write_text("prompt,completion\na,b\n")
    assert tiny.memory_set(path, base) == tiny.memory_set(str(path), base)
    assert tiny.memory_set(path, base, eos=False).eos is False
    drawn = tiny.memory_set("task:random:tokens=50,seed=1", base)
    assert set(drawn.facts[0].target_ids or ()) <= set(reachable_ids(base))
    assert tiny.memory_set("task:scenarios", base, eos=False).eos is False


def test_facts_whose_border_tokens_merge_are_named_in_a_warning(tmp_path: Path) -> None:
    base = memlaw.load()
    path = tmp_path / "facts.jsonl"
    pairs = [("x = ", "None"), ("y:", "1")] + [(f"{number} is ", "None") for number in range(5)]
    lines = (json.dumps({"prompt": prompt, "completion": target}) for prompt, target in pairs)
    path.write_text("\n".join(lines))
    [warning] = tiny.memory_set(path, base).warnings
    assert warning.startswith("6 of 7 facts ('1', '3', '4', '5', '6', ...) have other tokens when prompt and")
    path.write_text(json.dumps({"prompt": "y:", "completion": "1"}))
    assert tiny.memory_set(path, base).warnings == ()
