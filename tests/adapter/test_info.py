from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.sample import EFFECTS
from memlaw.adapter.info import INFO, WEIGHTS, load_info, record_side_effects, recorded_training
from memlaw.core.config import TrainConfig
from memlaw.core.errors import AdapterError

WRITTEN: dict[str, Any] = {
    "format": 1, "base": "a/base", "base_fingerprint": "0" * 64, "placement": "down_proj@4", "rank": 2, "scale": 4,
    "weights_sha256": "1" * 64, "records": 5,
}  # fmt: skip


def written(directory: Path, content: Any) -> Path:
    (directory / WEIGHTS).write_bytes(b"")
    (directory / INFO).write_text(content if isinstance(content, str) else json.dumps(content))
    return directory


def test_what_was_recorded_is_read_and_what_is_unknown_is_ignored(tmp_path: Path) -> None:
    info = load_info(written(tmp_path, WRITTEN | {"of a later version": {"note": 1}}))
    assert info is not None
    assert (info.base, info.placement, info.rank, info.scale, info.records) == ("a/base", "down_proj@4", 2, 4.0, 5)
    assert (info.facts_fingerprint, info.train) == (None, None)


def test_side_effects_are_added_to_what_was_recorded(tmp_path: Path) -> None:
    before = load_info(written(tmp_path, WRITTEN | {"of a later version": {"note": 1}}))
    assert before is not None
    assert (before.side_effects, before.recalled) == (None, None)
    record_side_effects(tmp_path, EFFECTS, 4)
    assert load_info(tmp_path) == dataclasses.replace(before, side_effects=EFFECTS, recalled=4)
    assert json.loads((tmp_path / INFO).read_text())["of a later version"] == {"note": 1}


def test_side_effects_that_cannot_be_written_leave_the_record_as_it_was(tmp_path: Path) -> None:
    written(tmp_path, WRITTEN)
    with pytest.raises(AdapterError, match="cannot be written to .*elsewhere.*The adapter itself is safe"):
        record_side_effects(tmp_path / "elsewhere", EFFECTS, 4)
    assert json.loads((tmp_path / INFO).read_text()) == WRITTEN


def test_an_adapter_of_another_tool_has_no_record(tmp_path: Path) -> None:
    (tmp_path / WEIGHTS).write_bytes(b"")
    assert load_info(tmp_path) is None


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rank": "2"}, "rank: input should be a valid integer"),
        ({"rank": 0}, "rank: input should be greater than or equal to 1"),
        ({"scale": True}, "scale: input should be a valid number"),
        ({"scale": 0}, "scale: input should be greater than 0"),
        ({"scale": 1e9}, "scale: input should be less than 1000000000"),
        ({"scale": float("nan")}, "scale: input should be"),
        ({"base": None}, "base: input should be a valid string"),
        ({"side_effects": {"kl": 1.0}}, "side_effects: field required"),
        ({"train": [1]}, "train: input should be"),
    ],
)
def test_a_damaged_record_is_refused(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(AdapterError, match=f"is not a file that memlaw writes beside an adapter .{sentence}"):
        load_info(written(tmp_path, WRITTEN | changes))


@pytest.mark.parametrize("key", ["base", "base_fingerprint", "placement", "rank", "scale", "weights_sha256"])
def test_an_incomplete_record_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(AdapterError, match=f"{key}: field required.*Train the adapter again"):
        load_info(written(tmp_path, {name: value for name, value in WRITTEN.items() if name != key}))


@pytest.mark.parametrize("content", ["", "{", "{" + '"a":{' * 100_000, '{"rank": 1'])
def test_a_record_that_is_cut_short_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(AdapterError, match=r"is not JSON .*damaged or cut short"):
        load_info(written(tmp_path, content))


@pytest.mark.parametrize("content", ["[]", "1", '"text"', "null"])
def test_a_record_that_is_no_object_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(AdapterError, match="is not a file that memlaw writes beside an adapter"):
        load_info(written(tmp_path, content))


def test_a_later_format_asks_for_an_upgrade(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"has format 2.*reads up to format 1.*Upgrade memlaw"):
        load_info(written(tmp_path, {"format": 2, "weights": "somewhere else"}))


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "adapter_model.bin")
    with pytest.raises(AdapterError, match=r"adapter_model\.bin, a pickle that could run code"):
        load_info(tmp_path)


def test_a_missing_adapter_is_named(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"adapter directory .*nothing does not exist"):
        load_info(tmp_path / "nothing")
    with pytest.raises(AdapterError, match=r"holds no adapter_model\.safetensors"):
        load_info(tmp_path)


def training(directory: Path, **changes: Any) -> tuple[TrainConfig | None, list[str]]:
    settings = json.loads(json.dumps(dataclasses.asdict(TrainConfig(method="ot", steps=7)))) | changes
    info = load_info(written(directory, WRITTEN | {"train": settings}))
    assert info is not None
    return recorded_training(info)


def test_the_settings_of_the_training_come_back(tmp_path: Path) -> None:
    assert training(tmp_path) == (TrainConfig(method="ot", steps=7), [])
    info = load_info(written(tmp_path, WRITTEN))
    assert info is not None
    assert recorded_training(info) == (None, [])


def test_settings_of_a_later_version_are_ignored_with_a_warning(tmp_path: Path) -> None:
    config, (warning,) = training(tmp_path, warmup=10, alpha=1)
    assert config == TrainConfig(method="ot", steps=7)
    assert warning.endswith("does not know, and ignores: alpha, warmup.")


@pytest.mark.parametrize("changes", [{"method": "newest"}, {"learning_rate": -1.0}, {"steps": "many"}])
def test_settings_out_of_range_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(AdapterError, match=rf"cannot be used\. Setting {next(iter(changes))} is .*upgrade memlaw"):
        training(tmp_path, **changes)
