"""What becomes of weights in each format is what gguf makes of them, and it happens to the matrices alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from helpers import packed, tiny
from memlaw.core.cache import VARIABLE
from memlaw.core.errors import ModelError
from memlaw.core.precision import MARGINS, QUANTISED
from memlaw.model.base import Base
from memlaw.model.prefix_cache import PrefixCache
from memlaw.model.rounding import rounded, served_as
from memlaw.model.sampling import sampled
from memlaw.model.split import split
from memlaw.training import moment_cache


def by_gguf(weight: Tensor, precision: str) -> Tensor:
    """The reference: quantised and dequantised by the package that writes GGUF files."""
    kind = GGMLQuantizationType[precision.upper()]
    return torch.from_numpy(quants.dequantize(quants.quantize(weight.float().numpy(), kind), kind)).to(weight.dtype)


ROWS = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.sampled_from([32, 64, 96])),
    elements=st.one_of(
        st.floats(-4, 4, width=32),
        st.sampled_from(
            [0.0, -0.0, 1.0, -1.0, 0.5, 1e-8, -1e-8, 1e-30, 6e4]
        ),  # ties, halves, subnormal and huge scales
    ),
)


@pytest.mark.parametrize("precision", QUANTISED)
@given(rows=ROWS)
def test_weights_become_what_gguf_makes_of_them(precision: str, rows: np.ndarray) -> None:
    weight = torch.from_numpy(rows)
    with np.errstate(all="ignore"):
        expected = by_gguf(weight, precision)
    assert torch.equal(rounded(weight, precision), expected)


@pytest.mark.parametrize(("precision", "dtype"), [("float16", torch.float16), ("bfloat16", torch.bfloat16)])
def test_16_bits_are_a_cast_and_back(precision: str, dtype: torch.dtype) -> None:
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rounded(weight, precision), weight.to(dtype).float())
    assert not torch.equal(rounded(weight, precision), weight)
    assert rounded(weight.double(), precision).dtype == torch.float64


def test_rows_without_whole_blocks_stay_in_float16() -> None:
    weight = torch.randn(4, 48, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rounded(weight, "q4_0"), weight.half().float())


MATRICES = (
    "proj",
    "embed_tokens",
    "lm_head",
    "c_attn",
    "c_fc",
    "wte",
    "query_key_value",
    "dense",
    "embed_in",
    "embed_out",
)


@pytest.mark.parametrize("family", ["qwen3", "llama-tied", "gpt2", "gpt-neox", "gemma3"])
def test_matrices_are_quantised_along_their_input_and_nothing_else_is(family: str) -> None:
    base = tiny.base(family)
    before = {name: weight.clone() for name, weight in base.model.state_dict().items()}
    after = served_as(base, "q4_0").model
    for name, weight in after.state_dict().items():
        flipped = ".c_" in name and weight.dim() == 2  # GPT-2 stores [d_in, d_out]
        rows = before[name].mT if flipped else before[name]
        if weight.dim() < 2 or "norm" in name or "wpe" in name:
            expected = rows
        else:
            assert any(part in name for part in MATRICES), name
            expected = by_gguf(rows, "q4_0") if rows.shape[1] % 32 == 0 else rows.half().float()
        assert torch.equal(weight.mT if flipped else weight, expected), name
    tied = [
        model.get_output_embeddings().weight is model.get_input_embeddings().weight for model in (base.model, after)
    ]
    assert tied[0] == tied[1]
    assert all(torch.equal(weight, before[name]) for name, weight in base.model.state_dict().items())


def test_it_belongs_to_its_base_and_is_told_apart_from_it() -> None:
    base = tiny.base()
    for precision in MARGINS.keys() - {"float32"}:
        served = served_as(base, precision)
        assert (served.fingerprint, served.digests) == (base.fingerprint, base.digests)
        assert (served.dtype, served.judged_in) == ("float32", precision)
        assert served_as(served, precision) is served
    assert served_as(base, "float32") is base
    names = {served_as(base, precision).held_in for precision in MARGINS}
    assert len({*names, tiny.base(dtype=torch.bfloat16).held_in}) == len(MARGINS) + 1


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    return tmp_path


def test_nothing_that_is_kept_is_shared_between_precisions(cache: Path) -> None:
    base = tiny.base()
    bases = [served_as(base, precision) for precision in ("float32", "bfloat16", "q8_0", "q4_0")]
    bases.append(replace(tiny.base(dtype=torch.bfloat16), fingerprint=base.fingerprint))
    ids = torch.randint(3, tiny.VOCABULARY, (3, 6), generator=torch.Generator().manual_seed(0))
    assert len({moment_cache.key_of(one, [], ids) for one in bases}) == len(bases)
    for one in bases:
        sampled(one, 2, 3, seed=0)
        path = "model.layers.2.mlp.down_proj"
        with torch.no_grad():
            forward = split(one.model, 2, [path], ids, 2)
        PrefixCache(cache / "prefix").states(one, [path], forward, ids)
    assert len(list((cache / "samples").iterdir())) == len(bases)
    assert len(list((cache / "prefix").iterdir())) == len(bases)


def refused(base: Base, precision: str, sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        served_as(base, precision)


def test_what_cannot_be_rounded_is_refused() -> None:
    refused(tiny.base(), "q4_1", "'q4_1' is not a precision .* Did you mean")
    refused(served_as(tiny.base(), "q8_0"), "q4_0", "served as q8_0 already")
    refused(tiny.base(dtype=torch.bfloat16), "q4_0", "bfloat16 already.*--dtype float32")
    quantised = packed.model()
    quantised.is_quantized = True  # as transformers says of a checkpoint that it loaded packed
    refused(replace(tiny.base(), model=quantised), "q4_0", "packed already")
    refused(replace(tiny.base(), model=tiny.mixture("Mixtral"), name="moe"), "q4_0", "all experts of a layer")
