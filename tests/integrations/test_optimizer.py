"""Muon in the trainers of others: the parameters are those of a plain loop with torch.optim.Muon and AdamW."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import peft
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from helpers import tiny, trainers, trl_runs
from helpers.trainers import assert_same, trainer, whole_batch
from helpers.transformers_runs import FACTS, ROWS, fact_rows
from memlaw.core.errors import ConfigError
from memlaw.integrations import transformers, trl
from memlaw.integrations.optimizer import MuonBesideAdamW, lora_matrices, use_optimizer
from memlaw.integrations.recall import RecallCallback

RATE, ADAMW_RATE, DECAY, CLIP = 2e-2, 1e-3, 0.1, 0.5
RATES = {"learning_rate": RATE, "weight_decay": DECAY, "max_grad_norm": CLIP, "max_steps": 4, "num_train_epochs": 4}
MUON: dict[str, Any] = {"optimizer": "muon", "adamw_learning_rate": ADAMW_RATE}


@pytest.fixture(autouse=True, scope="module")
def _cheap_collections() -> Iterator[None]:
    """A Trainer collects garbage at each start, which is quick with the objects of the libraries frozen."""
    datasets.disable_progress_bars()
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def mixed(**changes: Any) -> Any:
    """A model in which not only matrices of LoRA train: also the magnitudes of DoRA, a head, and norms."""
    settings = {"r": 2, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False, "use_dora": True,
                "modules_to_save": ["lm_head", "norm"]}  # fmt: skip
    base = tiny.model("qwen3", dtype=torch.float64)
    torch.manual_seed(1)
    config = peft.LoraConfig(**{**settings, **changes})
    return peft.get_peft_model(base, config, autocast_adapter_dtype=False).double()


def trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def is_matrix(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def plain_loop(model: nn.Module, steps: int = 4, **settings: Any) -> dict[str, Tensor]:
    """The parameters after steps over all rows with two optimizers of torch, each with its linear schedule."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    matrices = [p for name, p in named.items() if is_matrix(name)]
    norms = [p for name, p in named.items() if "norm." in name]
    others = [p for name, p in named.items() if not is_matrix(name) and "norm." not in name]
    assert len(matrices) == 2 * sum("lora_magnitude" in name for name in named)
    decays = [{"params": others, "weight_decay": DECAY}, {"params": norms, "weight_decay": 0.0}]
    muon = torch.optim.Muon(matrices, lr=RATE, weight_decay=DECAY)
    adamw = torch.optim.AdamW(decays, lr=ADAMW_RATE)
    for step in range(steps):
        whole_batch(ROWS, model, **settings)
        nn.utils.clip_grad_norm_(named.values(), CLIP)
        for optimizer, rate in ((muon, RATE), (adamw, ADAMW_RATE)):
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 - step / steps)
            optimizer.step()
    return trained(model)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_trainer_moves_every_parameter_as_a_plain_loop_does(tmp_path: Path, accumulation: int) -> None:
    built = transformers.memft(trainer(tmp_path, accumulation, model=mixed(), **RATES), "ot", **MUON)
    start = trained(built.model)
    built.train()
    found, wanted = trained(built.model), plain_loop(mixed())
    assert_same(found, wanted)
    assert all((found[name] - start[name]).abs().max() > 1e-4 for name in start)


def test_an_sft_trainer_moves_every_parameter_as_a_plain_loop_does(tmp_path: Path) -> None:
    built = trl.memft(trl_runs.sft(tmp_path, 4, model=mixed(), **RATES), "ot", **MUON)
    built.train()
    # The fused head of TRL computes in single precision, which Muon's bfloat16 makes coarser yet.
    assert_same(trained(built.model), plain_loop(mixed()), tolerance=1e-3)


@pytest.mark.parametrize("make", ["transformers", "trl"])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path, make: str) -> None:
    def run(out: Path, resume: Any = None, **changes: Any) -> Any:
        settings = {**RATES, "save_strategy": "steps", "save_steps": 2, **changes}
        if make == "trl":
            built = trl.memft(trl_runs.sft(out, 2, model=mixed(), **settings), **MUON)
        else:
            built = transformers.memft(trainer(out, 2, model=mixed(), **settings), **MUON)
        built.train(resume_from_checkpoint=resume)
        return built

    whole = run(tmp_path)
    resumed = run(tmp_path / "again", resume=str(tmp_path / "checkpoint-2"))
    assert_same(trained(resumed.model), trained(whole.model), tolerance=1e-9)
    saved = torch.load(tmp_path / "checkpoint-2" / "optimizer.pt", weights_only=True)
    assert [group["optimizer"] for group in saved["param_groups"]] == ["muon", "adamw", "adamw"]
    forgetful = mixed()
    forgetful.load_state_dict(whole_at(tmp_path / "checkpoint-2", forgetful))
    assert max((p - trained(whole.model)[name]).abs().max() for name, p in trained(forgetful).items()) > 1e-3


def whole_at(checkpoint: Path, model: Any) -> dict[str, Tensor]:
    peft.set_peft_model_state_dict(model, peft.load_peft_weights(str(checkpoint)))
    return dict(model.state_dict())


def test_the_schedule_of_the_trainer_acts_on_both_rates(tmp_path: Path) -> None:
    rates: list[list[float]] = []

    class Rates(TrainerCallback):
        def on_pre_optimizer_step(self, *args: Any, optimizer: Any, **kwargs: Any) -> None:
            rates.append([group["lr"] for group in optimizer.param_groups])

    changes = {**RATES, "lr_scheduler_type": "linear", "warmup_steps": 2}
    built = trainer(tmp_path, model=mixed(), callbacks=[Rates()], **changes)
    transformers.memft(built, **MUON).train()
    shares = [0.0, 0.5, 1.0, 0.5]
    assert rates == [pytest.approx([share * RATE, share * ADAMW_RATE, share * ADAMW_RATE]) for share in shares]
    logged = [entry["learning_rate"] for entry in built.state.log_history if "learning_rate" in entry]
    assert logged == pytest.approx([share * RATE for share in shares])


def test_one_rate_serves_all_if_no_other_is_given_and_a_warning_says_so(tmp_path: Path) -> None:
    built = trainer(tmp_path, model=mixed(), **RATES)
    with pytest.warns(UserWarning, match=r"AdamW will update \d+ parameters .* learning_rate of 0\.02, .*adamw_learni"):
        use_optimizer(built, "muon")
    assert {group["lr"] for group in built.create_optimizer().param_groups} == {RATE}


def test_by_default_the_trainer_keeps_its_own_optimizer(tmp_path: Path) -> None:
    assert type(transformers.memft(trainer(tmp_path)).create_optimizer()) is torch.optim.AdamW
    assert type(trl.memft(trl_runs.sft(tmp_path)).create_optimizer()) is torch.optim.AdamW


def test_matrices_of_lora_alone_make_one_group_and_no_warning(tmp_path: Path) -> None:
    built = trainer(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        transformers.memft(built, optimizer="muon")
    (group,) = built.create_optimizer().param_groups
    assert (group["optimizer"], group["lr"], len(group["params"])) == ("muon", 1e-3, len(trained(built.model)))


def test_the_default_rate_of_a_trainer_is_called_too_small(tmp_path: Path) -> None:
    default = TrainingArguments(output_dir=str(tmp_path), use_cpu=True).learning_rate
    plain, sft = trainer(tmp_path, learning_rate=default), trl_runs.sft(tmp_path, learning_rate=2e-5)
    with pytest.warns(UserWarning, match="learning_rate is 5e-05, the default for AdamW, .* start from 1e-2"):
        transformers.memft(plain, optimizer="muon")
    with pytest.warns(UserWarning, match="learning_rate is 2e-05, the default for AdamW"):
        trl.memft(sft, optimizer="muon")


def test_matrices_of_experts_embeddings_and_convolutions_are_left_to_adamw() -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.conv, self.linear = nn.Embedding(7, 6), nn.Conv1d(6, 6, 3), nn.Linear(6, 5, bias=False)
            self.experts = nn.ParameterDict({"up": nn.Parameter(torch.randn(3, 6, 5))})

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.table(x))

    config = peft.LoraConfig(r=2, target_modules=["table", "conv", "linear"], target_parameters=["experts.up"],
                             lora_bias=False)  # fmt: skip
    model = peft.get_peft_model(Small(), config)
    found = {id(matrix) for matrix in lora_matrices(model)}
    named = {name for name, p in model.named_parameters() if id(p) in found}
    assert {name.split("model.")[-1] for name in named} == {
        "linear.lora_A.default.weight",
        "linear.lora_B.default.weight",
    }
    assert sum(p.requires_grad for p in model.parameters()) == 8


def test_an_adapter_that_is_shared_or_frozen_counts_once_or_not_at_all() -> None:
    model = mixed()
    layers = [layer for layer in model.modules() if isinstance(layer, peft.tuners.lora.LoraLayer)]
    before = len(lora_matrices(model))
    layers[0].lora_B["default"].weight.requires_grad_(False)
    assert len(lora_matrices(model)) == before - 1
    layers[2].lora_A["default"].weight = layers[0].lora_A["default"].weight
    assert len(lora_matrices(model)) == before - 2


@pytest.mark.parametrize("size", [1e-3, 1e3])
def test_a_factor_of_rank_one_moves_along_its_gradient_by_0_7_of_the_rate_however_large_that_is(size: float) -> None:
    factor = nn.Parameter(torch.zeros(1, 6, dtype=torch.float64))
    optimizer = MuonBesideAdamW([{"params": [factor], "optimizer": "muon", "weight_decay": 0.0}], lr=0.1)
    factor.grad = size * torch.tensor([[3.0, 0, 0, 4.0, 0, 0]], dtype=torch.float64)
    optimizer.step()
    torch.testing.assert_close(factor.detach() / 0.1, -0.7 * factor.grad / (5 * size), rtol=0.05, atol=0)


def test_a_gradient_scaler_skips_a_step_that_overflows_and_no_other() -> None:
    """Half precision: both optimizers get gradients in their true size, or none moves."""
    torch.manual_seed(0)
    matrix, bias = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(3))
    groups = [{"params": [p], "optimizer": kind} for p, kind in ((matrix, "muon"), (bias, "adamw"))]
    optimizer, scaler = MuonBesideAdamW(groups, lr=0.1), torch.amp.GradScaler("cpu", init_scale=1024.0)
    alone = [nn.Parameter(matrix.detach().clone()), nn.Parameter(bias.detach().clone())]
    two = torch.optim.Muon([alone[0]], lr=0.1), torch.optim.AdamW([alone[1]], lr=0.1)
    for scale in (1.0, float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale(((matrix @ torch.arange(4.0) + bias) ** 2).sum() * scale).backward()
        scaler.step(optimizer)
        scaler.update()
        if scale == 1.0:
            for one in two:
                one.zero_grad()
            ((alone[0] @ torch.arange(4.0) + alone[1]) ** 2).sum().backward()
            for one in two:
                one.step()
    torch.testing.assert_close([matrix, bias], alone, rtol=1e-3, atol=1e-3)


def test_half_precision_of_the_trainer_leaves_parameters_in_theirs(tmp_path: Path) -> None:
    built = trainer(tmp_path, 4, model=trainers.adapted().float(), bf16=True, **RATES)
    transformers.memft(built, optimizer="muon").train()
    exact = transformers.memft(trainer(tmp_path, 4, **RATES), optimizer="muon")
    start = trained(exact.model)
    exact.train()
    for name, p in trained(built.model).items():
        assert p.dtype is torch.float32
        moved, wanted = p - start[name], trained(exact.model)[name] - start[name]
        assert nn.functional.cosine_similarity(moved.flatten(), wanted.flatten(), dim=0) > 0.9


def test_facts_are_learnt_by_muon_with_a_loss_function_of_the_trainer(tmp_path: Path) -> None:
    callback = RecallCallback(FACTS, every=5)
    model = mixed(task_type="CAUSAL_LM", use_dora=False, modules_to_save=None).float()
    built = trainer(tmp_path, model=model, data=fact_rows(), loss=transformers.MemFTLoss("ot", margin=0.1),
                    callbacks=[callback], max_steps=200, learning_rate=2e-2, per_device_train_batch_size=2)  # fmt: skip
    built.processing_class = built.callback_handler.processing_class = tiny.tokenizer()
    use_optimizer(built, "muon").train()
    assert callback.report is not None
    assert callback.report.certified == 2
    assert built.state.global_step < 200


@pytest.mark.parametrize(("keywords", "sentence"), [
    ({"optimizer": "moun"}, "Setting optimizer is 'moun': choose muon, or leave it out .* Did you mean muon"),
    ({"optimizer": "adamw"}, "Setting optimizer is 'adamw': choose muon, or leave it out for the optimizer of the tra"),
    ({"optimizer": "muon", "adamw_learning_rate": -1.0}, "adamw_learning_rate is -1.0: choose a number above 0"),
    ({"adamw_learning_rate": 1e-4}, "adamw_learning_rate .* add optimizer='muon', or set learning_rate"),
])  # fmt: skip
def test_wrong_settings_are_refused_with_the_way_out(tmp_path: Path, keywords: Any, sentence: str) -> None:
    for built, memft in ((trainer(tmp_path), transformers.memft), (trl_runs.sft(tmp_path), trl.memft)):
        with pytest.raises(ConfigError, match=sentence):
            memft(built, **keywords)


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"optim": "adafactor"}, "optim is 'adafactor', but beside Muon .* set adamw_torch"),
    ({"model": tiny.model()}, "matrices A and B of LoRA, and in this model none trains"),
])  # fmt: skip
def test_trainers_without_room_for_muon_are_refused(tmp_path: Path, changes: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        transformers.memft(trainer(tmp_path, **changes), optimizer="muon")


def test_a_trainer_that_has_an_optimizer_already_is_refused(tmp_path: Path) -> None:
    model = trainers.adapted()
    given = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    arguments = TrainingArguments(**trainers.arguments(tmp_path, 1))
    for keywords in ({"optimizers": (given, None)}, {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 1.0})}):
        built = Trainer(model=model, args=arguments, train_dataset=ROWS, **keywords)
        with pytest.raises(ConfigError, match="given its optimizer already"):
            use_optimizer(built, "muon")


def test_anything_else_than_a_trainer_is_refused() -> None:
    with pytest.raises(ConfigError, match="into a transformers Trainer, but this is a Linear"):
        use_optimizer(nn.Linear(1, 1), "muon")


@pytest.mark.parametrize(("engine", "flag"), [("DeepSpeed", "is_deepspeed_enabled"), ("FSDP", "is_fsdp_enabled")])
def test_engines_that_shard_matrices_are_refused(tmp_path: Path, engine: str, flag: str) -> None:
    built = trainer(tmp_path)
    setattr(built, flag, True)
    with pytest.raises(ConfigError, match=f"{engine} splits the matrices .* orthogonalise each part by itself"):
        transformers.memft(built, optimizer="muon")
    assert transformers.memft(built).compute_loss_func is not None


def test_an_older_torch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ConfigError, match=r"has no Muon: install torch 2\.9 or later"):
        transformers.memft(trainer(tmp_path), optimizer="muon")


def test_a_checkpoint_of_another_optimizer_is_refused(tmp_path: Path) -> None:
    save = {"save_strategy": "steps", "save_steps": 1}
    transformers.memft(trainer(tmp_path, max_steps=1, **save)).train()
    built = transformers.memft(trainer(tmp_path, max_steps=2, **save), optimizer="muon")
    with pytest.raises(ConfigError, match="state of another optimizer, .* resume with the optimizer and adapter"):
        built.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_matrices_of_tensor_parallelism_are_refused(tmp_path: Path) -> None:
    built = trainer(tmp_path)
    layer = next(layer for layer in built.model.modules() if isinstance(layer, peft.tuners.lora.LoraLayer))
    factor = layer.lora_A["default"]
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        factor.weight = nn.Parameter(distribute_tensor(factor.weight.detach(), init_device_mesh("cpu", (1,))))
        with pytest.raises(ConfigError, match="Tensor parallelism splits the matrices"):
            use_optimizer(built, "muon")
    finally:
        dist.destroy_process_group()
