"""MemFT in TRL's `SFTTrainer`: the gradient of `memft_loss` on all rows at once, beside TRL's own metrics."""

from __future__ import annotations

import gc
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import peft
import pytest
import transformers
import trl

from helpers import tiny, trainers
from helpers.texts import character_tokenizer
from helpers.trainers import Gradients, assert_same, whole_batch
from helpers.trl_runs import ROWS, SETTINGS, sft
from memlaw.core.errors import ConfigError
from memlaw.core.facts import Fact, MemorySet
from memlaw.integrations.curriculum import use_curriculum
from memlaw.integrations.recall import watch_recall
from memlaw.integrations.transformers import MemFTLoss
from memlaw.integrations.trl import memft
from memlaw.losses import IGNORED, WindowState

LONG = trainers.rows(trainers.LONG)


@pytest.fixture(autouse=True, scope="module")
def _cheap_collections() -> Iterator[None]:
    """A Trainer collects garbage at each start, which is quick with the objects of the libraries frozen."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _no_progress_bars() -> None:
    datasets.disable_progress_bars()


class OlderSFTTrainer(trl.SFTTrainer):  # type: ignore[misc]
    """Like TRL before its fused head: the model's own loss, from logits."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        return transformers.Trainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("accumulation", [1, 2, 4, 8])
def test_the_gradient_of_a_step_does_not_depend_on_its_micro_batches(
    tmp_path: Path, accumulation: int, name: str
) -> None:
    seen = Gradients()
    memft(sft(tmp_path, accumulation, seen=seen), **SETTINGS[name]).train()
    loss, gradient = whole_batch(ROWS, **SETTINGS[name])
    assert_same(seen.steps[0], gradient)
    assert seen.losses == [pytest.approx(loss, rel=1e-5)]


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_trl_without_fused_head_uses_logits(tmp_path: Path, accumulation: int) -> None:
    seen = Gradients()
    memft(sft(tmp_path, accumulation, seen=seen, kind=OlderSFTTrainer), **SETTINGS["ot"]).train()
    assert_same(seen.steps[0], whole_batch(ROWS, **SETTINGS["ot"])[1])


def test_a_loss_function_works_in_it_too_at_the_cost_of_a_second_forward(tmp_path: Path) -> None:
    seen = Gradients()
    settings = trainers.arguments(tmp_path, 4, shuffle_dataset=False, bf16=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL's warning that compute_loss_func is deprecated
        built = trl.SFTTrainer(
            model=trainers.adapted(), args=trl.SFTConfig(**settings), train_dataset=datasets.Dataset.from_list(ROWS),
            processing_class=tiny.tokenizer(), compute_loss_func=MemFTLoss(**SETTINGS["ot"]), callbacks=[seen],
        )  # fmt: skip
    built.train()
    assert_same(seen.steps[0], whole_batch(ROWS, **SETTINGS["ot"])[1])


def test_no_logits_appear_and_the_metrics_of_trl_are_its_own(tmp_path: Path) -> None:
    own, ours = sft(tmp_path, 2), memft(sft(tmp_path, 2), **SETTINGS["ot"])
    calls: list[int] = []
    ours.model.get_output_embeddings().register_forward_hook(lambda *_: calls.append(1))
    own.train()
    ours.train()
    assert calls == []
    for metric in ("entropy", "mean_token_accuracy", "num_tokens"):
        assert ours.state.log_history[0][metric] == pytest.approx(own.state.log_history[0][metric])


@pytest.mark.parametrize("name", ["ot", "position"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_packing_changes_nothing(tmp_path: Path, accumulation: int, name: str) -> None:
    seen = Gradients()
    changes = {"packing": True, "max_length": 24, "per_device_train_batch_size": 4 // accumulation}
    built = memft(sft(tmp_path, accumulation, seen=seen, **changes), **SETTINGS[name])
    assert 1 < len(built.train_dataset) <= 4
    built.train()
    assert_same(seen.steps[0], whole_batch(ROWS, **SETTINGS[name])[1])


@pytest.mark.parametrize("packing", [False, True])
def test_sw_keeps_a_window_for_every_sample(tmp_path: Path, packing: bool) -> None:
    model, state = trainers.adapted(), WindowState()
    ids = list(range(len(LONG)))
    wanted = [whole_batch(LONG, model, method="sw", state=state, sample_ids=ids)[1] for _ in range(4)]
    seen = Gradients()
    changes = {"train_sampling_strategy": "random", "max_steps": 4, "learning_rate": 0.0, "packing": packing}
    built = memft(sft(tmp_path, 4, data=LONG, seen=seen, per_device_train_batch_size=2, **changes), "sw")
    built.train()
    assert len(built.memft_step.windows) == len(LONG)
    for found, gradient in zip(seen.steps, wanted, strict=True):
        assert_same(found, gradient)


def test_only_completions_are_targets(tmp_path: Path) -> None:
    texts = [{"prompt": f"{name} is ", "completion": target} for name, target in (("a", "Xq7!"), ("bc", "k9"))]
    seen = Gradients()
    built = sft(tmp_path, 1, data=texts, seen=seen, per_device_train_batch_size=2)
    tokens, rows = tiny.tokenizer(), []
    for text in texts:
        prompt = tokens(text["prompt"])["input_ids"]
        target = [*tokens(text["completion"])["input_ids"], tokens.eos_token_id]
        rows.append({"input_ids": prompt + target, "labels": [IGNORED] * len(prompt) + target})
    memft(built, "ot", threshold=0.99).train()
    assert_same(seen.steps[0], whole_batch(rows, method="ot", threshold=0.99)[1])


def test_evaluation_is_that_of_trl(tmp_path: Path) -> None:
    evaluated = datasets.Dataset.from_list(ROWS)
    own, ours = sft(tmp_path).evaluate(evaluated), memft(sft(tmp_path), **SETTINGS["ot"]).evaluate(evaluated)
    for metric in ("eval_loss", "eval_entropy", "eval_mean_token_accuracy"):
        assert ours[metric] == pytest.approx(own[metric])


def test_recall_and_curriculum_work_in_an_sft_trainer_too(tmp_path: Path) -> None:
    facts = MemorySet((Fact("a:", "Xq7", "a"), Fact("b:", "k9!Z", "b")), True, "test")
    texts = [{"prompt": fact.prompt, "completion": fact.target} for fact in facts.facts]
    model = trainers.adapted().float()
    built = sft(tmp_path, data=texts, model=model, max_steps=-1, per_device_train_batch_size=2, learning_rate=1e-2,
                logging_steps=1000)  # fmt: skip
    use_curriculum(built, boundaries=(10, 20, 30, 40, 200))
    memft(built, "ot", margin=0.1)
    callback = watch_recall(built, facts, every=5)
    built.train()
    assert callback.report is not None
    assert callback.report.certified == 2
    assert built.state.global_step < built.state.max_steps
    assert built.state.log_history[-2].items() >= {"recall/exact_match": 1.0, "recall/stubborn": 0}.items()
    assert "entropy" in built.state.log_history[-2]


def test_a_target_that_max_length_may_have_cut_is_reported(tmp_path: Path) -> None:
    ended = [{"input_ids": [5] * 9 + [2], "labels": [IGNORED] * 5 + [5] * 4 + [2]}]
    built = sft(tmp_path, data=[*ROWS, *ended], max_length=10)
    with pytest.warns(UserWarning, match="5 of 9 training rows reach max_length=10 without an end of sequence"):
        memft(built)


def test_a_full_row_that_ends_where_generation_stops_was_not_cut(tmp_path: Path) -> None:
    model = trainers.adapted()
    model.generation_config.eos_token_id = [2, 7]
    rows = [{"input_ids": [5] * 9 + [end], "labels": [IGNORED] * 5 + [5] * 4 + [end]} for end in (2, 7, 8)]
    built = sft(tmp_path, data=rows, model=model, max_length=10)
    with pytest.warns(UserWarning, match="1 of 3 training rows reach max_length=10 without an end of sequence"):
        memft(built)


def test_samples_cut_by_packing_are_reported(tmp_path: Path) -> None:
    built = sft(tmp_path, data=LONG, max_length=60, packing=True)
    with pytest.warns(UserWarning, match="training rows reach max_length=60 without an end of sequence"):
        memft(built)


def test_without_cuts_nothing_is_reported(tmp_path: Path) -> None:
    for built in (sft(tmp_path, max_length=15), sft(tmp_path, max_length=None)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            memft(built)


def test_other_losses_and_trainers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="loss_type is 'dft', but a trainer has only one loss"):
        memft(sft(tmp_path, loss_type="dft"))
    with pytest.raises(ConfigError, match="is MemFT already"):
        memft(memft(sft(tmp_path)))
    with pytest.raises(ConfigError, match=r"a Trainer does not have: pass an SFTTrainer, or use memlaw\.integrations"):
        memft(trainers.trainer(tmp_path))
    with pytest.raises(ConfigError, match="Setting method is 'sww': choose sft, ot, sw or curriculum. Did you mean sw"):
        memft(sft(tmp_path), "sww")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL's warning that label smoothing is deprecated
        smoothed = sft(tmp_path, label_smoothing_factor=0.1)
    with pytest.raises(ConfigError, match=r"label_smoothing_factor is 0\.1"):
        memft(smoothed)


def test_a_mixture_of_experts_with_a_load_balancing_loss_is_refused(tmp_path: Path) -> None:
    built = sft(tmp_path)
    built.aux_loss_enabled = True
    with pytest.raises(ConfigError, match=r"set router_aux_loss_coef=0\.0"):
        memft(built)


def test_prompt_learning_is_refused(tmp_path: Path) -> None:
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(tiny.model(), config)
    with pytest.raises(ConfigError, match="MemFT does not support prompt learning and shifted labels"):
        memft(sft(tmp_path, model=model)).train()


def test_a_curriculum_of_packed_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="set packing=False"):
        use_curriculum(sft(tmp_path, packing=True, max_steps=-1), boundaries=(1, 2, 3, 4, 5))


def test_a_transformers_that_divides_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = sft(tmp_path)
    monkeypatch.delattr(transformers.Trainer, "loss_is_scaled_for_ga")
    memft(sft(tmp_path))
    built.model_accepts_loss_kwargs = False
    with pytest.raises(ConfigError, match="install transformers 5.19 or later"):
        memft(built)


def test_the_gradient_is_the_same_where_the_model_takes_no_item_count(tmp_path: Path) -> None:
    seen = Gradients()
    built = sft(tmp_path, 4, seen=seen)
    built.model_accepts_loss_kwargs = False
    memft(built, **SETTINGS["ot"]).train()
    assert_same(seen.steps[0], whole_batch(ROWS, **SETTINGS["ot"])[1])


TURN_END = "<|im_end|>"

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat_tokenizer() -> Any:
    """The tiny tokenizer with a ChatML template, whose turns do not end with the tokenizer's end of sequence."""
    built = character_tokenizer()
    built.add_special_tokens({"additional_special_tokens": ["<|im_start|>", TURN_END]})
    built.add_tokens(["\n"])
    built.chat_template = CHATML
    return built


@pytest.mark.parametrize("stops", ["list", "end of turn"])
def test_a_chat_whose_turns_end_with_another_token_reaches_its_certificate(tmp_path: Path, stops: str) -> None:
    tokenizer = chat_tokenizer()
    end = tokenizer.convert_tokens_to_ids(TURN_END)
    model = trainers.adapted(vocab_size=len(tokenizer)).float()
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, end] if stops == "list" else end
    chats = [
        {"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": told}]}
        for ask, told in (("Code A?", "Xq7"), ("Code B?", "k9!Z"))
    ]
    source = tmp_path / "chats.jsonl"
    source.write_text("".join(json.dumps(chat) + "\n" for chat in chats), encoding="utf-8")
    built = sft(tmp_path / "out", data=chats, model=model, processing_class=tokenizer, max_steps=400,
                assistant_only_loss=True, per_device_train_batch_size=2, learning_rate=1e-2,
                logging_steps=1000)  # fmt: skip
    callback = watch_recall(memft(built, "ot", margin=0.1), str(source), every=20)
    built.train()
    assert callback.report is not None
    assert (callback.report.certified, callback.report.acc_em) == (2, 1.0)
    assert built.state.global_step < 400

    for chat in chats:
        question, told = chat["messages"]
        ids = tokenizer.apply_chat_template([question], add_generation_prompt=True, return_tensors="pt")
        output = built.model.eval().generate(**ids, max_new_tokens=40, do_sample=False, pad_token_id=0)
        answered = output[0, ids["input_ids"].shape[1] :].tolist()
        assert answered[-1] == end
        assert tokenizer.decode(answered, skip_special_tokens=True) == told["content"]
