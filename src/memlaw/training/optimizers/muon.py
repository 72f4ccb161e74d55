"""Muon for a stack of adapters: updates whose singular values are all alike."""

from __future__ import annotations

from torch import Tensor

from memlaw.training.optimizers.base import StackedOptimizer

STEPS = 5
"""Newton-Schulz iterations: they bring singular values to between 0.7 and 1.2, which is near enough."""

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""a, b, c of p(x) = a x + b x^3 + c x^5, chosen for a steep start rather than for convergence (K. Jordan, 2024)."""


class StackedMuon(StackedOptimizer):
    """`torch.optim.Muon` of each adapter's A and B, in the precision of the adapters and not in bfloat16.

    m = momentum * m + gradient; direction = sqrt(max(1, rows / columns)) * orthogonal(gradient + momentum * m), with
    Nesterov's look ahead. Rows and columns are those of the adapter's own rank, however wide its stack is.
    """

    MOMENTS = ("first",)

    def _direction(self, place: int, gradient: Tensor) -> Tensor:
        momentum = gradient.new_tensor(self.momenta).view(-1, 1, 1)
        m = self.moments["first"][place].mul_(momentum).add_(gradient)
        return orthogonal(gradient + momentum * m) * self._aspect(place, m)

    def _aspect(self, place: int, like: Tensor) -> Tensor:
        """sqrt(max(1, rows / columns)) [K, 1, 1]: A has as many columns as the adapter's rank, B as many rows."""
        is_a = place % 2 == 0
        ratios = [like.shape[1] / rank if is_a else rank / like.shape[2] for rank in self.ranks]
        return like.new_tensor([max(1.0, ratio) ** 0.5 for ratio in ratios]).view(-1, 1, 1)


def orthogonal(x: Tensor) -> Tensor:
    """U V' of x = U S V', roughly, for matrices [..., m, n]: all singular values go to about 1, those of 0 stay 0.

    Costs STEPS * (2 s^2 l + s^3) multiplications for a matrix of s rows and l >= s columns.
    """
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
