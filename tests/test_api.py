"""The Python API on a model and tokenizer in memory: the same results as the command line, the model left alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

import memlaw
from helpers import tiny
from helpers.commands import saved_model
from helpers.door_codes import FACTS
from memlaw.adapter.info import load_info, recorded_training
from memlaw.core.config import AUTO, UNTIL_RECALLED, TrainConfig
from memlaw.core.errors import AdapterError, ConfigError, DataError
from memlaw.planning import Target
from memlaw.planning.library import KnownLaw
from memlaw.sweep.journal import Journal
from memlaw.training.result import StackProgress
from memlaw.training.step_size import RATES


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
    assert trained.config.learning_rate in RATES["muon"]
    assert dataclasses.replace(trained.config, learning_rate=AUTO) == UNTIL_RECALLED
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
    assert info.facts_fingerprint == FACTS.fingerprint
    assert (info.records, info.tokens, info.rank) == (4, 4 * 6, 2)
    assert recorded_training(info) == (dataclasses.replace(trained.config, steps=3), [])
    assert info.loss_final == trained.loss_final
    assert "#7919" not in (tmp_path / "A" / "memlaw_adapter.json").read_text()


def test_settings_change_the_config_that_is_given_or_the_one_of_the_command(model: Any, tokenizer: Any) -> None:
    short = TrainConfig(steps=2, seed=3)
    assert memlaw.train(model, tokenizer, FACTS, rank=1, config=short, method="ot").config == TrainConfig(
        steps=2, seed=3, method="ot"
    )
    few = memlaw.train(model, tokenizer, FACTS, rank=1, steps=2, learning_rate=1e-2).config
    assert few == dataclasses.replace(UNTIL_RECALLED, steps=2, learning_rate=1e-2)


def test_progress_is_reported_at_every_step_and_nothing_is_written(
    model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    reported: list[StackProgress] = []
    memlaw.train(model, tokenizer, FACTS, rank=1, steps=3, placement="mlp@1", on_step=reported.append)
    assert [progress.step for progress in reported] == [1, 2, 3]
    assert list(tmp_path.iterdir()) == []


def test_errors_are_raised_before_any_training(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    def never(_: StackProgress) -> None:
        pytest.fail("trained")

    def train(**changes: Any) -> None:
        memlaw.train(model, tokenizer, FACTS, on_step=never, **{"rank": 2, "out": tmp_path / "A", **changes})

    with pytest.raises(ConfigError, match=r"Unknown setting epochs, lora_alpha: it would change nothing\. Known: rule"):
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
    with pytest.raises(DataError, match="The file .* does not exist"):
        memlaw.train(model, tokenizer, tmp_path / "none.jsonl", rank=2)
    assert {path.name for path in tmp_path.iterdir()} == {"mine"}


def test_probe_runs_a_grid_and_skips_finished_cells(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    grid: dict[str, Any] = {"ranks": [1, 2], "lengths": [6, 24], "steps": 3}
    summary = memlaw.probe(model, tokenizer, FACTS, tmp_path / "P", **grid)
    assert (summary.cells, summary.finished) == (4, 4)
    results = Journal(tmp_path / "P").results()
    assert {result.cell.data for result in results} == {FACTS.fingerprint}
    again = memlaw.probe(model, tokenizer, FACTS, tmp_path / "P", **grid)
    assert again == summary
    with pytest.raises(ConfigError, match="Unknown setting epochs"):
        memlaw.probe(model, tokenizer, FACTS, tmp_path / "P", epochs=3, **grid)


def test_an_interrupted_training_resumes_and_leaves_no_checkpoint_behind(
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
    reported: list[int] = []
    resumed = memlaw.train(model, tokenizer, FACTS, on_step=lambda p: reported.append(p.step), **settings)
    assert reported == [4, 5, 6]
    assert [path.name for path in tmp_path.iterdir()] == ["A"]
    expected = memlaw.train(model, tokenizer, FACTS, rank=2, steps=6)
    assert resumed.loss_final == expected.loss_final


def test_a_plan_of_a_loaded_model_measures_it_and_one_by_name_reads_its_files(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved_model(tmp_path / "model")
    loaded = memlaw.load(str(path))
    measured = memlaw.plan(loaded.model, tokenizer, FACTS, placement="down_proj@1", rank=3)
    assert measured.loss_init == memlaw.recall(loaded.model, tokenizer, FACTS, decode=False).mean_loss
    assert (measured.records, measured.tokens) == (4, 4 * 6)
    assert measured.capacity is not None
    assert measured.capacity.rank == 3
    by_name = memlaw.plan(path, FACTS, placement="down_proj@1")
    assert "was not measured" in " ".join(by_name.caveats)
    assert by_name.tokens == measured.tokens
    assert memlaw.plan(model=path, tokenizer=tokenizer, facts=FACTS, placement="down_proj@1") == by_name
    calibrated = memlaw.plan(str(path), FACTS, placement="down_proj@1", calibrate=True)
    assert calibrated.loss_init == pytest.approx(measured.loss_init, rel=1e-5)
    assert calibrated.cost is not None
    assert calibrated.cost.seconds is not None


def test_a_plan_of_a_task_loads_the_model_that_draws_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    answer = memlaw.plan(saved_model(tmp_path / "model"), "task:phonebook:tokens=24")
    assert answer.tokens <= 24
    assert "was not measured" not in " ".join(answer.caveats)


def test_a_plan_takes_a_law_in_every_form_and_the_nearest_of_a_folder_without_one(
    model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    law = memlaw.fit_law(memlaw.published.points(), "bounded")
    (tmp_path / "laws").mkdir()
    (tmp_path / "laws" / "own.json").write_text(law.to_json())
    expected = memlaw.plan(model, tokenizer, FACTS, law=law)
    assert not expected.law.borrowed
    for options in ({"law": KnownLaw(law)}, {"law": tmp_path / "laws" / "own.json"}, {"laws": tmp_path / "laws"}, {}):
        assert memlaw.plan(model, tokenizer, FACTS, **options).rank == expected.rank
    monkeypatch.setenv("MEMLAW_LAWS", str(tmp_path / "none"))
    assert memlaw.plan(model, tokenizer, FACTS).law.borrowed
    (tmp_path / "laws" / "own.json").write_text("{")
    with pytest.warns(UserWarning, match="own.json is not JSON"):
        memlaw.plan(model, tokenizer, FACTS, laws=tmp_path / "laws")


def test_a_plan_aims_at_a_share_a_loss_or_a_target(model: Any, tokenizer: Any) -> None:
    by_number, by_text, by_target = (
        memlaw.plan(model, tokenizer, FACTS, target=target) for target in (0.5, "50%", Target(0.5))
    )
    assert by_number == by_text == by_target
    assert memlaw.plan(model, tokenizer, FACTS, target="loss=2").loss_needed.nats == 2
    with pytest.raises(ConfigError, match="Choose all, a share"):
        memlaw.plan(model, tokenizer, FACTS, target="most")
    with pytest.raises(ConfigError, match=r"A plan needs facts: memlaw\.plan\(model, tokenizer, facts\)"):
        memlaw.plan("memlaw/base")


def test_what_the_model_recalls_already_is_trained_in_no_step_and_saved_all_the_same(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    memlaw.train(model, tokenizer, FACTS, rank=16, out=tmp_path / "A")
    knows = PeftModel.from_pretrained(model, str(tmp_path / "A")).merge_and_unload()
    again = memlaw.train(knows, tokenizer, FACTS, rank=1, margin=0.05, out=tmp_path / "B")
    assert (again.steps, again.recalled) == (0, True)
    assert memlaw.recall(knows, tokenizer, FACTS, adapter=tmp_path / "B").certified == 4


def test_the_curve_of_a_training_is_kept_with_the_adapter(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    shares: list[float] = []
    trained = memlaw.train(
        model, tokenizer, FACTS, rank=2, out=tmp_path / "A", steps=5, on_step=lambda p: shares.append(p.ordered)
    )
    assert trained.curve == tuple(shares)
    info = load_info(tmp_path / "A")
    assert info is not None
    assert info.curve == tuple(shares)


class TestSideEffects:
    """What a training cost: of a saved adapter, of one in memory, of a PEFT model and of a merged one."""

    def test_of_one_adapter_they_are_the_same_in_every_form(self, model: Any, tokenizer: Any, tmp_path: Path) -> None:
        before = state_of(model)
        trained = memlaw.train(model, tokenizer, FACTS, rank=4, steps=20, out=tmp_path / "A", side_effects=True)
        effects = trained.side_effects
        assert effects is not None
        assert effects.kl > 0
        info = load_info(tmp_path / "A")
        assert info is not None
        assert info.side_effects == effects
        saved = memlaw.side_effects(model, tokenizer, FACTS, adapter=tmp_path / "A")
        in_memory = memlaw.side_effects(model, tokenizer, FACTS, adapter=trained)
        assert all(torch.equal(before[name], tensor) for name, tensor in state_of(model).items())
        neutral = tmp_path / "neutral.txt"
        neutral.write_text("A text about nothing in particular. " * 30)
        with_adapter = memlaw.side_effects(model, tokenizer, FACTS, adapter=trained, neutral=neutral)
        tuned = PeftModel.from_pretrained(model, str(tmp_path / "A"))
        live = memlaw.side_effects(tuned, tokenizer, FACTS, neutral=neutral)
        merged = memlaw.side_effects(tuned.merge_and_unload(), tokenizer, FACTS, base=tiny.model(), neutral=neutral)
        for found, expected in ((saved, effects), (in_memory, effects), (live, with_adapter), (merged, with_adapter)):
            assert found.loss_difference == pytest.approx(expected.loss_difference, abs=1e-4)
            assert found.kl == pytest.approx(expected.kl, rel=1e-3, abs=1e-6)
            assert found.near_misses == expected.near_misses

    def test_train_measures_them_only_if_asked(self, model: Any, tokenizer: Any) -> None:
        assert memlaw.train(model, tokenizer, FACTS, rank=1, steps=2).side_effects is None

    def test_on_a_neutral_text_that_is_checked_first(self, model: Any, tokenizer: Any, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="nowhere"):
            memlaw.train(
                model, tokenizer, FACTS, rank=1, steps=2, out=tmp_path / "A", side_effects=tmp_path / "nowhere"
            )
        assert not (tmp_path / "A").exists()
        (tmp_path / "neutral.txt").write_text("A text about nothing in particular. " * 30)
        trained = memlaw.train(model, tokenizer, FACTS, rank=1, steps=2, side_effects=tmp_path / "neutral.txt")
        assert trained.side_effects is not None
        assert set(trained.side_effects.texts) == {"file"}

    def test_there_must_be_one_thing_to_compare(self, model: Any, tokenizer: Any) -> None:
        with pytest.raises(ConfigError, match="here is none.*base=..."):
            memlaw.side_effects(model, tokenizer, FACTS)
        with pytest.raises(ConfigError, match="here are several"):
            memlaw.side_effects(model, tokenizer, FACTS, adapter="a", base=model)
