"""AdamW for a stack of adapters."""

from __future__ import annotations

from torch import Tensor

from memlaw.training.optimizers.base import StackedOptimizer


class StackedAdamW(StackedOptimizer):
    """`torch.optim.AdamW` of each adapter: direction = m_hat / (sqrt(v_hat) + eps)."""

    MOMENTS = ("first", "second")
    beta1, beta2, eps = 0.9, 0.999, 1e-8

    def _direction(self, place: int, gradient: Tensor) -> Tensor:
        m, v = self.moments["first"][place], self.moments["second"][place]
        m.lerp_(gradient, 1 - self.beta1)
        v.mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
        scale = (v / (1 - self.beta2**self.updates)).sqrt_().add_(self.eps)
        return m / (1 - self.beta1**self.updates) / scale
