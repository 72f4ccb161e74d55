"""Adapters that the base's own forward pass does not show, since they act in PEFT's wrapper around it.

memlaw measures with the base's own forward pass, so there they would count as the bare base.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from memlaw.adapter.faults import cannot_be_judged
from memlaw.core.errors import one_line
from memlaw.model.base import Base, wrap
from memlaw.model.parts import frozen

_TRAIN_LORA = "Train a LoRA instead, or measure it by PEFT's own generate."


def base_of(model: Any, tokenizer: Any) -> Base:
    """A model and tokenizer in memory as a base. Raises ModelError; AdapterFaultError as `refuse_peft_model` does."""
    base = wrap(model, tokenizer)
    refuse_peft_model(base)
    return base


def refuse_peft_model(base: Base) -> None:
    """Raise AdapterFaultError for a base that is a PeftModel whose verdicts would be false; does nothing for others."""
    config = getattr(base.model, "active_peft_config", None)
    if config is None:
        return
    subject = "The PEFT model"
    refuse_wrapper(subject, config)
    refuse_effects_outside(base, subject, base.model)


def refuse_wrapper(subject: str, config: Any) -> None:
    """Raise AdapterFaultError for the configuration of an adapter that is known to act in PEFT's wrapper."""
    if config.is_prompt_learning:
        raise cannot_be_judged(
            subject,
            f"of the type {config.peft_type.value}",
            "adds virtual tokens in PEFT's wrapper, outside of the base whose logits memlaw reads: the verdicts would "
            "be about other positions, or about the bare base",
            _TRAIN_LORA,
        )
    if getattr(config, "alora_invocation_tokens", None):
        raise cannot_be_judged(
            subject,
            "an activated LoRA (aLoRA)",
            "PEFT's wrapper switches on only after its invocation tokens, and memlaw measures without the wrapper",
            "Train a LoRA without alora_invocation_tokens, or measure it by PEFT's own generate.",
        )

    if config.peft_type.value == "LILY":
        raise cannot_be_judged(
            subject,
            "of the type LILY",
            "mixes its experts by the mean over all tokens of a batch, so that a token's probability depends on later "
            "tokens and on other rows, and says nothing about decoding",
            _TRAIN_LORA,
        )


def refuse_chance(subject: str, config: Any) -> None:
    """Raise AdapterFaultError for an adapter that PEFT completes with random numbers each time it loads it."""
    if str(getattr(config, "init_lora_weights", "")).startswith("pissa_niter_"):
        raise cannot_be_judged(
            subject,
            "a PiSSA by randomised SVD",
            "PEFT draws anew each time it loads it, so the model differs from one load to the next and from the one "
            "that was trained",
            "Convert it to a LoRA where it was trained: save_pretrained(..., "
            "path_initial_model_for_weight_conversion=...).",
        )


def refuse_effects_outside(base: Base, subject: str, tuned: Any) -> None:
    """Raise AdapterFaultError unless the base with the adapter's modules does what PEFT's own forward pass does.

    The same ids are run by PEFT alone, and by the base followed by other tokens and beside another row: so this also
    finds adapters that look at what comes later or at the rest of the batch, whose teacher-forced probabilities say
    nothing about decoding.
    """
    vocabulary = base.model.config.get_text_config().vocab_size
    ids = (7 + 37 * torch.arange(32, device=base.device).view(2, 16)) % vocabulary
    kind = f"of the type {tuned.active_peft_config.peft_type.value}"
    with frozen(base.model), torch.no_grad():
        try:
            theirs: Tensor = tuned(input_ids=ids[:1, :8]).logits.double()
        except Exception as error:  # the code of any PEFT type
            why = f"PEFT cannot run on token ids alone ({one_line(error)})"
            raise cannot_be_judged(subject, kind, why, _TRAIN_LORA) from error
        ours = base.model(input_ids=ids, use_cache=False).logits[:1, :8].double()
    if theirs.shape != ours.shape or _differ(theirs, ours, base):
        raise cannot_be_judged(
            subject,
            kind,
            "gives other logits in PEFT's wrapper, alone, than in the base, in a batch and followed by other tokens: "
            "it acts in the wrapper, or depends on later tokens or other rows",
            _TRAIN_LORA,
        )


def _differ(theirs: Tensor, ours: Tensor, base: Base) -> bool:
    """Whether two logits differ by more than rounding: batches of other shapes are summed in another order.

    In float32 too a GPU may multiply in TF32, and a model that accelerate prepared in bfloat16. In bfloat16 the logits
    of SmolLM2 with an adapter differ by 2%, taken together, and one of them may by 5% of the largest.
    """
    precise = base.dtype in ("float32", "float64") and theirs.device.type == "cpu"
    if precise and not hasattr(base.model, "_original_forward"):
        return bool((theirs - ours).abs().max() > 1e-3 * theirs.abs().max())
    return bool((theirs - ours).norm() > 0.1 * theirs.norm())
