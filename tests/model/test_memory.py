from __future__ import annotations

import pytest
import torch

from helpers import tiny
from memlaw.adapter.on_model import placement_on
from memlaw.model.memory import counting_saved, free_bytes, out_of_memory, storage_device
from memlaw.training.engine import bytes_per_token


def test_real_shortage_of_memory_is_told_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as short:
        torch.empty(1 << 60)
    assert out_of_memory(short.value)
    assert out_of_memory(MemoryError())
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError) as other:
        torch.zeros(2, 3) @ torch.zeros(2, 3)
    assert not out_of_memory(other.value)


def test_this_machine_has_some_memory_left() -> None:
    assert 2**20 < free_bytes("cpu") < 2**50


def test_a_cache_stays_on_an_accelerator_with_room_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (400, 1000))
    cuda = torch.device("cuda:0")
    assert storage_device(100, cuda) == cuda
    assert storage_device(101, cuda) == torch.device("cpu")
    assert storage_device(1 << 60, torch.device("cpu")) == torch.device("cpu")


def test_what_the_backward_pass_needs_is_counted_once() -> None:
    weight, x = torch.ones(4, 4, requires_grad=True), torch.ones(8, 4)
    with counting_saved([weight]) as saved:
        y = (x @ weight).exp()  # keeps x for the product and its own result for the exponential
        y.exp()  # keeps its own result; y is its input, and known
        assert saved() == x.nbytes + 2 * y.nbytes


def test_a_step_of_more_layers_holds_more_for_each_token() -> None:
    base = tiny.base()
    (fact,) = tiny.facts([(4, 40)])
    high, low = (bytes_per_token(base, fact, placement_on(f"down_proj@{layer}", base.model), 2) for layer in (3, 1))
    width = base.model.config.hidden_size
    assert high > 4 * width  # at least the last hidden state, in float32
    assert low > 1.5 * high
