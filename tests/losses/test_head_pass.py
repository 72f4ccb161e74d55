from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import slow_head as reference
from helpers import tiny
from memlaw.losses.head_pass import Chunk, HeadPass, head_pass, token_scores
from memlaw.model.head import FrozenHead, frozen_head

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "softcap": {"softcap": 8.0},
    "scale": {"scale": 0.25},
    "bias": {"bias": True},
    "all": {"softcap": 6.0, "scale": 1.7, "bias": True},
}

SMALL = Chunk(rows=7, columns=5, numbers=64)


def case(
    n: int = 30, vocabulary: int = 23, width: int = 9, *, kind: str = "all", seed: int = 0, dtype: Any = torch.float64
) -> tuple[FrozenHead, Tensor, Tensor]:
    """A head, hidden states and targets, about half of which are the argmax."""
    stream = torch.Generator().manual_seed(seed)
    settings = dict(KINDS[kind])
    weight = 3 * torch.randn(vocabulary, width, generator=stream, dtype=torch.float64) / width**0.5
    if settings.pop("bias", False):
        settings["bias"] = torch.randn(vocabulary, generator=stream, dtype=torch.float64).to(dtype)
    head = FrozenHead(weight.to(dtype), **settings)
    hidden = torch.randn(n, width, generator=stream, dtype=torch.float64).to(dtype)
    guess = torch.randint(vocabulary, (n,), generator=stream)
    best = reference.logits(head, hidden).argmax(-1)
    return head, hidden, torch.where(torch.rand(n, generator=stream) < 0.5, best, guess)


def some_weights(n: int, *, active: float = 0.5, seed: int = 0) -> Tensor:
    stream = torch.Generator().manual_seed(seed)
    weights = torch.rand(n, generator=stream, dtype=torch.float64)
    return weights * (torch.rand(n, generator=stream) < active)


def run(head: FrozenHead, hidden: Tensor, targets: Tensor, weights: Tensor, chunk: Chunk | None = SMALL) -> HeadPass:
    return head_pass(head, hidden, targets, lambda nll, hit, rows: weights[rows], chunk=chunk)


def error(found: Tensor, wanted: Tensor) -> float:
    """The error of a whole tensor, relative to its norm."""
    return float((found - wanted).norm() / wanted.norm().clamp(min=1e-300))


def states_and_logits(model: Any) -> tuple[Tensor, Tensor]:
    ids = torch.randint(3, tiny.VOCABULARY, (1, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        states = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        return states[0], model(input_ids=ids, use_cache=False).logits[0]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_nll_and_hit_are_those_of_the_models_own_logits(family: str) -> None:
    model = tiny.model(family)
    hidden, logits = states_and_logits(model)
    targets = logits.argmax(-1)
    targets[::2] = 7
    nll, hit = token_scores(frozen_head(model), hidden, targets)
    torch.testing.assert_close(nll, F.cross_entropy(logits, targets, reduction="none"), rtol=1e-5, atol=1e-5)
    assert hit.tolist() == (logits.argmax(-1) == targets).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_gives_the_scores_of_the_pass_and_no_gradient(kind: str) -> None:
    head, hidden, targets = case(kind=kind)
    nll, hit = token_scores(head, hidden.requires_grad_(True), targets, chunk=SMALL)
    wanted, wanted_hit, _ = reference.head_pass(head, hidden, targets, some_weights(30))
    assert not nll.requires_grad
    assert error(nll, wanted) < 1e-12
    assert torch.equal(hit, wanted_hit)
    assert 0 < int(hit.sum()) < len(hit)
    passed = run(head, hidden, targets, some_weights(30))
    assert torch.equal(passed.nll, nll)
    assert torch.equal(passed.hit, hit)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_pass_is_autograd_through_the_models_own_head(family: str) -> None:
    model = tiny.model(family).double()
    hidden, logits = states_and_logits(model)
    targets = torch.where(torch.arange(len(logits)) % 2 == 0, 7, logits.argmax(-1))
    weights = some_weights(len(targets))
    found = run(frozen_head(model), hidden, targets, weights)

    states = hidden.clone().requires_grad_(True)
    raw = model.get_output_embeddings()(states)
    cap = getattr(model.config, "final_logit_softcapping", None)
    nll = F.cross_entropy(raw if cap is None else cap * torch.tanh(raw / cap), targets, reduction="none")
    (weights * nll).sum().backward()
    assert states.grad is not None
    assert error(found.nll, nll.detach()) < 1e-12
    assert error(found.gradient, states.grad) < 1e-12
    assert found.hit.tolist() == (logits.argmax(-1) == targets).tolist()


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(n=st.integers(1, 40), vocabulary=st.integers(2, 60), width=st.integers(1, 20), seed=st.integers(0, 999))
def test_the_pass_is_autograd_through_cross_entropy(kind: str, n: int, vocabulary: int, width: int, seed: int) -> None:
    head, hidden, targets = case(n, vocabulary, width, kind=kind, seed=seed)
    weights = some_weights(n, seed=seed)
    found = run(head, hidden, targets, weights)
    nll, hit, gradient = reference.head_pass(head, hidden, targets, weights)
    torch.testing.assert_close(found.nll, nll, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.gradient, gradient, rtol=1e-12, atol=1e-12)
    assert torch.equal(found.hit, hit)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(300, 500, 64), (700, 40, 8), (64, 2000, 128)], ids=str)
def test_float32_is_within_a_millionth_of_float64(kind: str, shape: tuple[int, int, int]) -> None:
    head, hidden, targets = case(*shape, kind=kind, dtype=torch.float32)
    weights = some_weights(len(hidden))
    found = run(head, hidden, targets, weights)
    nll, hit, gradient = reference.head_pass(reference.double(head), hidden.double(), targets, weights)
    assert error(found.nll, nll) < 1e-6
    assert error(found.gradient, gradient) < 1e-6
    assert torch.equal(found.hit, hit)
    assert found.nll.dtype == found.weights.dtype == found.gradient.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_no_less_exact_than_autograd_at_the_same_precision(dtype: torch.dtype, kind: str) -> None:
    head, hidden, targets = case(200, 150, 32, kind=kind, dtype=dtype)
    weights = some_weights(200)
    found = run(head, hidden, targets, weights)
    exact, _, exact_gradient = reference.head_pass(reference.double(head), hidden.double(), targets, weights)
    naive, hit, naive_gradient = reference.head_pass(head, hidden, targets, weights)
    assert found.nll.dtype == torch.float32
    assert found.gradient.dtype == dtype
    assert error(found.nll, exact) < 1.2 * error(naive, exact)
    assert error(found.gradient, exact_gradient) < 1.2 * error(naive_gradient, exact_gradient)
    assert (found.hit == hit).float().mean() > 0.98  # rounded logits tie, and rounding differs between the two


@settings(deadline=None)
@given(
    n=st.integers(1, 40),
    rows=st.integers(1, 50),
    columns=st.integers(1, 30),
    numbers=st.integers(1, 1000),
    active=st.floats(0, 1),
)
def test_chunks_do_not_change_the_result(n: int, rows: int, columns: int, numbers: int, active: float) -> None:
    head, hidden, targets = case(n)
    weights = some_weights(n, active=active)
    cut = run(head, hidden, targets, weights, Chunk(rows=rows, columns=columns, numbers=numbers))
    whole = run(head, hidden, targets, weights, Chunk(rows=n, columns=len(head.weight), numbers=10**9))
    torch.testing.assert_close(cut.nll, whole.nll, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(cut.gradient, whole.gradient, rtol=1e-12, atol=1e-12)
    assert torch.equal(cut.hit, whole.hit)
    assert torch.equal(cut.weights, weights)


@pytest.mark.parametrize("rows", [1, 5, 10, 29, 30, 31, None])
@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_no_row_and_every_row_may_be_active(weight: float, rows: int | None) -> None:
    head, hidden, targets = case()
    weights = torch.full((30,), weight, dtype=torch.float64)
    found = run(head, hidden, targets, weights, None if rows is None else Chunk(rows=rows, columns=4, numbers=46))
    _, _, gradient = reference.head_pass(head, hidden, targets, weights)
    assert error(found.gradient, gradient) < 1e-12
    assert bool(found.gradient.any()) == (weight > 0)


def test_no_tokens_give_nothing() -> None:
    head, hidden, targets = case()
    found = run(head, hidden[:0], targets[:0], torch.empty(0))
    assert [len(found.nll), len(found.hit), len(found.weights)] == [0, 0, 0]
    assert found.gradient.shape == (0, 9)
    assert len(token_scores(head, hidden[:0], targets[:0])[0]) == 0


def test_the_normaliser_is_a_scalar_applied_at_the_end() -> None:
    """As in a training step: the gradient of sum(w * nll) / sum(w) with respect to weights below the head."""
    head, inputs, targets = case()
    below = torch.nn.Linear(9, 9).double()
    states = below(inputs)
    critical = token_scores(head, states.detach(), targets)[0].median()
    found = head_pass(head, states, targets, lambda nll, hit, rows: (nll > critical).to(nll), chunk=SMALL)
    ours = torch.autograd.grad(states, list(below.parameters()), grad_outputs=found.gradient / found.weights.sum())
    nll = F.cross_entropy(reference.logits(head, below(inputs)), targets, reduction="none")
    active = found.weights > 0
    theirs = torch.autograd.grad(nll[active].mean(), list(below.parameters()))
    assert 0 < int(active.sum()) < len(active)
    for mine, wanted in zip(ours, theirs, strict=True):
        assert error(mine, wanted) < 1e-12


@settings(deadline=None)
@given(n=st.integers(1, 40), rows=st.integers(1, 50), numbers=st.integers(1, 400), active=st.floats(0, 1))
def test_weights_see_every_row_once_and_in_order(n: int, rows: int, numbers: int, active: float) -> None:
    head, hidden, targets = case(n)
    weights = some_weights(n, active=active)
    seen: list[tuple[int, float, bool]] = []

    def weigh(nll: Tensor, hit: Tensor, part: slice) -> Tensor:
        places = range(n)[part]
        seen.extend(zip(places, nll.tolist(), hit.tolist(), strict=True))
        return weights[part]

    found = head_pass(head, hidden, targets, weigh, chunk=Chunk(rows=rows, columns=6, numbers=numbers))
    assert seen == list(zip(range(n), found.nll.tolist(), found.hit.tolist(), strict=True))


def test_a_weight_may_depend_on_errors_that_came_before_it() -> None:
    """As in the sliding window: only tokens after the first error of a sample of 10 are discounted."""
    head, hidden, targets = case()
    erred: set[int] = set()

    def weigh(nll: Tensor, hit: Tensor, rows: slice) -> Tensor:
        weights = torch.ones_like(nll)
        for place, row in enumerate(range(30)[rows]):
            weights[place] = 0.01 if row // 10 in erred else 1.0
            erred.update(() if hit[place] else (row // 10,))
        return weights

    found = head_pass(head, hidden, targets, weigh, chunk=SMALL)
    first = [10 * sample + found.hit[10 * sample : 10 * sample + 10].int().argmin() for sample in range(3)]
    weights = torch.tensor([0.01 if row > first[row // 10] else 1.0 for row in range(30)], dtype=torch.float64)
    assert torch.equal(found.weights, weights)
    assert error(found.gradient, reference.head_pass(head, hidden, targets, weights)[2]) < 1e-12


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(2, 12), st.integers(0, 999))
def test_hits_equal_argmax_where_logits_tie(n: int, vocabulary: int, seed: int) -> None:
    stream = torch.Generator().manual_seed(seed)
    head = FrozenHead(torch.eye(vocabulary))
    hidden = torch.randint(3, (n, vocabulary), generator=stream).float()  # three values: nearly every maximum is tied
    targets = torch.randint(vocabulary, (n,), generator=stream)
    wanted = hidden.argmax(-1) == targets
    assert torch.equal(run(head, hidden, targets, torch.ones(n)).hit, wanted)
    assert torch.equal(token_scores(head, hidden, targets, chunk=SMALL)[1], wanted)


def test_a_banned_token_has_an_infinite_loss_and_a_gradient() -> None:
    head, hidden, targets = case(kind="bias")
    assert head.bias is not None
    banned = int(targets[3])
    head.bias[banned] = -torch.inf
    weights = torch.ones(30, dtype=torch.float64)
    found = run(head, hidden, targets, weights)
    nll, hit, gradient = reference.head_pass(head, hidden, targets, weights)
    assert found.nll[3] == torch.inf
    torch.testing.assert_close(found.nll, nll, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.gradient, gradient, rtol=1e-12, atol=1e-12)
    assert gradient.isfinite().all()
    assert torch.equal(found.hit, hit)


@pytest.mark.parametrize("kind", KINDS)
def test_huge_logits_give_the_results_of_autograd(kind: str) -> None:
    head, hidden, targets = case(kind=kind, dtype=torch.float32)
    weights = some_weights(30).float()
    found = run(head, 1e30 * hidden, targets, weights)
    nll, hit, gradient = reference.head_pass(head, 1e30 * hidden, targets, weights)
    torch.testing.assert_close(found.nll, nll)
    torch.testing.assert_close(found.gradient, gradient)
    assert found.gradient.isfinite().all()
    assert torch.equal(found.hit, hit)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_nan_in_one_row_is_visible_whatever_its_weight_and_changes_no_other_row(weight: float) -> None:
    head, hidden, targets = case()
    weights = some_weights(30)
    weights[11] = weight
    sound = run(head, hidden, targets, weights)
    hidden[11, 0] = torch.nan
    found = run(head, hidden, targets, weights)
    assert found.nll[11].isnan()
    assert found.gradient[11].isnan().all()
    others = torch.arange(30) != 11
    assert error(found.nll[others], sound.nll[others]) < 1e-14  # a vectorised exp rounds by its neighbours
    assert error(found.gradient[others], sound.gradient[others]) < 1e-12


class _Costs(TorchDispatchMode):
    """The size of the largest tensor that an operation returned, and the multiplications of all matrix products."""

    largest = 0
    multiplications = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            left, right = args[-2:]
            self.multiplications += left.numel() * right.shape[1]
        for tensor in found if isinstance(found, (tuple, list)) else (found,):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
        return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("active", [0.0, 0.1, 1.0])
def test_no_tensor_is_larger_than_the_chunk(active: float, kind: str) -> None:
    head, hidden, targets = case(300, 211, 8, kind=kind, dtype=torch.bfloat16)
    weights = some_weights(300, active=active)
    for work in (
        lambda: run(head, hidden, targets, weights, Chunk(rows=16, columns=50, numbers=5 * 211)),
        lambda: token_scores(head, hidden, targets, chunk=Chunk(rows=16, columns=50, numbers=5 * 211)),
    ):
        with _Costs() as costs:
            work()
        assert costs.largest == 16 * 211


@settings(deadline=None)
@given(active=st.floats(0, 1), rows=st.integers(1, 60), kind=st.sampled_from(list(KINDS)))
def test_forward_costs_one_product_and_backward_one_of_the_active_rows(active: float, rows: int, kind: str) -> None:
    head, hidden, targets = case(50, kind=kind)
    weights = some_weights(50, active=active)
    with _Costs() as costs:
        run(head, hidden, targets, weights, Chunk(rows=rows, columns=6, numbers=100))
    assert costs.multiplications == head.weight.numel() * (50 + int((weights > 0).sum()))


@pytest.mark.parametrize("vocabulary", [50_257, 131_072, 262_144])
def test_the_chunk_for_a_cpu_keeps_the_logits_of_8192_rows_below_one_twenty_fifth(vocabulary: int) -> None:
    chunk = Chunk.for_device(torch.device("cpu"), vocabulary)
    assert chunk.rows + 2 * chunk.numbers / vocabulary < 8192 / 25
