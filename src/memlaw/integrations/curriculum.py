"""The curriculum of MemFT in a trainer: which samples it sees, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import IterableDataset, Sampler, Subset

from memlaw.core.errors import ConfigError
from memlaw.losses import curriculum_order, exposed


class CurriculumSampler(Sampler[int]):
    """The samples of a whole curriculum, epoch by epoch: each sees the first `exposed(...)` of one shuffled order."""

    def __init__(self, dataset: Any, boundaries: Sequence[int], *, seed: int = 42) -> None:
        """`boundaries` are the epochs (from 0) until which 20, 40, 60, 80 and 100% of the samples are exposed.

        Raises ConfigError for a data set without a length, and for boundaries that do not increase.
        """
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise ConfigError(
                f"A curriculum shows the same samples repeatedly, and a {type(dataset).__name__} gives them only once, "
                "in its own order: use a data set with a length and an index."
            )
        self.boundaries = tuple(boundaries)
        self.order: list[int] = curriculum_order(len(dataset), seed).tolist()
        self.exposed = [exposed(len(dataset), epoch, self.boundaries) for epoch in range(self.boundaries[-1])]
        """Number of samples in each epoch."""

    def __len__(self) -> int:
        return sum(self.exposed)

    def __iter__(self) -> Iterator[int]:
        for count in self.exposed:
            yield from self.order[:count]


def use_curriculum(trainer: Any, *, boundaries: Sequence[int], seed: int | None = None) -> Any:
    """Let a Trainer, or an SFTTrainer, train on a curriculum of its `train_dataset`, and return the trainer.

    `boundaries` are epochs; the last is the length of the run, so leave `max_steps` unset. For the Trainer the whole
    run is one epoch: so its number of steps and its learning rate schedule are right although epochs differ in length,
    and the last batch of an epoch is filled up from the next one. `seed` is that of the order, by default the Trainer's
    seed for data. Use it with the loss of method ot. Raises ConfigError.
    """
    args, dataset = trainer.args, trainer.train_dataset
    if seed is None:
        seed = args.seed if args.data_seed is None else args.data_seed
    rows = list(CurriculumSampler(dataset, boundaries, seed=seed))
    if args.max_steps > 0:
        raise ConfigError(
            f"max_steps is {args.max_steps}, but the last boundary ({boundaries[-1]} epochs) is the end of a "
            "curriculum. Leave max_steps unset."
        )
    if getattr(args, "packing", False):
        raise ConfigError("A curriculum selects samples, but packing has joined them into rows: set packing=False.")
    trainer.train_dataset = dataset.select(rows) if hasattr(dataset, "select") else Subset(dataset, rows)
    args.train_sampling_strategy, args.num_train_epochs = "sequential", 1
    return trainer
