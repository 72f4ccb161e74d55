from __future__ import annotations

import torch

from memlaw.core.config import TrainConfig
from memlaw.training.rows import row_order


def test_every_epoch_shows_every_row_once_in_a_new_order() -> None:
    order = row_order(7, TrainConfig(batch_size=3))
    seen: list[int] = torch.cat([next(order) for _ in range(14)]).tolist()
    epochs = [seen[i : i + 7] for i in range(0, 42, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
