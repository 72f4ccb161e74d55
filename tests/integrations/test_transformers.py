"""MemFT in `transformers.Trainer`: the gradient of a step is that of all its tokens as one batch."""

from __future__ import annotations

import copy
import gc
import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import normalizers
from torch import nn
from torch.utils.data import IterableDataset
from transformers import TrainerCallback
from transformers.modeling_outputs import CausalLMOutput

from helpers import slow_side_effects, tiny, trainers
from helpers.paths import TESTS
from helpers.texts import answer, character_tokenizer
from helpers.trainers import Gradients, assert_same, trainer, whole_batch
from helpers.transformers_runs import FACTS, HALF, LONG, LOSSES, ROWS, SETTINGS, TOP, by_muon, learning, run_sw
from memlaw.core.errors import ConfigError
from memlaw.data import encode
from memlaw.diagnosis.neutral import file_text
from memlaw.integrations.curriculum import CurriculumSampler, use_curriculum
from memlaw.integrations.recall import RecallCallback, watch_recall
from memlaw.integrations.transformers import MemFTLoss, memft
from memlaw.losses import IGNORED, WindowState, exposed, memft_loss
from memlaw.model.base import wrap

LAST = [*ROWS[5:], *ROWS[:5]]
"""The rows in another order."""


def step(out: Path, accumulation: int, settings: dict[str, Any], **changes: Any) -> Gradients:
    """Gradients of one optimizer step of a Trainer with `compute_loss_func=MemFTLoss(...)`."""
    seen = Gradients()
    trainer(out, accumulation, loss=MemFTLoss(**settings), callbacks=[seen], **changes).train()
    return seen


@pytest.fixture(autouse=True, scope="module")
def _cheap_collections() -> Iterator[None]:
    """A Trainer collects garbage at each start, which is quick with the objects of the libraries frozen."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def test_the_rows_have_tokens_on_both_sides_of_the_threshold() -> None:
    above = [loss >= -math.log(HALF) for loss in LOSSES]
    assert 0.4 < sum(above) / len(above) < 0.6
    assert sum(loss >= -math.log(TOP) for loss in LOSSES) == 1


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("accumulation", [1, 2, 4, 8])
def test_the_gradient_of_a_step_does_not_depend_on_its_micro_batches(
    tmp_path: Path, accumulation: int, name: str
) -> None:
    for rows in (ROWS, LAST):  # the token that ends a fallback is early in one, late in the other
        loss, gradient = whole_batch(rows, **SETTINGS[name])
        seen = step(tmp_path, accumulation, SETTINGS[name], data=rows)
        assert_same(seen.steps[0], gradient)
        assert seen.losses == [pytest.approx(loss, rel=1e-6)]


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_step_of_recalled_tokens_alone_has_a_loss_and_a_gradient_of_exactly_zero(
    tmp_path: Path, accumulation: int
) -> None:
    settings = {"method": "ot", "threshold": math.exp(-1.01 * max(LOSSES))}
    seen = step(tmp_path, accumulation, settings)
    assert seen.losses == [0.0]
    assert all(not gradient.any() for gradient in seen.steps[0].values())


def test_sft_is_the_loss_of_the_trainer_itself(tmp_path: Path) -> None:
    own, ours = Gradients(), Gradients()
    trainer(tmp_path, 4, callbacks=[own]).train()
    trainer(tmp_path, 4, callbacks=[ours], loss=MemFTLoss("sft")).train()
    assert_same(ours.steps[0], own.steps[0])
    assert ours.losses == [pytest.approx(own.losses[0], rel=1e-6)]


def test_clipping_sees_the_gradient_of_the_whole_step(tmp_path: Path) -> None:
    _, gradient = whole_batch(ROWS, **SETTINGS["ot"])
    norm = torch.cat([g.flatten() for g in gradient.values()]).norm()
    seen = step(tmp_path, 4, SETTINGS["ot"], max_grad_norm=0.25 * norm.item())
    assert_same(seen.steps[0], {name: 0.25 * g for name, g in gradient.items()}, tolerance=1e-5)


def test_the_last_step_of_an_epoch_may_have_fewer_micro_batches(tmp_path: Path) -> None:
    seen = step(
        tmp_path, 3, SETTINGS["ot"], per_device_train_batch_size=1, max_steps=-1, num_train_epochs=2, learning_rate=0.0
    )
    parts = [ROWS[:3], ROWS[3:6], ROWS[6:]] * 2
    assert len(seen.steps) == len(parts)
    for found, rows in zip(seen.steps, parts, strict=True):
        assert_same(found, whole_batch(rows, **SETTINGS["ot"])[1])


def test_rows_without_any_target_change_nothing(tmp_path: Path) -> None:
    silent = {"input_ids": [5, 6, 7], "labels": [IGNORED] * 3}
    rows = [silent, *ROWS[:3], silent, *ROWS[3:5], silent]
    seen = step(tmp_path, 8, SETTINGS["ot"], data=rows)
    assert_same(seen.steps[0], whole_batch(ROWS[:5], **SETTINGS["ot"])[1])


def test_a_run_interrupted_in_the_middle_of_a_step_leaves_nothing_behind(tmp_path: Path) -> None:
    class Interrupt(TrainerCallback):
        def on_substep_end(self, *args: Any, **kwargs: Any) -> None:
            raise KeyboardInterrupt

    seen = Gradients()
    interrupted = trainer(tmp_path, 4, loss=MemFTLoss(**SETTINGS["ot"]), callbacks=[Interrupt, seen])
    with pytest.raises(KeyboardInterrupt):
        interrupted.train()
    interrupted.remove_callback(Interrupt)
    interrupted.train()
    assert_same(seen.steps[0], whole_batch(ROWS, **SETTINGS["ot"])[1])


def test_evaluation_between_steps_reports_the_ordinary_loss_and_disturbs_nothing(tmp_path: Path) -> None:
    plain = trainer(tmp_path, per_device_eval_batch_size=3)
    seen = Gradients()
    ours = trainer(tmp_path, 4, loss=MemFTLoss(**SETTINGS["ot"]), callbacks=[seen], max_steps=2, eval_strategy="steps",
                   eval_steps=1, per_device_eval_batch_size=3, learning_rate=0.0)  # fmt: skip
    ours.train()
    assert ours.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], rel=1e-6)
    for gradient in seen.steps:
        assert_same(gradient, whole_batch(ROWS, **SETTINGS["ot"])[1])


def test_checkpointed_activations_give_the_same_gradient_and_reentrant_ones_are_refused(tmp_path: Path) -> None:
    def with_checkpointing(reentrant: bool) -> Gradients:
        return step(tmp_path, 4, SETTINGS["ot"], gradient_checkpointing=True,
                    gradient_checkpointing_kwargs={"use_reentrant": reentrant})  # fmt: skip

    assert_same(with_checkpointing(False).steps[0], whole_batch(ROWS, **SETTINGS["ot"])[1])
    with pytest.raises(ConfigError, match=r"hides the weights from MemFT.*'use_reentrant': False"):
        with_checkpointing(True)


def test_a_step_in_bfloat16_is_close(tmp_path: Path) -> None:
    seen = step(tmp_path, 4, SETTINGS["ot"], model=trainers.adapted().float(), bf16=True)
    _, gradient = whole_batch(ROWS, **SETTINGS["ot"])
    scale = max(g.abs().max().item() for g in gradient.values())
    error = max((seen.steps[0][name] - g).abs().max().item() for name, g in gradient.items())
    assert 0 < error < 0.3 * scale


@pytest.mark.slow
def test_two_processes_take_the_same_step_as_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    workers = [
        subprocess.Popen(
            [sys.executable, str(TESTS / "helpers" / "two_processes.py"), str(tmp_path)],
            env={**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    for worker in workers:
        printed, _ = worker.communicate(timeout=300)
        assert worker.returncode == 0, printed
    both = [torch.load(tmp_path / f"gradients-{rank}.pt") for rank in range(2)]
    assert both[0]["recall"] == both[1]["recall"]
    for found in both:
        for name in ("ot", "fallback, one token", "fallback, none"):
            loss, gradient = whole_batch(ROWS, **SETTINGS[name])
            for accumulation in (1, 2, 4):
                gradients, losses = found[name, accumulation]
                assert_same(gradients[0], gradient)
                assert losses == [pytest.approx(loss, rel=1e-6)]
        for gradient, wanted in zip(found["sw", 2][0], sw_steps(5), strict=True):
            assert_same(gradient, wanted)
        loss, gradient = whole_batch(ROWS, **SETTINGS["ot"])
        assert_same(found["trl"][0][0], gradient)
        assert found["trl"][1] == [pytest.approx(loss, rel=1e-5)]
        assert found["unaveraged"].count("average_tokens_across_devices=False") == 2
        assert_same(found["muon"], muon_alone(tmp_path))
        certified, steps = found["recall"]
        assert certified == 2
        assert steps < 200


def muon_alone(out: Path) -> dict[str, torch.Tensor]:
    built = memft(by_muon(out), optimizer="muon")
    built.train()
    return {name: p.detach() for name, p in built.model.named_parameters() if p.requires_grad}


def sw_steps(count: int) -> list[dict[str, torch.Tensor]]:
    """The gradients of `count` sw steps over LONG as one batch, without changing weights."""
    model, state = trainers.adapted(), WindowState()
    ids = list(range(len(LONG)))
    return [whole_batch(LONG, model, method="sw", state=state, sample_ids=ids)[1] for _ in range(count)]


def test_the_window_widens_within_five_steps() -> None:
    first, *_, last = sw_steps(5)
    assert any((first[name] - last[name]).abs().max() > 1e-3 * last[name].abs().max() for name in last)


@pytest.mark.parametrize(("accumulation", "order"), [(1, "sequential"), (2, "random"), (8, "random")])
def test_sw_remembers_each_sample_wherever_shuffling_puts_it(tmp_path: Path, accumulation: int, order: str) -> None:
    seen = run_sw(tmp_path, accumulation, train_sampling_strategy=order)
    for found, wanted in zip(seen.steps, sw_steps(5), strict=True):
        assert_same(found, wanted)


def test_sw_resumes_from_a_checkpoint_with_its_windows(tmp_path: Path) -> None:
    run_sw(tmp_path, 2, steps=3, save_strategy="steps", save_steps=3)
    saved = json.loads((tmp_path / "checkpoint-3" / "trainer_state.json").read_text())
    assert saved["stateful_callbacks"]["MemFTWindows"]["attributes"]["saved"]["unmoved"]
    for restore in (False, True):
        resumed = run_sw(tmp_path, 2, steps=5, resume=str(tmp_path / "checkpoint-3"),
                         restore_callback_states_from_checkpoint=restore)  # fmt: skip
        for found, wanted in zip(resumed.steps, sw_steps(5)[3:], strict=True):
            assert_same(found, wanted)


@pytest.mark.parametrize("settings", [
    {"method": "ot", "threshold": HALF},
    {"method": "sw"},
    {"method": "ot", "threshold": HALF, "position": 2.0},
    {"method": "ot", "threshold": HALF, "focus": 1.0},
], ids=["ot", "sw", "position", "focus"])  # fmt: skip
@pytest.mark.parametrize("accumulation", [1, 2])
def test_packed_or_not_the_gradient_is_the_same(tmp_path: Path, accumulation: int, settings: dict[str, Any]) -> None:
    _, wanted = whole_batch(ROWS, **settings)
    for collator in (trainers.padded, trainers.flattened):
        seen = Gradients()
        memft(trainer(tmp_path, accumulation, collator=collator, callbacks=[seen]), **settings).train()
        assert_same(seen.steps[0], wanted)


def test_padding_on_the_left_does_not_change_the_id_of_a_sample(tmp_path: Path) -> None:
    def left(batch: list[trainers.Row]) -> dict[str, torch.Tensor]:
        turned = trainers.padded([{name: values[::-1] for name, values in row.items()} for row in batch])
        return {name: values.flip(1) for name, values in turned.items()}

    built = memft(trainer(tmp_path, 4, data=LONG, collator=left, max_steps=3, num_train_epochs=3,
                          train_sampling_strategy="random"), "sw")  # fmt: skip
    built.train()
    assert len(built.compute_loss_func.step.windows) == len(LONG)


@pytest.mark.parametrize(("settings", "sentence"), [
    ({"method": "otx"}, "Setting method is 'otx': choose sft, ot, sw or curriculum. Did you mean ot?"),
    ({"method": "ot", "treshold": 0.5}, "Unknown setting treshold: it would change nothing. Did you mean threshold?"),
    ({"method": "ot", "threshold": 1.0}, "threshold is 1.0: choose a probability between 0 and 1"),
    ({"method": "curriculum"}, "use method ot, and use_curriculum"),
])  # fmt: skip
def test_an_unknown_setting_is_refused_with_the_way_out(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        MemFTLoss(**settings)
    assert sentence in str(refused.value)


@pytest.mark.parametrize("settings", [{"method": "sw"}, {"position": 2.0}, {"focus": 1.0}])
def test_a_loss_function_alone_refuses_what_needs_the_samples(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"does not get the samples of a batch: call memft\(trainer"):
        trainer(tmp_path, loss=MemFTLoss(**settings)).train()


def test_two_losses_in_one_trainer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has a loss function already \(MemFTLoss\)"):
        memft(trainer(tmp_path, loss=MemFTLoss("ot")))
    with pytest.raises(ConfigError, match="call memft once"):
        memft(memft(trainer(tmp_path)))


def test_label_smoothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"label_smoothing_factor is 0\.1: .* Set it to 0"):
        memft(trainer(tmp_path, label_smoothing_factor=0.1))


def test_a_trainer_that_computes_its_own_loss_is_refused(tmp_path: Path) -> None:
    built = trainer(tmp_path)

    class Own(type(built)):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            return model(**inputs).loss

    built.__class__ = Own
    with pytest.raises(ConfigError, match=r"never called compute_loss_func.*super\(\).compute_loss"):
        memft(built).train()


def test_anything_else_than_a_trainer_is_refused() -> None:
    with pytest.raises(ConfigError, match="loss of a transformers Trainer, but this is a Linear"):
        memft(nn.Linear(1, 1))


@pytest.mark.parametrize("axis", ["cp", "sp", "tp"])
def test_a_sequence_split_over_processes_is_refused(tmp_path: Path, axis: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import ParallelismConfig

    built = trainer(tmp_path)
    config = ParallelismConfig()
    setattr(config, f"{axis}_size", 2)
    monkeypatch.setattr(type(built.accelerator), "parallelism_config", property(lambda self: config))
    with pytest.raises(ConfigError, match=rf"parallelism \({axis}_size=2\) a custom loss sees a part"):
        memft(built)


def test_batches_without_labels_are_refused(tmp_path: Path) -> None:
    def unlabelled(batch: list[trainers.Row]) -> dict[str, torch.Tensor]:
        inputs = trainers.padded(batch)
        del inputs["labels"]
        return inputs

    with pytest.raises(ConfigError, match="The batch has no labels"):
        trainer(tmp_path, collator=unlabelled, loss=MemFTLoss("ot")).train()


@pytest.mark.parametrize("hidden", [None, (), object(), torch.empty(0)])
def test_a_forward_that_hides_its_logits_is_refused(hidden: Any) -> None:
    outputs = CausalLMOutput(logits=hidden)
    with pytest.raises(ConfigError, match="UNSLOTH_RETURN_LOGITS=1"):
        MemFTLoss("ot")(outputs, torch.tensor([[1, 2, 3]]))


def test_engines_that_hide_gradients_are_refused_only_where_they_have_to_be_rescaled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.utils import DistributedType

    from memlaw.integrations import step as module

    monkeypatch.setattr(module, "OUT_OF_REACH", {DistributedType.NO})
    assert_same(step(tmp_path, 1, SETTINGS["ot"]).steps[0], whole_batch(ROWS, **SETTINGS["ot"])[1])
    with pytest.raises(ConfigError, match="gradient_accumulation_steps=1 and raise per_device_train_batch_size"):
        step(tmp_path, 2, SETTINGS["ot"])


class Tracker(TrainerCallback):
    """Like a callback of `report_to`: keeps the logs as they are at the time."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, *, logs: dict[str, float], **kwargs: Any) -> None:
        self.seen.append(dict(logs))


def test_recall_is_logged_and_the_run_ends_at_the_certificate(tmp_path: Path) -> None:
    callback, tracker = RecallCallback(FACTS, every=5), Tracker()
    built = learning(tmp_path, [callback, tracker])
    built.train()
    history = [entry for entry in built.state.log_history if "recall/ordered" in entry]
    assert [entry["step"] for entry in history] == list(range(5, built.state.global_step + 1, 5))
    assert built.state.global_step < 200
    first, last = history[0], history[-1]
    assert first["recall/ordered"] < 1
    assert {"loss", "recall/earliest_stubborn"} <= first.keys()
    assert last["recall/ordered"] == last["recall/exact_match"] == 1.0
    assert last["recall/stubborn"] == 0
    assert last["recall/min_margin"] > 0
    assert "recall/earliest_stubborn" not in last
    assert callback.report is not None
    assert callback.report.certified == callback.report.records == 2
    assert [seen for seen in tracker.seen if "recall/ordered" in seen][-1].items() >= {"recall/stubborn": 0}.items()
    assert built.model.training or not built.is_in_train


def test_another_text_than_the_target_is_no_certificate(tmp_path: Path) -> None:
    lower = character_tokenizer(normalizer=normalizers.Lowercase())
    callback = RecallCallback(FACTS, every=60)
    built = learning(tmp_path, [callback], lower, max_steps=60)
    with pytest.warns(UserWarning, match=r"2 of 2 facts \('a', 'b'\) cannot come back verbatim.*will not stop early"):
        built.train()
    assert callback.report is not None
    assert (callback.report.acc_token, callback.report.acc_em, callback.report.certified) == (1.0, 0.0, 0)
    assert built.state.log_history[-2]["recall/exact_match"] == 0.0
    base = wrap(built.model.eval(), lower)
    for fact, encoded in zip(FACTS.facts, encode(FACTS, lower, context=None), strict=True):
        assert answer(base, encoded) == fact.target.lower() != fact.target


def test_a_run_may_continue_after_the_certificate(tmp_path: Path) -> None:
    built = learning(tmp_path, [RecallCallback(FACTS, every=40, stop_when_recalled=False)], max_steps=120)
    built.train()
    assert built.state.global_step == 120
    assert [entry["step"] for entry in built.state.log_history if "recall/ordered" in entry] == [40, 80, 120]


def test_watch_recall_comes_before_the_trackers_and_a_late_callback_warns(tmp_path: Path) -> None:
    tracker = Tracker()
    built = learning(tmp_path, [tracker], max_steps=2)
    built.args.report_to = ["mlflow"]
    watch_recall(built, FACTS, every=1)
    built.train()
    assert sum("recall/exact_match" in seen for seen in tracker.seen) == 2

    late = learning(tmp_path, [tracker, RecallCallback(FACTS, every=1)], max_steps=2)
    late.args.report_to = ["mlflow"]
    with pytest.warns(UserWarning, match=r"mlflow will not get the recall/ values.*watch_recall\(trainer"):
        late.train()


@pytest.mark.parametrize("whole", [False, True])
def test_side_effects_are_logged_against_the_model_as_it_was(tmp_path: Path, whole: bool) -> None:
    neutral = tmp_path / "neutral.txt"
    neutral.write_text("A text about nothing in particular. " * 30)
    callback = RecallCallback(FACTS, every=2, side_effects=neutral)
    built = learning(tmp_path, [callback], max_steps=4)
    if whole:
        built.model = built.model_wrapped = built.callback_handler.model = tiny.model()
    start = copy.deepcopy(built.model).eval()
    built.train()
    logged = [entry for entry in built.state.log_history if "side_effects/kl" in entry]
    assert [entry["step"] for entry in logged] == [2, 4]
    assert {"side_effects/loss_difference", "side_effects/top1_agreement"} <= logged[0].keys()
    rows = file_text(wrap(start, tiny.tokenizer()), neutral).rows
    with nullcontext() if whole else start.disable_adapter():
        old = slow_side_effects.all_logits(start, rows)
    new = slow_side_effects.all_logits(built.model.eval(), rows)
    assert logged[-1]["side_effects/kl"] == pytest.approx(slow_side_effects.compared(old, new, rows)[2], rel=1e-3)
    assert callback.side_effects is not None
    assert callback.side_effects.kl == logged[-1]["side_effects/kl"] > 0


def test_measuring_changes_neither_model_nor_training(tmp_path: Path) -> None:
    seen = [Gradients(), Gradients()]
    learning(tmp_path, [seen[0]], max_steps=6).train()
    learning(tmp_path, [seen[1], RecallCallback(FACTS, every=1, stop_when_recalled=False)], max_steps=6).train()
    for plain, watched in zip(seen[0].steps, seen[1].steps, strict=True):
        assert_same(watched, plain, tolerance=0.0)


def test_a_certificate_under_autocast_needs_the_margin_of_its_precision(tmp_path: Path) -> None:
    from memlaw.core.precision import TOLERANCE
    from memlaw.integrations.recall import _certified

    callback = RecallCallback(FACTS, every=5)
    built = learning(tmp_path, [callback])
    built.train()
    report = callback.report
    assert report is not None
    near = replace(report, min_margin=TOLERANCE["bfloat16"] / 2)
    assert _certified(near, built.args)
    built.args.bf16 = True
    assert not _certified(near, built.args)


def test_recall_without_a_tokenizer_and_odd_intervals_are_refused(tmp_path: Path) -> None:
    built = learning(tmp_path, [RecallCallback(FACTS, every=1)])
    built.callback_handler.processing_class = None
    with pytest.raises(ConfigError, match="pass processing_class=tokenizer"):
        built.train()
    for every in (0, -1, 1.5, True):
        with pytest.raises(ConfigError, match="whole number of steps from 1 up"):
            RecallCallback(FACTS, every=every)  # type: ignore[arg-type]


@pytest.mark.parametrize("boundaries", [(20, 40, 60, 80, 300), (1, 2, 3, 4, 5), (3, 30, 31, 90, 91)])
def test_each_epoch_sees_the_published_share_of_one_fixed_order(boundaries: tuple[int, ...]) -> None:
    sampler = CurriculumSampler(range(97), boundaries, seed=3)
    indices = iter(list(sampler))
    for epoch in range(boundaries[-1]):
        count = exposed(97, epoch, boundaries)
        assert [next(indices) for _ in range(count)] == sampler.order[:count]
    assert next(indices, None) is None
    assert sorted(sampler.order) == list(range(97))


def test_a_trainer_takes_the_steps_of_the_curriculum(tmp_path: Path) -> None:
    batches: list[int] = []

    def collator(batch: list[trainers.Row]) -> dict[str, torch.Tensor]:
        batches.extend(ROWS.index(row) for row in batch)
        return trainers.padded(batch)

    built = trainer(tmp_path, collator=collator, loss=MemFTLoss("ot"), max_steps=-1, per_device_train_batch_size=2)
    assert use_curriculum(built, boundaries=(2, 3, 5, 6, 8), seed=4) is built
    built.train()
    assert batches == list(CurriculumSampler(ROWS, (2, 3, 5, 6, 8), seed=4))
    assert built.state.global_step == built.state.max_steps == math.ceil(len(batches) / 2)
    assert built.state.log_history[-2]["learning_rate"] > 0  # the schedule ends with the run, not before it


def test_a_curriculum_of_a_datasets_table_keeps_its_columns(tmp_path: Path) -> None:
    import datasets

    built = trainer(tmp_path, data=datasets.Dataset.from_list(ROWS), max_steps=-1, loss=MemFTLoss("ot"))
    use_curriculum(built, boundaries=(1, 2, 3, 4, 5))
    built.train()
    assert built.train_dataset.column_names == ["input_ids", "labels"]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(ROWS)


def test_an_impossible_curriculum_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a Stream gives them only once"):
        use_curriculum(trainer(tmp_path, data=Stream(), max_steps=9), boundaries=(1, 2, 3, 4, 5))
    with pytest.raises(ConfigError, match=r"max_steps is 1, but the last boundary \(5 epochs\)"):
        use_curriculum(trainer(tmp_path), boundaries=(1, 2, 3, 4, 5))
    with pytest.raises(ConfigError, match="4 boundaries for 5 exposed shares"):
        use_curriculum(trainer(tmp_path, max_steps=-1), boundaries=(1, 2, 3, 4))
    with pytest.raises(ConfigError, match="must increase"):
        use_curriculum(trainer(tmp_path, max_steps=-1), boundaries=(1, 3, 2, 4, 5))


def test_a_step_outside_any_trainer_is_memft_loss() -> None:
    """Outside any trainer, one call is one step."""
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 6, 11, requires_grad=True), torch.randint(0, 11, (2, 6))
    loss = MemFTLoss("ot", threshold=0.1)(CausalLMOutput(logits=logits), labels)
    assert loss.item() == pytest.approx(memft_loss(logits, labels, threshold=0.1).item())
