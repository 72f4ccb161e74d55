from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from memlaw.core.config import TrainConfig
from memlaw.core.errors import ConfigError
from memlaw.sweep.config import ProbeConfig


def yaml_file(folder: Path, text: str) -> Path:
    path = folder / "grid.yaml"
    path.write_text(text)
    return path


def test_a_file_and_the_flags_give_the_same(tmp_path):
    path = yaml_file(
        tmp_path, "ranks: [4, 1, 2, 2]\nlengths: [16, 32]\nmethods: [sft, ot]\nlearning_rate: 1e-4\nplacement: mlp@2\n"
    )
    flags = ProbeConfig(ranks=[1, 2, 4], lengths=[32, 16], methods=["ot", "sft"], learning_rate=1e-4, placement="mlp@2")
    assert ProbeConfig.from_yaml(path) == flags
    assert flags.ranks == (1, 2, 4)
    assert flags.train("ot", 7) == TrainConfig(
        method="ot", seed=7, learning_rate=1e-4, optimizer="muon", steps=ProbeConfig.steps
    )


def test_flags_win_over_the_file_and_may_complete_it(tmp_path):
    path = yaml_file(tmp_path, "ranks: [1]\nsteps: 5\n")
    assert ProbeConfig.from_yaml(path, {"lengths": [8], "steps": 9}) == ProbeConfig(ranks=[1], lengths=[8], steps=9)


def test_every_training_setting_can_be_given_and_those_of_adamw_have_the_default_of_a_training():
    of_adamw = ProbeConfig(ranks=[1], lengths=[1], optimizer="adamw")
    assert of_adamw.train(TrainConfig.method, TrainConfig.seed) == TrainConfig()
    assert ProbeConfig(ranks=[1], lengths=[1]).methods == (TrainConfig.method,)
    assert ProbeConfig(ranks=[1], lengths=[1]).seeds == (TrainConfig.seed,)
    of_one_adapter = {
        "method",
        "seed",
        "served_as",
    }  # a probe has lists of two, and the base as loaded
    known = {field.name for field in dataclasses.fields(TrainConfig)} - of_one_adapter
    assert known <= {field.name for field in dataclasses.fields(ProbeConfig)}


def test_steps_and_learning_rate_follow_the_optimizer_unless_they_are_given(tmp_path):
    usual = ProbeConfig(ranks=[1], lengths=[8])
    assert (usual.optimizer, usual.steps, usual.learning_rate) == ("muon", 300, 0.1)
    path = yaml_file(tmp_path, "ranks: [1]\nlengths: [8]\noptimizer: adamw\n")
    assert ProbeConfig.from_yaml(path).learning_rate == TrainConfig.learning_rate
    some = ProbeConfig.from_yaml(path, {"steps": 9})
    assert (some.steps, some.learning_rate) == (9, TrainConfig.learning_rate)
    assert ProbeConfig.from_yaml(path, {"optimizer": "muon"}) == usual


def test_unknown_settings_are_refused_with_the_known_ones(tmp_path):
    path = yaml_file(tmp_path, "ranks: [1]\nlengths: [8]\nlora_alpha: 32\nepochs: 3\n")
    with pytest.raises(ConfigError) as caught:
        ProbeConfig.from_yaml(path)
    assert str(caught.value) == (
        f"{path}: Unknown setting epochs, lora_alpha: it would change nothing. Known: rule, margin, position, "
        "focus, steps, until, anneal, boundaries, optimizer, momentum, learning_rate, schedule, average, batch_size, "
        "clip, weight_decay, protect, rehearse, dropout, scale, scaling, init, ranks, lengths, methods, seeds, "
        "placement."
    )


@pytest.mark.parametrize("name", ["method", "seed", "train"])
def test_a_setting_that_the_grid_has_another_name_for_is_unknown(name):
    with pytest.raises(ConfigError, match=f"Unknown setting {name}"):
        ProbeConfig(ranks=[1], lengths=[8], **{name: 1})


def test_a_missing_axis_is_refused():
    with pytest.raises(
        ConfigError,
        match=r"^Setting lengths is missing\. Target tokens, such as \[16, 32\]: each is the longest prefix",
    ):
        ProbeConfig(ranks=[1])


@pytest.mark.parametrize(
    ("setting", "value", "sentence"),
    [
        ("ranks", [0], "Setting ranks entry 0 is 0: choose whole numbers from 1 up, such as [1, 2, 4]."),
        ("ranks", [], "Setting ranks is []: choose whole numbers from 1 up"),
        ("ranks", "1,2", "Setting ranks is '1,2': choose whole numbers from 1 up"),
        ("ranks", [1.5], "Setting ranks entry 0 is 1.5: choose whole numbers from 1 up"),
        ("lengths", [True], "Setting lengths entry 0 is True: choose whole numbers from 1 up"),
        ("methods", ["dft"], "Setting methods entry 0 is 'dft': choose sft, ot, sw or curriculum. Did you mean sft?"),
        ("seeds", [-1], "Setting seeds entry 0 is -1: choose whole numbers from 0 to 4294967295"),
        ("steps", 0, "Setting steps is 0: choose a whole number from 1 up."),
        ("steps", 1.5, "Setting steps is 1.5: choose a whole number from 1 up."),
        ("learning_rate", -1, "Setting learning_rate is -1: choose a number above 0, or 0 to have it chosen."),
        ("learning_rate", math.nan, "Setting learning_rate is nan: choose a number above 0, or 0 to have it chosen."),
        ("scale", math.inf, "Setting scale is inf: choose a number above 0."),
        ("learning_rate", "fast", "Setting learning_rate is 'fast': choose a number above 0"),
        ("dropout", 1.0, "Setting dropout is 1.0: choose a share from 0 to below 1."),
        ("schedule", "cosine", "Setting schedule is 'cosine': choose linear, constant or share."),
    ],
)
def test_a_value_out_of_range_is_refused(setting, value, sentence):
    with pytest.raises(ConfigError) as caught:
        ProbeConfig(**{"ranks": [1], "lengths": [8], setting: value})
    assert str(caught.value).startswith(sentence)
    assert str(caught.value).count("Setting") == 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "has no settings. Write one `name: value` per line"),
        ("- ranks", "has no settings"),
        ("ranks: [1", "is not YAML"),
        ("ranks: !!python/object/apply:os.getcwd []", "is not YAML: could not determine a constructor"),
        ("[" * 2000, r"^\S*grid.yaml opens more than 16 brackets at once"),
        ("- " * 2000, "is not YAML"),
        ("\x00", "is not YAML"),
    ],
)
def test_a_file_without_settings_is_refused(tmp_path, text, sentence):
    with pytest.raises(ConfigError, match=sentence):
        ProbeConfig.from_yaml(yaml_file(tmp_path, text))


def test_facts_given_in_place_of_settings_are_not_repeated(tmp_path):
    for text in ('{"prompt": "a", "completion": "hunter2"}\n' * 2, "key: *hunter2", "key: !hunter2 x", "a: b: hunter2"):
        with pytest.raises(ConfigError, match="is not YAML: .* at line [12]") as caught:
            ProbeConfig.from_yaml(yaml_file(tmp_path, text))
        assert "hunter2" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"Cannot read the settings in .*none\.yaml: No such file or directory\."):
        ProbeConfig.from_yaml(tmp_path / "none.yaml")
