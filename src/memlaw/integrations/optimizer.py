"""Muon in `transformers.Trainer` and its children: for the matrices of LoRA, beside AdamW for whatever else trains.

`memft(trainer, optimizer="muon")` uses it; with a loss of your own, `use_optimizer(trainer, "muon")` does the same.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from transformers import Trainer

from memlaw.core.config import Positive
from memlaw.core.errors import ConfigError
from memlaw.core.settings import Choose, settings
from memlaw.integrations.refusals import check_unsharded

_KIND = "optimizer"
"""The key of a parameter group that says which of the two optimizers updates it."""


@settings
class _Chosen:
    """The keywords of `use_optimizer`, checked."""

    optimizer: Annotated[Literal["muon"], Choose("muon, or leave it out for the optimizer of the trainer itself")]
    """What updates A and B of LoRA."""
    adamw_learning_rate: Annotated[Positive | None, Choose("a number above 0")] = None
    """Learning rate of everything else that trains."""


def use_optimizer(trainer: Any, optimizer: str = "muon", *, adamw_learning_rate: float | None = None) -> Any:
    """Let a Trainer update the A and B of LoRA by `torch.optim.Muon`, and return the trainer.

    W -= lr * sqrt(max(1, rows / columns)) * U V' with U S V' the singular value decomposition of the momentum of W, for
    W = A [rank, d_in] or B [d_out, rank]; so lr, `args.learning_rate`, does not depend on the size of the gradient and
    is of another scale than AdamW's. All else that trains (biases, embeddings, the magnitudes of DoRA, modules_to_save)
    is left to AdamW as the trainer would build it, at `adamw_learning_rate`, or `args.learning_rate` without it.
    Schedule, weight decay, gradient clipping and checkpoints work as they do for the trainer's own optimizer.

    Raises ConfigError for an unknown optimizer, a trainer that was given another one, a model without matrices of LoRA,
    and engines that shard matrices (DeepSpeed, FSDP). Warns of a learning rate that was not chosen for Muon.
    """
    chosen = _Chosen(optimizer=optimizer, adamw_learning_rate=adamw_learning_rate)  # type: ignore[arg-type]
    if not isinstance(trainer, Trainer):
        raise ConfigError(f"Muon goes into a transformers Trainer, but this is a {type(trainer).__name__}.")
    check_unsharded(trainer)
    _adamw_of(trainer, trainer.model)
    _warn_of_rates(trainer, chosen.adamw_learning_rate, _groups(trainer, trainer.model))
    kind = type(trainer)
    trainer.__class__ = type(kind.__name__, (_WithMuon, kind), {"memlaw_adamw_rate": chosen.adamw_learning_rate})
    return trainer


def choose_optimizer(trainer: Any, optimizer: str | None, adamw_learning_rate: float | None) -> None:
    """What `memft` does with its keywords: nothing without an optimizer. Raises ConfigError."""
    if optimizer is not None:
        use_optimizer(trainer, optimizer, adamw_learning_rate=adamw_learning_rate)
    elif adamw_learning_rate is not None:
        raise ConfigError(
            "adamw_learning_rate is the rate of what Muon leaves to AdamW: add optimizer='muon', or set learning_rate "
            "in the arguments of the trainer."
        )


class _WithMuon:
    """Builds the optimizer of the trainer, when its model is ready to be trained."""

    optimizer: Optimizer | None
    model: nn.Module
    memlaw_adamw_rate: float | None

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        if self.optimizer is None:
            model = self.model if model is None else model
            make, rate = _adamw_of(self, model), self.memlaw_adamw_rate
            groups = _groups(self, model)
            for group in groups:
                if group[_KIND] == "adamw" and rate is not None:
                    group["lr"] = rate
            self.optimizer = MuonBesideAdamW(groups, self.args.learning_rate, make)  # type: ignore[attr-defined]
        return self.optimizer


class MuonBesideAdamW(Optimizer):
    """`torch.optim.Muon` of some groups of parameters and `torch.optim.AdamW` of the others, as one optimizer.

    Groups, state and state_dict are those of any torch optimizer, with one more entry in each group, "optimizer": muon
    or adamw. So schedulers, gradient scalers and checkpoints need not know that there are two.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, adamw: Callable[..., Optimizer] = AdamW) -> None:
        """`groups` have `params`, `optimizer` and optionally `lr` and other settings; `adamw` makes the AdamW."""
        kinds: Mapping[str, Callable[..., Optimizer]] = {"muon": _muon, "adamw": adamw}
        self._inner = {
            kind: make([group for group in groups if group[_KIND] == kind], lr=lr)
            for kind, make in kinds.items()
            if any(group[_KIND] == kind for group in groups)
        }
        super().__init__([group for inner in self._inner.values() for group in inner.param_groups], {"lr": lr})

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for kind, inner in self._inner.items():
            # Anew each time, since loading a checkpoint replaces the groups and the state.
            inner.param_groups = [group for group in self.param_groups if group[_KIND] == kind]
            inner.state = self.state
            inner.step()
        return loss

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from a checkpoint. Raises ConfigError if another optimizer, or one of other parameters, wrote it."""
        saved = [(group.get(_KIND), len(group["params"])) for group in state_dict["param_groups"]]
        if saved != [(group[_KIND], len(group["params"])) for group in self.param_groups]:
            raise ConfigError(
                "The checkpoint has the state of another optimizer, or of other parameters than train now, so Muon "
                "cannot continue from it: resume with the optimizer and adapter that it was written with, or start "
                "anew."
            )
        super().load_state_dict(dict(state_dict))


def lora_matrices(model: nn.Module) -> list[Tensor]:
    """The A [rank, d_in] and B [d_out, rank] of LoRA in a model that train.

    Not those of convolutions and embeddings, and not those that PEFT stacks for several experts in one matrix: the
    singular values of a stack are not those of its parts.
    """
    found: dict[int, Tensor] = {}  # by identity, since layers may share an adapter
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            for axis, factors in enumerate((layer.lora_A, layer.lora_B)):
                for name, factor in factors.items():
                    weight: Any = getattr(factor, "weight", None)
                    if _is_factor(weight, axis, layer.r[name]):
                        found[id(weight)] = weight
    return list(found.values())


def _is_factor(weight: Any, axis: int, rank: int) -> bool:
    return isinstance(weight, Tensor) and weight.requires_grad and weight.dim() == 2 and weight.shape[axis] == rank


def _muon(groups: list[dict[str, Any]], lr: float) -> Optimizer:
    return torch.optim.Muon(groups, lr=lr, adjust_lr_fn="original")


def _groups(trainer: Any, model: nn.Module) -> list[dict[str, Any]]:
    """Parameter groups, Muon's first, each split into parameters that the trainer decays and others.

    Raises ConfigError if there is nothing for Muon.
    """
    matrices = {id(weight) for weight in lora_matrices(model)}
    if not matrices:
        raise ConfigError(
            "Muon updates the matrices A and B of LoRA, and in this model none trains: give the trainer a PEFT model "
            "with LoRA, or leave optimizer out."
        )
    decayed = set(trainer.get_decay_parameter_names(model))
    groups: dict[tuple[str, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = "muon" if id(parameter) in matrices else "adamw"
            groups.setdefault((kind, name in decayed), []).append(parameter)
    return [
        {"params": groups[kind, decays], _KIND: kind, "weight_decay": trainer.args.weight_decay if decays else 0.0}
        for kind in ("muon", "adamw")
        for decays in (True, False)
        if (kind, decays) in groups
    ]


def _adamw_of(trainer: Any, model: nn.Module) -> Callable[..., Optimizer]:
    """What makes the AdamW that the arguments of the trainer ask for. Raises ConfigError if it has another one."""
    if not hasattr(torch.optim, "Muon"):
        raise ConfigError(f"torch {torch.__version__} has no Muon: install torch 2.9 or later, or leave optimizer out.")
    if trainer.optimizer is not None or trainer.optimizer_cls_and_kwargs is not None:
        raise ConfigError(
            "This trainer was given its optimizer already, and it can have only one: create it without `optimizers` "
            "and `optimizer_cls_and_kwargs`, or leave optimizer out."
        )
    kind, keywords = trainer.get_optimizer_cls_and_kwargs(trainer.args, model)
    if kind is not AdamW:
        raise ConfigError(
            f"optim is {str(getattr(trainer.args.optim, 'value', trainer.args.optim))!r}, but beside Muon memlaw knows "
            "only the AdamW of torch, for what is no matrix of LoRA: leave optim at its default, or set adamw_torch."
        )
    others = {name: value for name, value in keywords.items() if name != "lr"}
    return lambda groups, lr: AdamW(groups, lr=lr, **others)


def _warn_of_rates(trainer: Any, adamw_rate: float | None, groups: Iterable[Mapping[str, Any]]) -> None:
    rate = trainer.args.learning_rate
    if math.isclose(rate, type(trainer.args).__dataclass_fields__["learning_rate"].default):
        warnings.warn(
            f"learning_rate is {rate:g}, the default for AdamW, which is far too small for Muon: start from 1e-2.",
            stacklevel=5,
        )
    others = sum(len(group["params"]) for group in groups if group[_KIND] == "adamw")
    if others and adamw_rate is None:
        warnings.warn(
            f"AdamW will update {others} parameters that are no matrices of LoRA, at Muon's learning_rate of {rate:g}, "
            "which may be too large for it: pass adamw_learning_rate.",
            stacklevel=5,
        )
