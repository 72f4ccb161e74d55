from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

import memlaw
from helpers import tiny
from helpers.commands import assert_refused, process
from helpers.gguf_files import TEMPLATE, write_gguf
from helpers.paths import ROOT
from memlaw.core.errors import ModelError
from memlaw.model.base import Base, load, wrap
from memlaw.model.files import BUNDLED
from memlaw.model.outline_from_files import outline_of_files
from memlaw.model.outline_from_module import outline_of_model
from memlaw.model.tokenizer import auto_tokenizer, load_tokenizer, stop_ids_of_files, tokenizer_fingerprint
from memlaw.sweep.pack import reload_name

FACTS = ROOT / "examples" / "facts.jsonl"

TEXTS = ["Code 4917#", "def f(x):\n    return  12", "  99 bottles\n\n\t7", "naïve <|endoftext|> end"]


@pytest.fixture(scope="module")
def original() -> Base:
    """A tiny random Llama with the tokenizer of the bundled base, which takes digits apart like SmolLM2's."""
    tokenizer = auto_tokenizer(BUNDLED)
    special = {"eos_token_id": 0, "pad_token_id": 1, "bos_token_id": None}
    model = tiny.model(
        "llama", vocab_size=len(tokenizer), intermediate_size=64, **special
    )  # every width in blocks of 32
    return wrap(model, tokenizer, name="original")


@pytest.fixture(scope="module")
def file(original: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The original as an unquantised file."""
    return write_gguf(tmp_path_factory.mktemp("gguf") / "base.gguf", original.model, original.tokenizer)


def logits(model: Any) -> torch.Tensor:
    ids = torch.randint(2, 90, (2, 20), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return model(ids).logits


def test_a_float_file_is_the_model_it_was_made_from(original: Base, file: Path) -> None:
    base = load(str(file))
    assert torch.allclose(logits(base.model), logits(original.model), atol=1e-5)  # its epsilon is stored in float32
    assert (base.fingerprint, base.digests) == (original.fingerprint, original.digests)
    assert (base.name, base.dtype, base.context, base.stops) == (str(file), "float32", 128, (0,))
    assert base.warnings == original.warnings == ()
    assert load(str(file), dtype="bfloat16").fingerprint == base.fingerprint


def test_a_packed_file_is_the_model_that_its_8_bits_stand_for(original: Base, tmp_path: Path) -> None:
    base = load(str(write_gguf(tmp_path / "q8.gguf", original.model, original.tokenizer, packed=True)))
    rounded = {
        name: torch.from_numpy(_as_8_bits(weight.float().numpy())) if weight.dim() == 2 else weight
        for name, weight in original.model.state_dict().items()
    }
    assert all(torch.equal(weight, rounded[name]) for name, weight in base.model.state_dict().items())
    assert base.fingerprint != original.fingerprint
    assert "packing" not in base.digests


def _as_8_bits(values: Any) -> Any:
    kind = gguf.GGMLQuantizationType.Q8_0
    return gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind)


def test_the_tokenizer_gives_the_same_ids_and_renders_the_chats_of_the_file(original: Base, file: Path) -> None:
    tokenizer = load_tokenizer(str(file))
    for text in TEXTS:
        assert tokenizer.encode(text) == original.tokenizer.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.chat_template == TEMPLATE
    assert (tokenizer.eos_token_id, len(tokenizer)) == (0, 1024)


def test_an_unknown_rule_for_splitting_text_is_a_warning(original: Base, tmp_path: Path) -> None:
    model, tokenizer = original.model, original.tokenizer
    assert load(str(write_gguf(tmp_path / "a.gguf", model, tokenizer, rule="gpt-2"))).warnings == ()
    (warning,) = load(str(write_gguf(tmp_path / "b.gguf", model, tokenizer, rule="klingon"))).warnings
    assert "splits text by the rule 'klingon', which transformers does not know" in warning


def test_generation_stops_also_at_the_end_of_a_turn_that_the_file_names(original: Base, tmp_path: Path) -> None:
    path = str(write_gguf(tmp_path / "turns.gguf", original.model, original.tokenizer, eot_token_id=1))
    base = load(path)
    assert base.stops == stop_ids_of_files(path, base.tokenizer) == (0, 1)
    assert base.model.generation_config.eos_token_id == [0, 1]


def test_outline_and_plan_of_the_file_are_those_of_the_loaded_model(original: Base, file: Path, tmp_path: Path) -> None:
    assert outline_of_files(str(file)) == outline_of_model(load(str(file)).model, name=str(file))
    original.model.save_pretrained(tmp_path)
    original.tokenizer.save_pretrained(tmp_path)
    by_file, by_directory = (memlaw.plan(name, FACTS) for name in (str(file), str(tmp_path)))
    assert (by_file.rank, by_file.tokens, by_file.cost) == (by_directory.rank, by_directory.tokens, by_directory.cost)


def test_another_process_loads_the_file_by_its_whole_path(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    assert reload_name(load(file.name)) == str(file.resolve())


def test_saving_the_loaded_file_makes_an_ordinary_directory(file: Path, tmp_path: Path) -> None:
    base = load(str(file))
    base.model.save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    saved = load(str(tmp_path))
    assert (saved.fingerprint, saved.stops) == (base.fingerprint, base.stops)
    assert tokenizer_fingerprint(saved.tokenizer) == tokenizer_fingerprint(base.tokenizer)
    assert saved.tokenizer.chat_template == TEMPLATE


def test_the_commands_take_a_file_and_its_adapter_fits_the_unpacked_model(
    original: Base, file: Path, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    given = ("--model", file, "--json")
    trained = process("train", FACTS, *given, "--rank", 8, "--steps", 3, "--until", "budget", "--out", adapter)
    assert trained.document["steps"] == 3
    recalled = process("recall", FACTS, *given, "--adapter", adapter).document
    there = memlaw.recall(
        original.model, original.tokenizer, FACTS, adapter=adapter, decode=False, allow_other_base=True
    )
    assert recalled["mean_loss"] == pytest.approx(there.mean_loss, abs=1e-5)


def damaged(file: Path, tmp_path: Path, content: bytes) -> str:
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize("share", [0.0001, 0.001, 0.01, 0.5, 0.999])
def test_a_file_cut_short_is_refused_everywhere(file: Path, tmp_path: Path, share: float) -> None:
    whole = file.read_bytes()
    path = damaged(file, tmp_path, whole[: max(5, int(share * len(whole)))])
    for read in (load, load_tokenizer, outline_of_files):
        with pytest.raises(ModelError, match=r"damaged\.gguf cannot be read .*cut short"):
            read(path)


@pytest.mark.parametrize("start", [b"", b"version https://git-lfs", b"<html>"])
def test_what_is_no_gguf_file_is_refused(file: Path, tmp_path: Path, start: bytes) -> None:
    path = damaged(file, tmp_path, start)
    for read in (load, load_tokenizer, outline_of_files):
        with pytest.raises(ModelError, match="is not a GGUF file: it starts with"):
            read(path)


def test_a_missing_file_and_one_part_of_several_are_named(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"The GGUF file no/such\.gguf does not exist"):
        load("no/such.gguf")
    part = tmp_path / "m-00001-of-00003.gguf"
    part.write_bytes(file.read_bytes())
    with pytest.raises(ModelError, match="llama-gguf-split --merge"):
        load(str(part))


def test_an_architecture_that_transformers_cannot_read_is_named(original: Base, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", original.model, original.tokenizer, architecture="clip")
    for read in (load, outline_of_files):
        with pytest.raises(ModelError, match="transformers cannot read as a causal language model .*clip"):
            read(str(path))


def test_a_file_without_some_of_its_weights_is_refused(original: Base, tmp_path: Path) -> None:
    model = copy.deepcopy(original.model)
    del model.model.layers[3].mlp.down_proj
    path = write_gguf(tmp_path / "m.gguf", model, original.tokenizer)
    with pytest.raises(ModelError, match=r"lacks 1 weights .*model\.layers\.3\.mlp\.down_proj\.weight"):
        load(str(path))


def test_without_the_package_the_error_says_how_to_install_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)  # as where it is not installed
    for read in (load, load_tokenizer, outline_of_files):
        with pytest.raises(ModelError, match=r"pip install 'memlaw\[gguf\]'"):
            read(str(file))


def test_the_command_line_refuses_a_damaged_file(file: Path, tmp_path: Path) -> None:
    path = damaged(file, tmp_path, file.read_bytes()[:3000])
    assert_refused(process("plan", FACTS, "--model", path), "damaged.gguf cannot be read", "cut short")
