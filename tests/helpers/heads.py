import math

import torch
from torch import Tensor

from memlaw.model.head import FrozenHead


def probabilities(head: FrozenHead, u: Tensor) -> Tensor:
    """Probabilities [n, vocab] by definition, for unit vectors u [n, d]."""
    assert head.norm_weight is not None
    h = head.norm_weight * u * math.sqrt(u.shape[1])
    if head.norm_bias is not None:
        h = h + head.norm_bias
    z = h @ head.weight.T
    if head.bias is not None:
        z = z + head.bias
    z = z * head.scale
    if head.softcap is not None:
        z = head.softcap * torch.tanh(z / head.softcap)
    return z.softmax(dim=1)
