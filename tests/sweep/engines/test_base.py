from __future__ import annotations

from collections import deque

import pytest

from helpers.engines import outcomes
from memlaw.core.errors import ConfigError
from memlaw.sweep.engines.base import Inline, Resources


def test_inline_runs_from_left_to_right_and_picks_up_additions():
    seen: list[int] = []
    specs = deque([3, 1])
    for outcome in Inline().run(seen.append, specs, Resources()):
        assert outcome.error is None
        if outcome.spec == 3:
            specs.append(7)
    assert seen == [3, 1, 7]


def test_inline_returns_errors_but_raises_interrupts():
    assert isinstance(outcomes(Inline(), "raise:key")["raise:key"], KeyError)

    def interrupted(_spec: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        next(Inline().run(interrupted, deque([1]), Resources()))


@pytest.mark.parametrize(("cpus", "gpus"), [(0, 0.0), (1, -0.5), (1, 1.5), (1, float("nan")), (1, float("inf"))])
def test_impossible_resources_are_refused(cpus, gpus):
    with pytest.raises(ConfigError, match=r"A pack cannot (run on 0 CPUs|use .* GPUs)\. Choose"):
        Resources(cpus=cpus, gpus=gpus)
    assert Resources(gpus=0.5).gpus + Resources(gpus=2).gpus == 2.5
