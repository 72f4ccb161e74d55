from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from helpers.probes import a_cell
from memlaw.sweep.grid import ADAPTERS_PER_PACK, TOKENS_PER_PACK, plan_packs

cells = st.builds(
    a_cell,
    st.integers(1, 64),
    st.sampled_from([1, 10, 300, 1000, 10_000]),
    st.sampled_from(["sft", "ot"]),
    st.integers(0, 3),
)


@given(grid=st.lists(cells, min_size=1, max_size=120, unique_by=lambda cell: cell.key), shuffle=st.randoms())
def test_packs_hold_every_cell_once_are_of_one_length_within_the_limits_and_depend_on_the_grid_alone(grid, shuffle):
    packs = plan_packs(grid)
    assert sorted(cell.key for pack in packs for cell in pack) == sorted(cell.key for cell in grid)
    for pack in packs:
        assert len({cell.length for cell in pack}) == 1
        assert len(pack) <= ADAPTERS_PER_PACK
        assert len(pack) == 1 or sum(cell.length for cell in pack) <= TOKENS_PER_PACK
    shuffled = list(grid)
    shuffle.shuffle(shuffled)
    assert plan_packs(shuffled) == packs


def test_packs_of_one_length_are_of_equal_size_and_keep_near_ranks_together():
    packs = plan_packs([a_cell(rank, 10) for rank in range(1, ADAPTERS_PER_PACK + 2)])
    assert [len(pack) for pack in packs] == [17, 16]
    assert [cell.rank for pack in packs for cell in pack] == list(range(1, ADAPTERS_PER_PACK + 2))
