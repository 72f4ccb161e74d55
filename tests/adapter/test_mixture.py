"""A mixture adds exactly what PEFT adds when it puts adapters together, and says which adapters have no sum."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers import tiny
from helpers.adapters import trained
from memlaw.adapter.info import AdapterFaultError
from memlaw.adapter.mixture import Weighted, attach_all, is_mixture, mixture_of
from memlaw.adapter.on_model import placement_on
from memlaw.adapter.peft import save
from memlaw.core.errors import ConfigError
from memlaw.model.base import Base

IDS = torch.randint(3, tiny.VOCABULARY, (2, 10), generator=torch.Generator().manual_seed(3))


def logits(model: object) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(input_ids=IDS, use_cache=False).logits  # type: ignore[operator]
    return out


@pytest.fixture(scope="module")
def base() -> Base:
    return tiny.base()


@pytest.fixture(scope="module")
def saved(base: Base, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapters at one module, at several, and parallel to an MLP."""
    folder = tmp_path_factory.mktemp("adapters")
    for name, text, rank in (("one", "down_proj@2", 3), ("several", "q_proj,down_proj@1-3", 2), ("mlp", "mlp@1", 2)):
        place = placement_on(text, base.model)
        stack = trained(place, rank)
        for _, b in stack.pairs:
            b.mul_(0.1)
        save(stack, place, base, folder / name)
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.5, 0.25), (1.0, 0.0)])
def test_the_sum_is_that_of_peft(base: Base, saved: dict[str, Path], weights: tuple[float, float]) -> None:
    from peft import PeftModel

    tuned = PeftModel.from_pretrained(copy.deepcopy(base.model), str(saved["several"]), adapter_name="a")
    tuned.load_adapter(str(saved["one"]), "b")
    tuned.add_weighted_adapter(["a", "b"], list(weights), "both", combination_type="cat")
    tuned.set_adapter("both")
    bare = logits(base.model)
    with attach_all(base, mixture_of([saved["several"], saved["one"]], weights)):
        found = logits(base.model)
    torch.testing.assert_close(found, logits(tuned.eval()), rtol=1e-4, atol=1e-3)
    assert not torch.allclose(found, bare, atol=0.05)
    assert torch.equal(logits(base.model), bare)


def test_a_parallel_adapter_is_added_too_and_the_order_does_not_matter(base: Base, saved: dict[str, Path]) -> None:
    both = []
    for order in (["mlp", "one"], ["one", "mlp"]):
        with attach_all(base, mixture_of([saved[name] for name in order])):
            both.append(logits(base.model))
    with attach_all(base, mixture_of([saved["one"]])):
        alone = logits(base.model)
    torch.testing.assert_close(both[0], both[1], rtol=1e-4, atol=1e-3)
    assert not torch.allclose(both[0], alone, atol=0.05)


def test_half_and_half_of_one_adapter_is_that_adapter(base: Base, saved: dict[str, Path]) -> None:
    with attach_all(base, mixture_of([saved["several"]])):
        alone = logits(base.model)
    with attach_all(base, mixture_of([saved["several"], saved["several"]], [0.5, 0.5])):
        torch.testing.assert_close(logits(base.model), alone, rtol=1e-4, atol=1e-3)


def test_what_is_a_mixture() -> None:
    a, b = Path("a"), Path("b")
    assert mixture_of([a, b]) == (Weighted(a), Weighted(b))
    assert [is_mixture(mixture_of(*given)) for given in (([a],), ([a, b],), ([a], [0.5]), ([],))] == [
        False,
        True,
        True,
        False,
    ]
    with pytest.raises(ConfigError, match="2 adapters and 1 weights"):
        mixture_of([a, b], [1.0])
    with pytest.raises(ConfigError, match="not all finite"):
        mixture_of([a], [float("nan")])


def test_an_adapter_that_is_more_than_an_update_has_no_sum(base: Base, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=2, target_modules=["down_proj"], task_type="CAUSAL_LM", init_lora_weights=False, use_dora=True
    )
    get_peft_model(copy.deepcopy(base.model), config).save_pretrained(str(tmp_path / "a"))
    bare = logits(base.model)
    mixed = attach_all(base, mixture_of([tmp_path / "a"], [0.5]))
    with pytest.raises(AdapterFaultError, match="more than a low-rank update"), mixed:
        pass
    assert torch.equal(logits(base.model), bare)
