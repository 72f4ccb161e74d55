from __future__ import annotations

import torch

from memlaw.training.optimizers.adamw import StackedAdamW


def test_stacked_adamw_is_torch_adamw() -> None:
    stream = torch.Generator().manual_seed(0)
    tensors = [torch.randn(3, 4, 2, generator=stream, dtype=torch.float64) for _ in range(2)]
    rates, decays = torch.tensor([1e-2, 1e-1, 0.0]), torch.tensor([0.0, 0.1, 0.5])
    copies = [[t[k].clone().requires_grad_(True) for t in tensors] for k in range(3)]
    theirs = [torch.optim.AdamW(copies[k], lr=float(rates[k]), weight_decay=float(decays[k])) for k in range(3)]
    ours = StackedAdamW(tensors, [2, 2, 2], [0.9] * 3)
    for _ in range(5):
        gradients = [torch.randn(t.shape, generator=stream, dtype=torch.float64) for t in tensors]
        ours.step(tensors, gradients, rates, decays)
        for k, optimizer in enumerate(theirs):
            for parameter, gradient in zip(copies[k], gradients, strict=True):
                parameter.grad = gradient[k]
            optimizer.step()
    for k in range(3):
        for tensor, copy in zip(tensors, copies[k], strict=True):
            torch.testing.assert_close(tensor[k], copy.detach(), rtol=1e-6, atol=1e-9)
