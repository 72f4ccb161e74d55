"""The Python API on a model and tokenizer in memory: the same results as the command line, the model left alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft import PeftModel

import memlaw
from memlaw.adapter import load_info
from memlaw.api import memory_set_of, reachable_ids
from memlaw.errors import AdapterError, ConfigError, DataError
from memlaw.journal import Journal
from memlaw.reach import frozen_head, reach
from memlaw.records import Fact, MemorySet, TrainConfig, to_dict
from memlaw.training import UNTIL_RECALLED, StackProgress

FACTS = MemorySet(
    tuple(Fact(f"key {number}:", f"#{7919 * number % 10_000:04d}", f"f{number}") for number in range(1, 5)),
    eos=True,
    source="codes",
)


@pytest.fixture
def model() -> Any:
    return tiny.model()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny.tokenizer()


def state_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_train_then_recall_certifies_every_fact_and_leaves_the_model_as_it_was(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    model.train()
    model.lm_head.requires_grad_(False)
    before, modes = state_of(model), [module.training for module in model.modules()]
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    trained = memlaw.train(model, tokenizer, FACTS, rank=16, out=tmp_path / "new" / "A")
    assert trained.recalled
    assert trained.config == UNTIL_RECALLED
    report = memlaw.recall(model, tokenizer, FACTS, adapter=tmp_path / "new" / "A")
    assert (report.acc_em, report.certified, report.records) == (1.0, 4, 4)
    assert report.mean_loss == pytest.approx(trained.loss_final, rel=1e-4)
    bare = memlaw.recall(model, tokenizer, FACTS)
    assert (bare.acc_em, bare.certified) == (0.0, 0)
    after = state_of(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == trainable


def test_recall_judges_a_peft_model_and_a_merged_one_alike(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    memlaw.train(model, tokenizer, FACTS, rank=4, out=tmp_path / "A", steps=40, until="budget")
    by_directory = memlaw.recall(model, tokenizer, FACTS, adapter=str(tmp_path / "A"))
    tuned = PeftModel.from_pretrained(model, str(tmp_path / "A"))
    by_peft = memlaw.recall(tuned, tokenizer, FACTS)
    merged = memlaw.recall(tuned.merge_and_unload(), tokenizer, FACTS)
    for report in (by_peft, merged):
        assert report.mean_loss == pytest.approx(by_directory.mean_loss, rel=1e-4)
        assert [item.exact for item in report.items] == [item.exact for item in by_directory.items]


def test_the_adapter_says_what_it_was_trained_on_without_repeating_it(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    trained = memlaw.train(model, tokenizer, FACTS, rank=2, out=tmp_path / "A", steps=3, seed=7, method="sft")
    info = load_info(tmp_path / "A")
    assert info is not None
    assert info["facts_fingerprint"] == FACTS.fingerprint
    assert (info["records"], info["tokens"], info["rank"]) == (4, 4 * 6, 2)
    assert TrainConfig(**info["train"]) == dataclasses.replace(trained.config, steps=3)
    assert info["loss_final"] == trained.loss_final
    assert "#7919" not in json.dumps(info)


def test_settings_change_the_config_that_is_given_or_the_one_of_the_command(model: Any, tokenizer: Any) -> None:
    short = TrainConfig(steps=2, seed=3)
    assert memlaw.train(model, tokenizer, FACTS, rank=1, config=short, method="ot").config == TrainConfig(
        steps=2, seed=3, method="ot"
    )
    assert memlaw.train(model, tokenizer, FACTS, rank=1, steps=2).config == dataclasses.replace(UNTIL_RECALLED, steps=2)


def test_progress_is_told_step_by_step_and_nothing_is_written_unasked(
    model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told: list[StackProgress] = []
    memlaw.train(model, tokenizer, FACTS, rank=1, steps=3, placement="mlp@1", on_step=told.append)
    assert [progress.step for progress in told] == [1, 2, 3]
    assert list(tmp_path.iterdir()) == []


def test_what_is_wrong_is_said_before_any_training(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    def never(_: StackProgress) -> None:
        pytest.fail("trained")

    def train(**changes: Any) -> None:
        memlaw.train(model, tokenizer, FACTS, on_step=never, **{"rank": 2, "out": tmp_path / "A", **changes})

    with pytest.raises(
        ConfigError, match=r"Unknown setting epochs, lora_alpha: it would change nothing\. Known: method"
    ):
        train(epochs=3, lora_alpha=32)
    with pytest.raises(ConfigError, match="Setting steps is 0: choose a whole number from 1 up"):
        train(steps=0)
    with pytest.raises(AdapterError, match="Rank 33 is above 32"):
        train(rank=33)
    with pytest.raises(AdapterError, match="no module 'nope'"):
        train(placement="nope")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(AdapterError, match="belongs to something else"):
        train(out=tmp_path / "mine")
    with pytest.raises(FileExistsError):
        train(out=tmp_path / "mine" / "notes.txt" / "A")
    with pytest.raises(DataError, match="There is no file"):
        memlaw.train(model, tokenizer, tmp_path / "none.jsonl", rank=2)
    assert {path.name for path in tmp_path.iterdir()} == {"mine"}


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("method", "dft", "sft, ot, sw or curriculum"),
        ("rule", "none", "zero or fallback"),
        ("until", "bored", "budget or recalled"),
        ("schedule", "cosine", "linear or constant"),
        ("init", "zeros", "peft or paper"),
        ("steps", 1.5, "a whole number from 1 up"),
        ("steps", True, "a whole number from 1 up"),
        ("steps", "9", "a whole number from 1 up"),
        ("margin", 0.7, "nats from 0 to below ln 2 (0.693): no loss can be further under it"),
        ("margin", float("nan"), "nats from 0"),
        ("position", -1.0, "a number above 0 (published: 2), or 0 to turn it off"),
        ("position", float("inf"), "a number above 0"),
        ("focus", float("nan"), "a number above 0, or 0 to turn it off"),
        ("boundaries", (20, 40, 60, 80), "5 rising whole numbers of epochs, one for each share of the curriculum"),
        ("boundaries", (20, 40, 40, 80, 300), "5 rising whole numbers"),
        ("boundaries", (0, 40, 60, 80, 300), "5 rising whole numbers"),
        ("boundaries", (20.0, 40, 60, 80, 300), "5 rising whole numbers"),
        ("boundaries", 300, "5 rising whole numbers"),
        ("learning_rate", 0, "a number above 0"),
        ("learning_rate", float("inf"), "a number above 0"),
        ("learning_rate", "fast", "a number above 0"),
        ("batch_size", -1, "a whole number of records from 1 up, or 0 for all of them"),
        ("clip", -1.0, "a gradient norm above 0, or 0 for no clipping"),
        ("weight_decay", -1e-9, "a number from 0 up"),
        ("dropout", 1.0, "a share from 0 to below 1"),
        ("scale", 0.0, "a number above 0"),
        ("seed", -1, "a whole number from 0 to 4294967295"),
        ("seed", 2**32, "a whole number from 0 to 4294967295"),
    ],
)
def test_a_setting_of_training_is_refused_where_it_lives(name: str, value: Any, wanted: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**{name: value})
    assert str(caught.value).startswith(f"Setting {name} is {value!r}: choose {wanted}")


def test_the_edges_of_every_range_are_allowed() -> None:
    TrainConfig(
        steps=1, margin=0.0, batch_size=0, clip=0.0, weight_decay=0.0, dropout=0.0, seed=0, learning_rate=1e-300
    )
    TrainConfig(margin=0.693, dropout=0.999, seed=2**32 - 1, learning_rate=1, scale=1)
    TrainConfig(position=0.0, focus=0, boundaries=(1, 2, 3, 4, 5))


def test_settings_come_back_from_json() -> None:
    config = TrainConfig(method="curriculum", boundaries=(30, 60, 90, 120, 350))
    assert TrainConfig(**to_dict(config)) == config
    assert hash(TrainConfig(**to_dict(config))) == hash(config)


def test_probe_runs_a_grid_and_goes_on_where_it_was(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    grid: dict[str, Any] = {"ranks": [1, 2], "lengths": [6, 24], "steps": 3}
    summary = memlaw.probe(model, tokenizer, FACTS, tmp_path / "P", **grid)
    assert (summary.cells, summary.finished) == (4, 4)
    results = Journal(tmp_path / "P").results()
    assert {result.cell.data for result in results} == {FACTS.fingerprint}
    again = memlaw.probe(model, tokenizer, FACTS, tmp_path / "P", **grid)
    assert again == summary
    with pytest.raises(ConfigError, match="Unknown setting epochs"):
        memlaw.probe(model, tokenizer, FACTS, tmp_path / "P", epochs=3, **grid)


# --- facts -----------------------------------------------------------------------------------------------------------


def test_facts_are_a_set_a_path_or_a_task(tmp_path: Path) -> None:
    base = tiny.base()
    assert memory_set_of(base, FACTS) is FACTS
    path = tmp_path / "facts.csv"
    path.write_text("prompt,completion\na,b\n")
    assert memory_set_of(base, path) == memory_set_of(base, str(path))
    assert memory_set_of(base, path, eos=False).eos is False
    drawn = memory_set_of(base, "task:random:tokens=50,seed=1")
    assert set(drawn.facts[0].target_ids or ()) <= set(reachable_ids(base))
    assert memory_set_of(base, "task:scenarios", eos=False).eos is False


def test_random_targets_are_drawn_from_ordinary_tokens_that_can_be_reached() -> None:
    base = tiny.base()
    ids = reachable_ids(base)
    assert ids == sorted(set(ids))
    assert not set(ids) & set(base.tokenizer.all_special_ids)
    ordinary = sorted(set(base.tokenizer.get_vocab().values()) - set(base.tokenizer.all_special_ids))
    values = dict(zip(ordinary, reach(frozen_head(base.model), ordinary).tolist(), strict=True))
    assert ids == [token for token in ordinary if values[token] > 0.9]
    assert len(ids) > 10


def test_of_a_large_vocabulary_a_fixed_sample_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny.base()
    everything = reachable_ids(base)
    monkeypatch.setattr("memlaw.api._JUDGED", 20)
    some = reachable_ids(base)
    assert some == reachable_ids(base)
    assert 0 < len(some) <= 20
    assert set(some) < set(everything)


def test_facts_whose_border_tokens_merge_are_warned_of_by_id(tmp_path: Path) -> None:
    base = memlaw.load()
    path = tmp_path / "facts.jsonl"
    pairs = [("x = ", "None"), ("y:", "1")] + [(f"{number} is ", "None") for number in range(5)]
    lines = (json.dumps({"prompt": prompt, "completion": target}) for prompt, target in pairs)
    path.write_text("\n".join(lines))
    [warning] = memory_set_of(base, path).warnings
    assert warning.startswith("6 of 7 facts ('1', '3', '4', '5', '6', ...) are cut into other tokens where prompt and")
    path.write_text(json.dumps({"prompt": "y:", "completion": "1"}))
    assert memory_set_of(base, path).warnings == ()


def test_an_interrupted_training_goes_on_and_leaves_no_checkpoint_behind(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    def stop(progress: StackProgress) -> None:
        if progress.step == 4:
            raise KeyboardInterrupt

    settings: dict[str, Any] = {"rank": 2, "steps": 6, "out": tmp_path / "A"}
    often = memlaw.Execution(checkpoint_minutes=0)
    with pytest.raises(KeyboardInterrupt):
        memlaw.train(model, tokenizer, FACTS, execution=often, on_step=stop, **settings)
    assert [path.name for path in tmp_path.iterdir()] == ["A.checkpoint"]
    told: list[int] = []
    found = memlaw.train(model, tokenizer, FACTS, on_step=lambda p: told.append(p.step), **settings)
    assert told == [4, 5, 6]
    assert [path.name for path in tmp_path.iterdir()] == ["A"]
    expected = memlaw.train(model, tokenizer, FACTS, rank=2, steps=6)
    assert found.loss_final == expected.loss_final


def test_minutes_between_checkpoints_are_not_negative() -> None:
    with pytest.raises(ConfigError, match=r"Setting checkpoint_minutes is -1: choose minutes from 0 up\."):
        memlaw.Execution(checkpoint_minutes=-1)
