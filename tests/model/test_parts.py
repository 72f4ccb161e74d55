from __future__ import annotations

from helpers import tiny
from memlaw.model.parts import frozen


def test_a_frozen_model_is_restored_afterwards() -> None:
    model = tiny.model().train()
    model.model.layers[0].requires_grad_(False)
    model.gradient_checkpointing_enable()
    before = [(p.requires_grad) for p in model.parameters()]
    with frozen(model):
        assert not model.training
        assert not any(p.requires_grad for p in model.parameters())
        assert not any(getattr(m, "gradient_checkpointing", False) for m in model.modules())
    assert model.training
    assert model.model.gradient_checkpointing
    assert before == [p.requires_grad for p in model.parameters()]
