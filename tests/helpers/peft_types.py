"""One small adapter of every type and initialisation that the installed PEFT has, as PEFT saves it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch

from helpers import tiny

Q = {"target_modules": ["q_proj"]}
R4 = {"r": 4, **Q}


def lora(**settings: Any) -> peft.PeftConfig:
    return peft.LoraConfig(**{**R4, "lora_alpha": 8, "task_type": "CAUSAL_LM", **settings})


def other(kind: str, **settings: Any) -> peft.PeftConfig:
    return getattr(peft, f"{kind}Config")(**{"task_type": "CAUSAL_LM", **settings})


JUDGED: Mapping[str, Any] = {
    "lora": lambda: lora(),
    "lora-all-linear": lambda: lora(target_modules="all-linear"),
    "lora-gaussian": lambda: lora(init_lora_weights="gaussian"),
    "lora-orthogonal": lambda: lora(init_lora_weights="orthogonal"),
    "lora-pissa": lambda: lora(init_lora_weights="pissa"),
    "lora-olora": lambda: lora(init_lora_weights="olora"),
    "lora-eva": lambda: lora(init_lora_weights="eva", eva_config=peft.EvaConfig()),
    "lora-mica": lambda: lora(init_lora_weights="mica"),
    "lora-no-init": lambda: lora(init_lora_weights=False),
    "lora-rslora": lambda: lora(use_rslora=True),
    "lora-dora": lambda: lora(use_dora=True),
    "lora-bias": lambda: lora(lora_bias=True),
    "lora-bias-all": lambda: lora(bias="all"),
    "lora-bias-only": lambda: lora(bias="lora_only"),
    "lora-replication": lambda: lora(layer_replication=[(0, 3), (1, 4)]),
    "lora-tokens": lambda: lora(trainable_token_indices=[5, 6]),
    "lora-head": lambda: lora(modules_to_save=["lm_head"]),
    "lora-embeddings": lambda: lora(modules_to_save=["embed_tokens", "lm_head"]),
    "lora-on-embedding": lambda: lora(target_modules=["embed_tokens", "lm_head"]),
    "lora-parameter": lambda: lora(target_modules=[], target_parameters=["mlp.down_proj.weight"]),
    "lora-patterns": lambda: lora(
        target_modules=["q_proj", "v_proj"], rank_pattern={"v_proj": 2}, alpha_pattern={"v_proj": 3}
    ),
    "lora-tied": lambda: lora(target_modules=["embed_tokens"], ensure_weight_tying=True),
    "lora-ga": lambda: lora(init_lora_weights="lora_ga", lora_ga_config=peft.LoraGAConfig()),
    "lora-velora": lambda: lora(velora_config=peft.VeloraConfig(num_groups=4)),
    "lora-monteclora": lambda: lora(monteclora_config=peft.MontecloraConfig()),
    "lora-kasa": lambda: lora(kasa_config=peft.KasaConfig()),
    "lora-bdlora": lambda: lora(use_bdlora=peft.BdLoraConfig(target_modules_bd_a=["q_proj"], nblocks=2)),
    "lora-qalora": lambda: lora(use_qalora=True, qalora_group_size=8),
    "adalora": lambda: other("AdaLora", **Q, init_r=6, target_r=3, total_step=10),
    "adaption-prompt": lambda: other("AdaptionPrompt", adapter_len=4, adapter_layers=2),
    "beft": lambda: other("Beft", **Q),
    "boft": lambda: other("BOFT", **Q, boft_block_size=4),
    "c3a": lambda: other("C3A", **Q, block_size=8),
    "deft": lambda: other("Deft", **Q),
    "delora": lambda: other("Delora", **Q),
    "fourierft": lambda: other("FourierFT", **Q, n_frequency=20),
    "frod": lambda: other("Frod", **Q),
    "glora": lambda: other("Glora", **Q),
    "gralora": lambda: other("Gralora", **Q),
    "hira": lambda: other("Hira", **Q),
    "hra": lambda: other("HRA", **Q),
    "ia3": lambda: other("IA3", target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "ln-tuning": lambda: other("LNTuning", target_modules=["input_layernorm"]),
    "loha": lambda: other("LoHa", **R4),
    "lokr": lambda: other("LoKr", **R4),
    "lokr-both": lambda: other("LoKr", **R4, decompose_both=True),
    "miss": lambda: other("Miss", **R4),
    "miss-bat": lambda: other("Miss", **R4, init_weights="bat"),
    "oft": lambda: other("OFT", **Q),
    "osf": lambda: other("OSF", **Q),
    "peanut": lambda: other("Peanut", **Q),
    "psoft": lambda: other("Psoft", **Q),
    "pvera": lambda: other("Pvera", **Q),
    "randlora": lambda: other("RandLora", **Q),
    "road": lambda: other("Road", **Q, group_size=8),
    "road-2": lambda: other("Road", **Q, group_size=8, variant="road_2"),
    "shadow": lambda: other("Shadow"),
    "shira": lambda: other("Shira", **R4),
    "supertuning": lambda: other("Supertuning", **Q),
    "tinylora": lambda: other("TinyLora", **Q),
    "trainable-tokens": lambda: other("TrainableTokens", token_indices=list(range(3, 60))),
    "unilora": lambda: other("UniLora", **Q),
    "vblora": lambda: other("VBLoRA", **Q, num_vectors=8, vector_length=4),
    "vera": lambda: other("Vera", **Q),
    "waveft": lambda: other("WaveFT", **Q, n_frequency=20),
}
"""Those whose effect is in the modules of the base, so that memlaw can judge them."""

REFUSED: Mapping[str, Any] = {
    "prompt-tuning": lambda: other("PromptTuning", num_virtual_tokens=4),
    "prefix-tuning": lambda: other("PrefixTuning", num_virtual_tokens=4),
    "p-tuning": lambda: other("PromptEncoder", num_virtual_tokens=4),
    "multitask-prompt-tuning": lambda: other("MultitaskPromptTuning", num_virtual_tokens=4, num_tasks=2),
    "cpt": lambda: other("CPT", cpt_token_ids=[5, 6, 7], cpt_mask=[1, 1, 1], cpt_tokens_type_mask=[1, 2, 3]),
    "cartridge": lambda: other("Cartridge", num_virtual_tokens=4),
    "alora": lambda: lora(alora_invocation_tokens=[7, 8]),
    "lora-pissa-niter": lambda: lora(init_lora_weights="pissa_niter_4"),
    "lily": lambda: other("Lily", **Q),
    "poly": lambda: other("Poly", **Q),
}
"""Those whose effect is in PEFT's wrapper around the base, or that do not give each prefix one probability."""

UNTRIED = {
    "ADAMSS": "it needs scikit-learn, which memlaw does not depend on",
    "XLORA": "it is a mixture of adapters, which PEFT loads only with the paths of all of them",
}
"""Types of PEFT without an adapter here, each with the reason."""

BIASED = {"lora-bias-all", "lora-bias-only"}


def family(name: str) -> str:
    """A family of tiny models that this adapter needs or changes: qwen2 has biases."""
    return "qwen2" if name in BIASED else "llama"


def made(name: str, directory: Path, **changes: Any) -> Path:
    """The adapter `name`, its trained weights away from where they start, saved by PEFT alone."""
    torch.manual_seed(1)
    tuned = peft.get_peft_model(tiny.model(family(name)), (JUDGED | REFUSED)[name]())
    stream = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in tuned.parameters():
            if weight.requires_grad:
                weight.add_(0.2 * torch.randn(weight.shape, generator=stream))
    tuned.save_pretrained(str(directory))
    return directory
