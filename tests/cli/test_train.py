from __future__ import annotations

import json
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import tiny
from helpers.commands import LENGTH, OFFICIAL, Ran, Run, assert_refused, process, saved_model
from helpers.words import words
from memlaw.adapter.on_model import placement_on
from memlaw.cli import progress
from memlaw.cli.train import TrainingOptions, train_lines
from memlaw.core.config import TrainConfig
from memlaw.core.precision import MARGINS
from memlaw.model.base import load
from memlaw.model.gguf_write import write_base
from memlaw.training.result import Trained
from memlaw.training.run import Run as TrainingRun
from memlaw.training.stack import train_stack


def test_train_and_recall_make_it_stick_and_certify_it(run: Run, model: Path, facts: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "A"
    trained = run("train", facts, "--model", model, "--rank", 16, "--out", out, "--json")
    assert trained.err == ""
    document = trained.document
    assert {"adapter", "steps", "seconds", "recalled", "loss_init", "loss_final"} <= document.keys()
    assert document["tokens_forwarded"] > document["steps"]
    assert (document["adapter"], document["recalled"]) == (str(out), True)
    assert document["loss_final"] < 0.6 < 6 < document["loss_init"]

    recalled = run("recall", facts, "--model", model, "--adapter", out, "--decode", "--json").document
    assert {"records", "tokens", "acc_em", "acc_token", "certified", "ordered", "min_margin"} <= recalled.keys()
    assert (recalled["records"], recalled["tokens"]) == (4, 4 * LENGTH)
    assert (recalled["acc_em"], recalled["acc_token"], recalled["certified"]) == (1.0, 1.0, 4)
    assert recalled["ordered"] == 4 * LENGTH
    assert recalled["min_margin"] > 0
    for item in recalled["items"]:
        keys = {"id", "length", "exact", "certified", "margin", "earliest_stubborn", "first_failure"}
        assert keys <= item.keys()
        assert (item["exact"], item["certified"], item["earliest_stubborn"], item["first_failure"]) == (
            True, True, None, None,
        )  # fmt: skip


def test_a_training_that_came_no_closer_is_not_told_to_take_more_steps(
    run: Run, model: Path, facts: Path, tmp_path: Path
) -> None:
    bare = ("--lr", 1e-5, "--protect", 0, "--no-side-effects")
    ran = run("train", facts, "--model", model, "--rank", 1, *bare, "--out", tmp_path / "A", "--json")
    assert ran.document["steps"] == 300
    assert "came no closer for half of its steps or more. Try a higher --rank" in ran.err


def test_incomplete_recall_is_reported_with_what_to_do(run: Run, model: Path, facts: Path, tmp_path: Path) -> None:
    out = tmp_path / "A"
    ran = run("train", facts, "--model", model, "--rank", 1, "--steps", 5, "--out", out, "--json")
    assert ran.document["recalled"] is False
    assert ran.err.startswith("Some facts are not recalled yet. Try more --steps or a higher --rank")
    assert f"`memlaw recall {facts} --model {model} --adapter {out} --decode` shows what is missing." in ran.err
    recalled = run("recall", facts, "--model", model, "--adapter", out, "--decode", "--json").document
    assert recalled["acc_em"] < 1
    assert recalled["certified"] < 4
    shown = run("train", facts, "--model", model, "--rank", 1, "--steps", 5, "--out", out).out
    assert "some target tokens are still stubborn" in shown


def test_the_paper_preset_is_the_published_recipe(run: Run, model: Path, facts: Path, tmp_path: Path) -> None:
    out = tmp_path / "A"
    arguments = ("--placement", "mlp@2", "--rank", 4, "--steps", 8, "--preset", "paper", "--out", out)
    document = run("train", facts, "--model", model, *arguments, "--json").document
    assert (document["steps"], document["placement"], document["parameters"]) == (8, "mlp@2", 2 * 32 * 4)
    assert json.loads((out / "memlaw_adapter.json").read_text())["scale"] == 1.0
    assert not (out / "adapter_config.json").exists()


@pytest.mark.parametrize(("kind", "margin"), [("f16", MARGINS["float32"]), ("q4_0", MARGINS["q4_0"])])
def test_a_quantised_file_asks_for_the_margin_of_its_arithmetic(tmp_path: Path, kind: str, margin: float) -> None:
    path = str(tmp_path / "base.gguf")
    write_base(load(dtype="float32"), Path(path), kind)
    assert TrainingOptions().config("auto", path).margin == margin
    assert TrainingOptions(judged_in="float32").config("auto", path).margin == MARGINS["float32"]
    assert TrainingOptions(margin=0.2).config("auto", path).margin == 0.2


@pytest.mark.parametrize(
    ("options", "margin"),
    [
        ((), MARGINS["float32"]),
        (("--for", "bfloat16"), MARGINS["bfloat16"]),
        (("--for", "float16"), MARGINS["float16"]),
        (("--dtype", "bfloat16"), MARGINS["bfloat16"]),
        (("--dtype", "bfloat16", "--for", "float32"), MARGINS["float32"]),
        (("--for", "bfloat16", "--margin", 0.2), 0.2),
        (("--for", "q4_0"), MARGINS["q4_0"]),
        (("--for", "q8_0,bfloat16,float32"), MARGINS["q8_0"]),
        (("--preset", "paper"), 0.0),
        (("--preset", "paper", "--for", "bfloat16"), MARGINS["bfloat16"]),
    ],
)
def test_the_default_margin_is_the_one_for_the_precision_of_recall(
    run: Run, model: Path, facts: Path, tmp_path: Path, options: tuple[object, ...], margin: float
) -> None:
    out = tmp_path / "A"
    ran = run("train", facts, "--model", model, "--rank", 2, "--steps", 2, *options, "--out", out, "--json")
    assert ran.document["margin"] == margin
    assert json.loads((out / "memlaw_adapter.json").read_text())["train"]["margin"] == margin


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            "--rank 2 --for bloat16",
            "--for 'bloat16' is not a precision in which recall can be judged. Did you mean b",
        ),
        ("--rank 0", "Rank must be at least 1, not 0"),
        ("--rank -3", "Rank must be at least 1, not -3"),
        ("--rank 33", "Rank 33 is above 32, the smaller dimension of model.layers.2.mlp.down_proj (48 -> 32)"),
        ("--rank 2 --placement dwon_proj@2", "no module 'dwon_proj' to adapt. Did you mean down_proj"),
        ("--rank 2 --placement down_proj@9", "Layer 9 does not exist: the model has 4 layers, 0 to 3"),
        ("--rank 2 --placement mlp", "needs a layer from 0 to 3, such as mlp@2"),
        ("--rank 2 --steps 0", "Setting steps is 0: choose a whole number from 1 up"),
        ("--rank 2 --steps -5", "Setting steps is -5"),
        ("--rank 2 --lr -1", "Setting learning_rate is -1.0: choose a number above 0, or 0 to have it chosen"),
        ("--rank 2 --learning-rate -0.1", "Setting learning_rate is -0.1"),
        ("--rank 2 --lr nan", "Setting learning_rate is nan"),
        ("--rank 2 --lr inf", "Setting learning_rate is inf"),
        ("--rank 2 --batch-size -1", "Setting batch_size is -1: choose a whole number of records"),
        ("--rank 2 --margin -0.1", "Setting margin is -0.1: choose nats from 0 to below ln 2"),
        ("--rank 2 --margin 0.7", "Setting margin is 0.7"),
        ("--rank 2 --seed -1", "Setting seed is -1: choose a whole number from 0 to 4294967295"),
        ("--rank 2 --method dft", "Invalid value for '--method': Value error, 'dft' is not one of 'sft', 'ot'"),
        ("--rank 2 --optimizer moun", "'moun' is not one of 'adamw', 'muon'"),
        ("--rank 2 --until never", "'never' is not one of 'budget', 'recalled'"),
        ("--rank 2 --on-conflict merge", "'merge' is not one of 'error', 'first', 'last'"),
        ("--rank 2 --preset quick", "Unknown preset 'quick'; known: default, adamw, paper"),
        ("--rank 2 --dtype int8", "Unknown dtype 'int8'; known: auto, float32"),
        ("--rank 2 --device tpu", "The device 'tpu' cannot be used here"),
        ("--rank two", "Invalid value for '--rank'"),
        ("--rank 2 --lora-alpha 32", "No such option: --lora-alpha"),
        ("", "Missing option '--rank'"),
    ],
)
def test_impossible_settings_are_refused(
    run: Run, model: Path, facts: Path, tmp_path: Path, options: str, sentence: str
) -> None:
    out = tmp_path / "A"
    assert_refused(run("train", facts, "--model", model, "--out", out, *options.split()), sentence)
    assert not out.exists()


def test_the_help_shows_defaults_ranges_and_what_the_paper_preset_changes(run: Run) -> None:
    shown = " ".join(run("train", "--help").out.split())
    assert "[whole number from 1 up; default: 3000; adamw: 2000; paper: 2000]" in shown
    assert "[default: ot; paper: sft]" in shown
    assert "[number above 0, or 0 to have it chosen; default: 0; paper: 0.01]" in shown


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Limit the size of files, so that writing fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_size_limit_is_reported_in_a_sentence(run: Run, model: Path, facts: Path, tmp_path: Path) -> None:
    with files_of_at_most(600):
        ran = run("train", facts, "--model", model, "--rank", 8, "--steps", 2, "--out", tmp_path / "A")
    assert_refused(ran, "The adapter cannot be written to", "File too large", "Free some space")
    assert list(tmp_path.iterdir()) == []


def test_a_diverging_training_saves_nothing(run: Run, model: Path, facts: Path, tmp_path: Path) -> None:
    ran = run("train", facts, "--model", model, "--rank", 2, "--lr", 1e38, "--out", tmp_path / "A", "--json")
    assert_refused(ran, "Training diverged: the loss was no longer a finite number at step", "Nothing was saved")
    assert not (tmp_path / "A").exists()


def test_a_model_with_nan_weights_is_refused(run: Run, facts: Path, tmp_path: Path) -> None:
    broken = tiny.model()
    with torch.no_grad():
        broken.model.layers[3].mlp.down_proj.weight[0, 0] = torch.nan
    broken.save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    base = ("--model", tmp_path / "model")
    assert_refused(run("recall", facts, *base), "position 0: the loss is nan")
    assert_refused(run("plan", facts, *base, "--calibrate"), "the loss is nan")
    assert_refused(run("train", facts, *base, "--rank", 2, "--out", tmp_path / "A"), "its weights hold NaN")
    assert not (tmp_path / "A").exists()


def test_ctrl_c_during_training_leaves_nothing(
    run: Run, model: Path, facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(progress, "_state", interrupt)
    ran = run("train", facts, "--model", model, "--rank", 2, "--steps", 50, "--out", tmp_path / "A")
    assert ran == Ran(130, "", "Interrupted. Nothing was written.\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_published_phone_book_is_recalled_at_rank_64_and_not_at_rank_1(run: Run, tmp_path: Path) -> None:
    """PB1000 on the bundled base as it is: 100 records, 1,100 target tokens with the end of sequence."""
    base = ("--model", "memlaw/base")
    trained = run("train", OFFICIAL, *base, "--rank", 64, "--out", tmp_path / "A", "--json").document
    assert trained["recalled"] is True
    assert trained["steps"] < 600  # 290 to 360; AdamW took 1,970
    recalled = run("recall", OFFICIAL, *base, "--adapter", tmp_path / "A", "--decode", "--json").document
    assert (recalled["acc_em"], recalled["certified"]) == (1.0, 100)

    small = run("train", OFFICIAL, *base, "--rank", 1, "--steps", 300, "--out", tmp_path / "B", "--json")
    assert small.document["recalled"] is False
    recalled = run("recall", OFFICIAL, *base, "--adapter", tmp_path / "B", "--decode", "--json").document
    assert recalled["acc_em"] < 0.1
    assert recalled["certified"] == 0


def test_a_useless_option_is_a_warning_and_training_continues(model: Path, facts: Path, tmp_path: Path) -> None:
    out = tmp_path / "A"
    ran = process("train", facts, "--model", model, "--rank", 1, "--steps", 2, "--evict-prefix", "--out", out)
    assert ran.code == 0
    assert "Warning: The model is already in main memory, so evicting its layers changes nothing." in ran.err
    assert (out / "adapter_model.safetensors").exists()


def test_negative_minutes_between_checkpoints_are_refused(run: Run, model: Path, facts: Path, tmp_path: Path) -> None:
    ran = run(
        "train", facts, "--model", model, "--rank", 1, "--checkpoint-minutes", -1, "--out", tmp_path / "A"
    )  # fmt: skip
    assert ran.code == 2
    assert "checkpoint_minutes is -1.0: choose minutes from 0 up" in ran.err


def test_a_tied_head_and_a_placement_from_layer_0_are_warnings(run: Run, facts: Path, tmp_path: Path) -> None:
    tied = saved_model(tmp_path / "tied", tie_word_embeddings=True)
    ran = run(
        "train", facts, "--model", tied, "--rank", 1, "--steps", 1, "--placement", "all-linear", "--out", tmp_path / "A"
    )  # fmt: skip
    assert ran.code == 0
    assert "tied" in ran.err
    assert "every step runs the whole model" in ran.err


def trained(**settings: Any) -> Trained:
    base, facts = tiny.base(), tiny.facts([(5, 2)])
    [result] = train_stack(base, facts, [TrainingRun(4, placement_on(None, base.model), TrainConfig(**settings))])
    return result


def test_the_summary_says_how_training_ended() -> None:
    result = trained(steps=400, until="recalled", margin=0.1)
    told = words(train_lines(result, Path("A")))
    assert told.startswith("A: rank 4 at down_proj@2, 320 parameters; learning rate 0.02. ")
    assert f"{result.steps} steps in " in told
    assert told.endswith("nats per token; every target token is ordered with a margin of at least 0.1 nats.")
    assert words(train_lines(trained(steps=400), Path("A"))).endswith("; every target token is ordered.")
    assert words(train_lines(trained(steps=1), Path("A"))).endswith("; some target tokens are still stubborn.")


class TestSideEffects:
    """They are measured by default, printed, and kept beside the adapter."""

    def arguments(self, facts: Path, model: Path, out: Path) -> tuple[object, ...]:
        return ("train", facts, "--model", model, "--rank", 16, "--out", out)

    def test_they_are_printed_in_the_document_and_in_the_record(
        self, run: Run, model: Path, facts: Path, tmp_path: Path
    ) -> None:
        document = run(*self.arguments(facts, model, tmp_path / "A"), "--json").document
        effects = document["side_effects"]
        assert effects["loss_difference"] != 0
        assert effects["kl"] > 0
        assert effects["top1_agreement"] < 1
        assert set(effects["texts"]) == {"sampled", "prose"}
        recorded = json.loads((tmp_path / "A" / "memlaw_adapter.json").read_text())
        assert recorded["side_effects"] == effects
        assert recorded["recalled"] == 4
        shown = run(*self.arguments(facts, model, tmp_path / "B")).out
        assert f"Side effects: {effects['loss_difference']:+.3f} nats a token on neutral text" in shown
        recalled = run("recall", facts, "--model", model, "--adapter", tmp_path / "A", "--side-effects", "--json")
        assert recalled.document["side_effects"]["kl"] == pytest.approx(effects["kl"], rel=1e-3)

    def test_they_can_be_left_out(self, run: Run, model: Path, facts: Path, tmp_path: Path) -> None:
        document = run(*self.arguments(facts, model, tmp_path / "A"), "--no-side-effects", "--json").document
        assert document["side_effects"] is None
        assert "side_effects" not in json.loads((tmp_path / "A" / "memlaw_adapter.json").read_text())

    def test_a_neutral_text_that_is_too_short_is_refused_before_the_training(
        self, run: Run, model: Path, facts: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "short.txt").write_text("too short")
        ran = run(*self.arguments(facts, model, tmp_path / "A"), "--neutral", tmp_path / "short.txt")
        assert_refused(ran, "has 9 tokens under this tokenizer", "windows of 127")
        assert not (tmp_path / "A").exists()
        contradiction = run(*self.arguments(facts, model, tmp_path / "A"), "--neutral", "x", "--no-side-effects")
        assert_refused(contradiction, "give one of the two")


def test_an_adapter_for_a_quantised_base_is_judged_there_and_belongs_to_the_base(
    run: Run, model: Path, facts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "A"
    ran = run("train", facts, "--model", model, "--rank", 16, "--for", "q4_0", "--out", out, "--json")
    assert (ran.document["recalled"], ran.document["served_as"], ran.err) == (True, ["q4_0"], "")
    info = json.loads((out / "memlaw_adapter.json").read_text())
    assert info["train"]["served_as"] == ["q4_0"]
    assert info["recalled"] == 4  # counted where it runs
    assert "served as q4_0" in (out / "README.md").read_text()
    there = run("recall", facts, "--model", model, "--adapter", out, "--as", "q4_0", "--decode", "--json")
    assert (there.document["dtype"], there.document["certified"], there.err) == ("q4_0", 4, "")
    assert there.document["min_margin"] >= MARGINS["q4_0"] - 0.01
    loaded = run("recall", facts, "--model", model, "--adapter", out, "--json").document
    assert (loaded["dtype"], loaded["adapter_faults"]) == ("float32", [])
    assert loaded["mean_loss"] != there.document["mean_loss"]
    told = run("train", facts, "--model", model, "--rank", 1, "--steps", 2, "--for", "q8_0,q4_0", "--out", out).err
    assert f"--adapter {out} --as q8_0 --decode` shows what is missing" in told
