"""C and G are measured once, and nothing that happens to their files changes a number."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers import tiny
from memlaw.adapter.on_model import placement_on
from memlaw.core.cache import VARIABLE
from memlaw.core.stages import listening
from memlaw.model.base import Base
from memlaw.model.head import frozen_head
from memlaw.model.parts import frozen
from memlaw.training import moment_cache
from memlaw.training.protection import STAGE, Protection, protection_at

NEUTRAL = torch.randint(3, tiny.VOCABULARY, (6, 12), generator=torch.Generator().manual_seed(5))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "moments"


@pytest.fixture(scope="module", params=[torch.float32, torch.float64, torch.bfloat16], ids=str)
def base(request: pytest.FixtureRequest) -> Base:
    return tiny.base(dtype=request.param)


class Asked:
    """What was measured, and whether it was measured or read."""

    def __init__(self, base: Base, where: str = "down_proj@2+3", ids: Tensor = NEUTRAL, *, own: bool = True) -> None:
        told: list[str] = []
        with frozen(base.model), listening(lambda stage, _done, _total: told.append(stage)):
            sites = placement_on(where, base.model).sites
            self.protection: Protection = protection_at(base, frozen_head(base.model), sites, ids, own=own)
        self.measured = STAGE in told

    @property
    def numbers(self) -> list[Tensor]:
        return [moment.numbers for one in self.protection.curvatures for moment in (one.inputs, one.outputs)]


def assert_same(one: Asked, other: Asked) -> None:
    for mine, theirs in zip(one.numbers, other.numbers, strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)
        assert (mine.storage_offset(), mine.stride()) == (theirs.storage_offset(), theirs.stride())  # so are products


def folders(cache: Path) -> list[Path]:
    return sorted(cache.iterdir())


def test_the_second_training_reads_the_very_same_numbers(base: Base, cache: Path) -> None:
    first = Asked(base)
    assert first.measured
    second = Asked(base)
    assert not second.measured
    assert_same(first, second)
    assert len(folders(cache)) == 1


def test_another_base_text_or_place_is_measured_anew() -> None:
    base = tiny.base()
    Asked(base)
    assert Asked(replace(base, fingerprint="another")).measured
    assert Asked(base, ids=NEUTRAL.flip(1)).measured
    assert Asked(base, where="down_proj@2").measured
    assert Asked(base, where="o_proj@2+3").measured
    assert not Asked(base).measured


def test_moments_of_few_vectors_are_kept_as_vectors() -> None:
    base = tiny.base()
    few = Asked(base, ids=NEUTRAL[:1])
    assert few.numbers[0].shape == (10, few.protection.curvatures[0].inputs.numbers.shape[1])
    again = Asked(base, ids=NEUTRAL[:1])
    assert not again.measured
    assert_same(few, again)


def test_vectors_of_a_text_of_the_user_stay_out_of_the_cache(cache: Path) -> None:
    base = tiny.base()
    Asked(base, ids=NEUTRAL[:1], own=False)
    assert not cache.exists()
    many = torch.randint(3, tiny.VOCABULARY, (40, 12), generator=torch.Generator().manual_seed(6))
    Asked(base, ids=many, own=False)
    assert not Asked(base, ids=many, own=False).measured


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing", "short"])
def test_damaged_files_are_measured_again_and_replaced(cache: Path, damage: str) -> None:
    base = tiny.base()
    first = Asked(base)
    path = folders(cache)[0] / "1.safetensors"
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
        assert_same(Asked(base), first)
    elif damage == "short":
        other = first.numbers[0].flatten()[:5]
        moment_cache.write_tensor(path, other, replace=True)
        assert_same(Asked(base), first)
    else:
        path.write_bytes(whole[:-8] if damage == "cut" else whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.warns(UserWarning, match="The cached moments .* are damaged"):
            assert_same(Asked(base), first)
    assert path.read_bytes() == whole
    assert not Asked(base).measured


def test_a_cache_that_cannot_be_written_costs_time_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny.base()
    first = Asked(base)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file"))
    again = Asked(base)
    assert again.measured
    assert_same(first, again)


def test_what_was_used_longest_ago_makes_room(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny.base()
    Asked(base)
    (first,) = folders(cache)
    size = sum(file.stat().st_size for file in first.iterdir())
    monkeypatch.setattr(moment_cache, "KEPT_BYTES", int(2.5 * size))
    Asked(replace(base, fingerprint="second"))
    (second,) = set(folders(cache)) - {first}
    os.utime(second, (1, 1))
    os.utime(first, (0, 0))
    assert not Asked(base).measured  # from here on the second is the older one
    Asked(replace(base, fingerprint="third"))
    assert first in folders(cache)
    assert second not in folders(cache)
    assert len(folders(cache)) == 2


def test_what_is_larger_than_the_whole_cache_is_not_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moment_cache, "KEPT_BYTES", 1000)
    base = tiny.base()
    assert_same(Asked(base), Asked(base))
    assert not cache.exists()
