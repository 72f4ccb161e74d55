from __future__ import annotations

from dataclasses import replace

import torch

from helpers import tiny
from memlaw.core.config import TrainConfig
from memlaw.training.rows import Batch, Rows, row_order


def test_every_epoch_shows_every_row_once_in_a_new_order() -> None:
    order = row_order(7, TrainConfig(batch_size=3))
    seen: list[int] = torch.cat([next(order) for _ in range(14)]).tolist()
    epochs = [seen[i : i + 7] for i in range(0, 42, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_tokens_with_a_floor_are_unwanted_and_all_other_target_tokens_wanted() -> None:
    first, second = tiny.facts([(3, 2), (2, 4)])
    rows = Rows.from_facts([first, replace(second, floor=(0.5, -0.5, 2.0, 1.0))], "cpu")
    assert rows.unwanted.tolist() == [[False] * 4, [True] * 4]
    assert rows.wanted.tolist() == [[True, True, False, False], [False] * 4]
    assert rows.floor[1].tolist() == [0.5, -0.5, 2.0, 1.0]
    batch = Batch.from_rows(torch.tensor([[1, 0], [0, 0]]), rows)
    assert batch.wanted.tolist() == [False] * 4 + [True] * 6
    assert batch.floor[:4].tolist() == [0.5, -0.5, 2.0, 1.0]
