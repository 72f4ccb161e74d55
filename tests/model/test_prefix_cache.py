"""Cached states equal the computed ones, are computed once, and are never used if damaged."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import tiny
from memlaw.adapter.on_model import placement_on
from memlaw.model.base import Base
from memlaw.model.parts import frozen
from memlaw.model.prefix_cache import PrefixCache
from memlaw.model.split import FullForward, SiteForward, SplitForward, split

IDS = torch.arange(3, 51).view(4, 12)


@pytest.fixture(scope="module")
def base() -> Base:
    return tiny.base()


def states(base: Base, folder: Path, ids: torch.Tensor = IDS, where: str = "down_proj@2") -> tuple[torch.Tensor, int]:
    """The states of `ids` below an adapter, and how often the model's first layer ran for them."""
    placement = placement_on(where, base.model)
    sites, runs = placement.first_sites, list[int]()
    with frozen(base.model):
        forward = split(base.model, placement.first_layer, sites, ids, placement.sites[-1].layer)
        handle = base.model.model.layers[0].register_forward_pre_hook(lambda *_: runs.append(1))
        cached = PrefixCache(folder).states(base, sites, forward, ids)
        count = len(runs)
        handle.remove()
        assert torch.equal(cached, forward.cache(ids))
    return cached, count


def test_the_first_computes_and_the_next_reads_the_same_bits(base, tmp_path):
    first, computed = states(base, tmp_path / "new" / "cache")
    second, again = states(tiny.base(), tmp_path / "new" / "cache")
    assert (computed, again) == (1, 0)
    assert torch.equal(first, second)
    [file] = (tmp_path / "new" / "cache").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600, "the tokens can be reconstructed from it"


def test_whatever_changes_the_states_is_another_file(base, tmp_path):
    states(base, tmp_path)
    others = [
        (base, IDS.flip(0), "down_proj@2"),
        (base, IDS.view(6, 8), "down_proj@2"),
        (base, IDS, "down_proj@1"),
        (base, IDS, "q_proj,v_proj@2"),
        (base, IDS, "up_proj@2"),
        (tiny.base(seed=1), IDS, "down_proj@2"),
        (tiny.base(dtype=torch.float64), IDS, "down_proj@2"),
    ]
    for number, (other, ids, where) in enumerate(others, start=2):
        assert states(other, tmp_path, ids, where)[1] == 1
        assert len(list(tmp_path.iterdir())) == number


def test_every_kind_of_split_is_cached_and_the_full_forward_is_not(base, tmp_path):
    with frozen(base.model):
        whole, parts = FullForward(base.model), SplitForward(base.model, 2, 12, 2)
        site = SiteForward(base.model, 2, 12, 2, "model.layers.2.mlp.down_proj")
        cache = PrefixCache(tmp_path)
        assert cache.states(base, ["a"], whole, IDS) is IDS
        assert not list(tmp_path.iterdir())
        for forward in (parts, site):
            assert torch.equal(cache.states(base, ["a"], forward, IDS), forward.cache(IDS))
        assert len(list(tmp_path.iterdir())) == 2


@settings(max_examples=40, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_a_damaged_file_causes_a_warning_and_is_replaced(base, tmp_path_factory, place, bit, cut):
    folder = tmp_path_factory.mktemp("cache")
    states(base, folder)
    [file] = folder.iterdir()
    intact = bytearray(file.read_bytes())
    damaged = intact[: int(place * len(intact))] if cut else intact.copy()
    if not cut:
        damaged[int(place * len(intact))] ^= 1 << bit
    file.write_bytes(damaged)
    with pytest.warns(UserWarning, match=r"The cached states .* are damaged \(.*\) and will be computed again\."):
        states(base, folder)
    assert file.read_bytes() == intact
    assert states(base, folder)[1] == 0


def test_a_cache_that_cannot_be_written_costs_a_warning(base, tmp_path):
    (tmp_path / "file").write_text("no directory")
    with pytest.warns(UserWarning, match=r"The prefix cache cannot be written to .*file/cache: File exists"):
        assert states(base, tmp_path / "file" / "cache")[1] == 1
