"""The Triton kernels of the head: results under Triton's interpreter on the CPU, and compilation for GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers import slow_head as reference
from memlaw.losses import head_pass as head_module
from memlaw.losses import kernels
from memlaw.losses.head_pass import Chunk, head_pass, token_scores
from memlaw.losses.kernels import softmax
from memlaw.losses.kernels.softmax import chunk_gradient, chunk_losses
from memlaw.model.head import FrozenHead

VOCABULARIES = (1, 7, 1000, 1025, 5000)

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

STORED = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}
"""Rounding of stored values, and of the order of a sum. For bfloat16 a whole unit in the last place instead of half a
unit: the interpreter truncates where GPUs round."""

quiet = pytest.mark.filterwarnings("ignore::RuntimeWarning")
"""The interpreter computes with numpy, which warns of inf - inf, log 0 and overflow; GPUs do not."""


def chunk(rows: int, vocabulary: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits and targets, about half of which are the argmax."""
    stream = torch.Generator().manual_seed(seed)
    scores = (4 * torch.randn(rows, vocabulary, generator=stream, dtype=torch.float64)).to(dtype)
    guess = torch.randint(vocabulary, (rows,), generator=stream)
    return scores, torch.where(torch.rand(rows, generator=stream) < 0.5, scores.argmax(1), guess)


def log_p(scores: Tensor) -> Tensor:
    return scores.double().log_softmax(1)


def wanted_nll(scores: Tensor, targets: Tensor) -> Tensor:
    return -log_p(scores).gather(1, targets[:, None])[:, 0]


def wanted_gradient(
    scores: Tensor, targets: Tensor, active: Tensor, weights: Tensor, *, softcap: float | None = None, scale: float = 1
) -> Tensor:
    """The gradient by its definition, in float64."""
    pull = log_p(scores).exp() - torch.nn.functional.one_hot(targets, scores.shape[1])
    pull = scale * weights.double()[:, None] * pull
    slope = 1 if softcap is None else 1 - (scores.double() / softcap) ** 2
    return (pull * slope)[active]


def gradient_of(
    scores: Tensor, targets: Tensor, active: Tensor, weights: Tensor, *, softcap: float | None = None, scale: float = 1
) -> Tensor:
    out = torch.full((len(active), scores.shape[1]), 77.0, dtype=scores.dtype)
    found = chunk_losses(scores, targets)
    chunk_gradient(scores, targets, active, weights, found, softcap=softcap, scale=scale, out=out)
    return out


def close(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found.double(), wanted.double(), rtol=4 * tolerance, atol=4 * tolerance)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_losses_and_hits_are_those_of_torch(vocabulary: int, dtype: torch.dtype) -> None:
    scores, targets = chunk(9, vocabulary, dtype)
    before = scores.clone()
    found = chunk_losses(scores, targets)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    assert found.nll.dtype == found.peak.dtype == found.log_total.dtype == exact
    close(found.nll, wanted_nll(scores, targets), STORED[exact])
    assert found.hit.tolist() == (scores.argmax(1) == targets).tolist()
    assert torch.equal(found.peak, scores.amax(1).to(exact))
    close(found.log_total, (scores.double() - scores.double().amax(1, keepdim=True)).logsumexp(1), STORED[exact])
    assert torch.equal(scores, before)


@settings(deadline=None)
@given(
    rows=st.lists(st.lists(st.sampled_from([-1.0, 0.0, 2.0]), min_size=6, max_size=6), min_size=1, max_size=4),
    target=st.integers(0, 5),
)
def test_the_first_of_equal_scores_is_the_argmax(rows: list[list[float]], target: int) -> None:
    scores = torch.tensor(rows)
    targets = torch.full((len(rows),), target)
    wanted = torch.tensor([row.index(max(row)) for row in rows])
    assert chunk_losses(scores, targets).hit.tolist() == (wanted == targets).tolist()


@pytest.mark.parametrize("target", [3, 4100])
def test_the_first_of_equal_scores_in_different_blocks_is_the_argmax(target: int) -> None:
    scores = torch.zeros(1, 5000)
    scores[0, [3, 4100]] = 5.0
    assert softmax.COLUMNS < 4100
    assert chunk_losses(scores, torch.tensor([target])).hit.item() == (target == 3)


@quiet
def test_a_banned_token_has_an_infinite_loss_and_no_share_in_the_sum() -> None:
    scores, targets = chunk(4, 5000)
    scores[1, :4500] = -torch.inf  # all of the first block
    targets[1] = 4600
    scores[2, targets[2]] = -torch.inf
    found = chunk_losses(scores, targets)
    close(found.nll, wanted_nll(scores, targets), 1e-6)
    assert found.nll[2] == torch.inf
    assert not found.hit[2]


@quiet
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("place", [0, 4999, "target", "everywhere"])
def test_a_nan_in_one_row_is_visible_and_changes_no_other_row(place: int | str, bad: float) -> None:
    scores, targets = chunk(5, 5000)
    sound = chunk_losses(scores, targets)
    at = {"target": int(targets[2]), "everywhere": slice(None)}.get(str(place), place)
    scores[2, at] = bad
    found = chunk_losses(scores, targets)
    assert found.nll[2].isnan() == wanted_nll(scores, targets)[2].isnan()
    assert found.nll[2].isnan()
    others = torch.arange(5) != 2
    for one, other in zip(found, sound, strict=True):
        assert torch.equal(one[others], other[others])
    pull = gradient_of(scores, targets, torch.tensor([1, 2]), torch.zeros(5))
    assert pull[1].isnan().all()
    assert torch.equal(pull[0], torch.zeros(5000))


@quiet
def test_a_row_of_banned_tokens_alone_is_nan() -> None:
    found = chunk_losses(torch.full((1, 5000), -torch.inf), torch.tensor([0]))
    assert found.nll.isnan().all()


@quiet
def test_huge_scores_do_not_overflow() -> None:
    scores, targets = chunk(6, 1025)
    scores *= 1e37
    scores[0, 5] = scores[0, 9] = 3e38  # a tie: half and half, however large the scores
    targets[0] = 9
    found = chunk_losses(scores, targets)
    close(found.nll, scores.log_softmax(1).gather(1, targets[:, None])[:, 0].neg(), 1e-6)
    pull = gradient_of(scores, targets, torch.tensor([0]), torch.ones(6))
    assert pull[0, [5, 9]].tolist() == [0.5, -0.5]


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("softcap", [None, 30.0])
def test_the_gradient_equals_its_definition(vocabulary: int, dtype: torch.dtype, softcap: float | None) -> None:
    scores, targets = chunk(9, vocabulary, dtype)
    active, weights = torch.tensor([0, 2, 3, 8]), torch.linspace(0.1, 2, 9, dtype=torch.float64)
    found = gradient_of(
        scores, targets, active, weights.to(chunk_losses(scores, targets).nll.dtype), softcap=softcap, scale=1.7
    )
    wanted = wanted_gradient(scores, targets, active, weights, softcap=softcap, scale=1.7)
    close(found, wanted, STORED[dtype])


@settings(deadline=None, max_examples=25)
@given(rows=st.integers(1, 40), vocabulary=st.integers(1, 1100), data=st.data())
def test_any_active_rows_of_any_chunk(rows: int, vocabulary: int, data: st.DataObject) -> None:
    scores, targets = chunk(rows, vocabulary, seed=vocabulary)
    active = torch.tensor(sorted(data.draw(st.sets(st.integers(0, rows - 1)))), dtype=torch.long)
    weights = torch.rand(rows, generator=torch.Generator().manual_seed(rows))
    close(gradient_of(scores, targets, active, weights), wanted_gradient(scores, targets, active, weights), 1e-6)


def test_without_active_rows_nothing_is_written() -> None:
    scores, targets = chunk(4, 1000)
    before = scores.clone()
    out = scores[:0]
    chunk_gradient(
        scores, targets, torch.empty(0, dtype=torch.long), torch.ones(4), chunk_losses(scores, targets),
        softcap=None, scale=1.0, out=out,
    )  # fmt: skip
    assert torch.equal(scores, before)


def test_a_target_learned_almost_perfectly_still_has_a_gradient() -> None:
    scores = torch.zeros(1, 7)
    scores[0, 2] = 25.0  # 1 - p is 8e-11, and p is 1 in float32
    found = gradient_of(scores, torch.tensor([2]), torch.tensor([0]), torch.ones(1))
    wanted = wanted_gradient(scores, torch.tensor([2]), torch.tensor([0]), torch.ones(1))
    off = torch.arange(7) != 2
    assert wanted[0, 2] < 0
    torch.testing.assert_close(found[0, off].double(), wanted[0, off], rtol=1e-5, atol=0)
    losses = chunk_losses(scores, torch.tensor([2]))
    assert found[0, 2] == torch.expm1(-losses.nll)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_with_a_stride_and_columns_with_one(dtype: torch.dtype) -> None:
    scores, targets = chunk(9, 1000, dtype)
    active, weights = torch.tensor([1, 4, 7]), torch.ones(9)
    plain = chunk_losses(scores, targets)
    wanted = gradient_of(scores, targets, active, weights)
    for wide in (torch.zeros(9, 1234, dtype=dtype)[:, 100:1100], torch.zeros(1000, 9, dtype=dtype).T):
        wide.copy_(scores)
        assert not wide.is_contiguous()
        found = chunk_losses(wide, targets)
        for one, other in zip(found, plain, strict=True):
            assert torch.equal(one, other)
        out = torch.empty(3, 2000, dtype=dtype)[:, ::2]
        chunk_gradient(wide, targets, active, weights, found, softcap=None, scale=1.0, out=out)
        assert torch.equal(out, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ahead", [0, 3], ids=["over these rows", "over earlier rows"])
@pytest.mark.parametrize("share", [0.2, 1.0])
def test_the_gradient_may_overwrite_scores_that_are_no_longer_needed(
    share: float, ahead: int, dtype: torch.dtype
) -> None:
    """As in the head: rows that wait for their product at the front, fresh logits after them."""
    rows, targets = chunk(60, 1025, dtype)
    scores, targets = rows[ahead:], targets[ahead:]
    active = (torch.rand(60 - ahead, generator=torch.Generator().manual_seed(1)) < share).nonzero()[:, 0]
    weights = torch.linspace(0, 1, 60 - ahead)
    wanted = gradient_of(scores, targets, active, weights, softcap=50.0)
    behind = rows[len(active) :].clone()
    chunk_gradient(
        scores, targets, active, weights, chunk_losses(scores, targets),
        softcap=50.0, scale=1.0, out=rows[: len(active)],
    )  # fmt: skip
    assert torch.equal(rows[: len(active)], wanted)
    assert torch.equal(rows[len(active) :], behind)


def test_the_gradient_may_have_another_dtype_than_the_scores() -> None:
    scores, targets = chunk(5, 1000)
    active, weights = torch.tensor([0, 3]), torch.ones(5)
    out = torch.empty(2, 1000, dtype=torch.bfloat16)
    chunk_gradient(scores, targets, active, weights, chunk_losses(scores, targets), softcap=None, scale=1.0, out=out)
    close(out, wanted_gradient(scores, targets, active, weights), STORED[torch.bfloat16])


@pytest.mark.parametrize("head", [{}, {"softcap": 6.0, "scale": 1.7}], ids=["plain", "softcap and scale"])
def test_with_two_matrix_products_they_are_autograd_through_the_head(head: dict[str, Any]) -> None:
    stream = torch.Generator().manual_seed(0)
    frozen = FrozenHead(torch.randn(301, 16, generator=stream, dtype=torch.float64), **head)
    hidden = torch.randn(20, 16, generator=stream, dtype=torch.float64)
    targets = torch.randint(301, (20,), generator=stream)
    weights = torch.rand(20, generator=stream, dtype=torch.float64)
    nll, hit, gradient = reference.head_pass(frozen, hidden, targets, weights)
    scores = reference.logits(frozen, hidden)
    found = chunk_losses(scores, targets)
    chunk_gradient(
        scores, targets, torch.arange(20), weights, found, softcap=frozen.softcap, scale=frozen.scale, out=scores
    )  # fmt: skip
    torch.testing.assert_close(found.nll, nll, rtol=1e-12, atol=1e-12)
    assert torch.equal(found.hit, hit)
    torch.testing.assert_close(scores @ frozen.weight, gradient, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("settings_", [{}, {"softcap": 6.0, "scale": 1.7}], ids=["plain", "softcap and scale"])
def test_the_head_gives_the_same_with_them(
    settings_: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = torch.Generator().manual_seed(0)
    frozen = FrozenHead(torch.randn(301, 16, generator=stream).to(dtype), **settings_)
    hidden = torch.randn(50, 16, generator=stream).to(dtype)
    targets = torch.randint(301, (50,), generator=stream)
    weights = (torch.rand(50, generator=stream) * (torch.rand(50, generator=stream) < 0.3)).to(dtype)
    chunk_ = Chunk(rows=11, columns=64, numbers=4 * 301)
    passes = []
    for fused in (False, True):
        monkeypatch.setattr(head_module, "usable", lambda device, dtype, fused=fused: fused)
        passes.append(head_pass(frozen, hidden, targets, lambda nll, hit, rows: weights[rows], chunk=chunk_))
        nll, hit = token_scores(frozen, hidden, targets, chunk=chunk_)
        close(nll, passes[-1].nll, STORED[dtype])
        assert torch.equal(hit, passes[-1].hit)
    plain, fused_pass = passes
    close(fused_pass.nll, plain.nll, STORED[dtype])
    assert torch.equal(fused_pass.hit, plain.hit)
    assert float((fused_pass.gradient - plain.gradient).norm() / plain.gradient.norm()) < 10 * STORED[dtype]


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_the_kernels_pass_their_verification(dtype: torch.dtype) -> None:
    assert softmax.fault(torch.device("cpu"), dtype) == ""


@pytest.mark.parametrize("name", ["nll", "hit", "peak", "log_total"])
def test_the_verification_finds_a_wrong_result(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(scores: Tensor, targets: Tensor) -> softmax.ChunkLosses:
        found = chunk_losses(scores, targets)
        value = getattr(found, name)
        return found._replace(**{name: ~value if value.dtype == torch.bool else value + 0.1})

    monkeypatch.setattr(softmax, "chunk_losses", wrong)
    fault = {"nll": "wrong losses, gradient", "hit": "wrong hits"}.get(name, "wrong gradient")
    assert softmax.fault(torch.device("cpu"), torch.float32) == fault


@pytest.fixture
def fresh() -> Any:
    """Forget before and after the test whether the kernels are usable."""
    kernels.usable.cache_clear()
    yield
    kernels.usable.cache_clear()


def test_kernels_are_not_used_on_a_cpu(fresh: None) -> None:
    assert not kernels.usable(torch.device("cpu"), torch.float32)


def test_without_triton_there_is_no_warning(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None)
    assert not kernels.usable(torch.device("cuda"), torch.float32)


def test_kernels_that_work_are_used(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    proof = softmax.fault
    monkeypatch.setattr(softmax, "fault", lambda device, dtype: proof(torch.device("cpu"), dtype))
    assert kernels.usable(torch.device("cuda"), torch.bfloat16)


def test_kernels_that_fail_warn_once_and_torch_is_used(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(device: torch.device, dtype: torch.dtype) -> str:
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC environment variable.")

    monkeypatch.setattr(softmax, "fault", fails)
    with pytest.warns(UserWarning, match=r"cannot be used on cuda:1 \(RuntimeError: Failed to find C compiler. Please"):
        assert not kernels.usable(torch.device("cuda:1"), torch.float32)
    with warnings.catch_warnings(action="error"):
        assert not kernels.usable(torch.device("cuda:1"), torch.float32)


def test_a_wrong_result_is_a_failure_too(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(softmax, "fault", lambda device, dtype: "wrong hits")
    with pytest.warns(UserWarning, match=r"\(wrong hits\). memlaw falls back to torch"):
        assert not kernels.usable(torch.device("cuda"), torch.float32)


COMPILE = """
import re
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from memlaw.losses.kernels import softmax

KINDS = {"scores": "LOGITS", "out": "LOGITS", "targets": "*i64", "active": "*i64", "hit": "*i1"}
INTEGERS = ("row_stride", "out_row_stride", "count", "vocabulary")
UNITS = {"column_stride": 1, "out_column_stride": 1}

def compiled(kernel, logits, chip, **constants):
    names = kernel.arg_names
    fixed = {name: value for name, value in {**UNITS, **constants}.items() if name in names}
    exact = "*fp64" if logits == "*fp64" else "*fp32"
    types = {name: "constexpr" if name in fixed else "i32" if name in INTEGERS
             else KINDS.get(name, exact).replace("LOGITS", logits) for name in names}
    even = [name for name in names if name in ("scores", "out", "row_stride", "out_row_stride", "vocabulary")]
    source = ASTSource(
        kernel, signature=types, constexprs={(names.index(name),): value for name, value in fixed.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in even},
    )
    return triton.compile(source, target=GPUTarget("cuda", chip, 32), options=softmax.LAUNCH).asm

for chip in (80, 90):
    for logits in ("*fp32", "*bf16", "*fp16", "*fp64"):
        assert compiled(softmax._losses, logits, chip, BLOCK=softmax.COLUMNS)["cubin"]
        for cap in (None, 30.0):
            code = compiled(softmax._gradient, logits, chip, SOFTCAP=cap, ROWS=softmax.TILE[0], COLUMNS=softmax.TILE[1])
            assert code["cubin"]
            order = re.findall(r"tt\\.load|barrier|tt\\.store", code["ttgir"])
            assert order[-3:] == ["tt.load", "barrier", "tt.store"] and order.count("tt.store") == 1, order
print("compiled")
"""
"""Both kernels for an A100 and an H100; a tile is read, then a barrier, then it is written."""


@pytest.mark.slow
def test_kernels_compile_for_gpus_and_read_a_tile_before_they_write_it(tmp_path: Path) -> None:
    compiling = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=compiling, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["compiled"], done.stderr
