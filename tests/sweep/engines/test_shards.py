from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memlaw.core.errors import ConfigError
from memlaw.sweep.engines.shards import Shard, longest_first

costs = st.lists(st.integers(0, 10**12), max_size=60)


@given(costs=costs)
def test_the_longest_come_first(costs):
    order = longest_first(costs)
    assert sorted(order) == list(range(len(costs)))
    assert [costs[number] for number in order] == sorted(costs, reverse=True)


@given(costs=costs, count=st.integers(1, 12))
def test_shards_divide_the_packs_and_none_has_more_than_its_part_and_one_pack(costs, count):
    shares = [Shard(index, count).share(costs) for index in range(1, count + 1)]
    assert sorted(number for share in shares for number in share) == list(range(len(costs)))
    assert all(share == sorted(share) for share in shares)
    for share in shares:
        assert sum(costs[number] for number in share) <= sum(costs) / count + max(costs, default=0)


def test_shards_are_numbered_from_one():
    assert Shard.parse("3/20") == Shard(3, 20)
    for text in ("0/20", "21/20", "3", "3/0", "-1/2", "1/2/3", "a/b", ""):
        with pytest.raises(ConfigError, match=r"is not of the form 3/20, .* Shards count from 1\. In a Slurm array"):
            Shard.parse(text)
