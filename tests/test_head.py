from __future__ import annotations

import pytest
import tiny
import torch
import torch.nn.functional as F

from memlaw.head import token_scores
from memlaw.model import FullForward
from memlaw.reach import frozen_head


def states_and_logits(model: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(3, tiny.VOCABULARY, (1, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return FullForward(model)(ids)[0], model(input_ids=ids, use_cache=False).logits[0]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_nll_and_hit_are_those_of_the_models_own_logits(family: str) -> None:
    model = tiny.model(family)
    hidden, logits = states_and_logits(model)
    targets = logits.argmax(-1)
    targets[::2] = 7
    nll, hit = token_scores(frozen_head(model), hidden, targets)
    torch.testing.assert_close(nll, F.cross_entropy(logits, targets, reduction="none"), rtol=1e-5, atol=1e-5)
    assert hit.tolist() == (logits.argmax(-1) == targets).tolist()


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "gpt2"])
def test_the_gradient_is_autograds(family: str) -> None:
    model = tiny.model(family).double()
    hidden, logits = states_and_logits(model)
    targets = torch.arange(len(logits))
    ours, theirs = hidden.clone().requires_grad_(True), hidden.clone().requires_grad_(True)
    token_scores(frozen_head(model), ours, targets)[0].sum().backward()
    raw = model.get_output_embeddings()(theirs)
    cap = getattr(model.config, "final_logit_softcapping", None)
    raw = raw if cap is None else cap * torch.tanh(raw / cap)
    F.cross_entropy(raw, targets, reduction="sum").backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-12)
