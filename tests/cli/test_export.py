from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from helpers.commands import Run, assert_refused
from helpers.paths import ROOT
from memlaw.model.base import BUNDLED, load


def test_an_adapter_and_its_base_become_files_of_llama_cpp(twelve_facts: Path, run: Run, tmp_path: Path) -> None:
    lora, base = tmp_path / "new" / "adapter.gguf", tmp_path / "base.gguf"
    ran = run("export", twelve_facts, "--gguf", lora, "--base-gguf", base, "--type", "q8_0", "--json")
    assert ran.document == {"adapter": str(lora), "model": BUNDLED, "base": str(base), "type": "q8_0", "pure": False}
    assert gguf.GGUFReader(lora).fields["general.type"].contents() == "adapter"
    assert load(str(base)).context == 2048


def test_an_adapter_alone_needs_no_weights_of_its_base(twelve_facts: Path, run: Run, tmp_path: Path) -> None:
    ran = run("export", twelve_facts, "--gguf", tmp_path / "adapter.gguf")
    assert ran.out == f"{tmp_path / 'adapter.gguf'}: the adapter, for {BUNDLED}.\n"
    assert list(tmp_path.iterdir()) == [tmp_path / "adapter.gguf"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--type", "q4_0"), "--type is for the weights of the base"),
        (("--pure",), "--pure is for the weights of the base"),
        (("--base-gguf", "base.gguf", "--type", "q4_K_M"), "Unknown type of weights 'q4_K_M'"),
        (("--base-gguf", "base.gguf", "--model", "MODEL"), "was trained on another base"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_written(
    options: tuple[str, ...],
    sentence: str,
    twelve_facts: Path,
    model: Path,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [model if option == "MODEL" else option for option in options]
    assert_refused(run("export", twelve_facts, "--gguf", "adapter.gguf", *given), sentence)
    assert list(tmp_path.iterdir()) == []


def test_an_exported_base_is_known_as_the_adapter_s_own_in_another_precision(
    twelve_facts: Path, run: Run, tmp_path: Path
) -> None:
    base = tmp_path / "base.gguf"
    run("export", twelve_facts, "--gguf", tmp_path / "adapter.gguf", "--base-gguf", base, "--type", "q8_0")
    facts = ROOT / "examples" / "facts.jsonl"
    ran = run("recall", facts, "--model", base, "--adapter", twelve_facts, "--decode", "--json")
    (sentence,) = ran.document["adapter_faults"]
    assert f"was trained on {BUNDLED}, and {base} is the same base in another precision (q8_0)" in sentence
    assert f"Warning: {sentence}" in ran.err
    assert ran.document["certified"] == 12
