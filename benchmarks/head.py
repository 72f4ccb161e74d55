"""The frozen head: loss, hit and hidden gradient of the active rows in one pass, against what else there is.

    python benchmarks/head.py [--repeats 5] [--only WORD] [--others naive,trl]

All sides give the nll of every row and the gradient of sum_t w_t nll_t in the hidden states, w_t = 1 for the active
rows (a random share of them) and 0 for the rest, and are held to the same gradient before any time is taken.
`equivalents` and `other_equivalents` count products of n * vocab * d multiplications, measured beside them as
one `torch.mm` into memory that is already there: a pass needs 1 + the share of active rows, autograd 2.

- naive: `F.linear`, `F.cross_entropy`, autograd back to the hidden states.
- torch-auto, torch-tuned: `F.linear_cross_entropy` in chunks, with its own policy and with the best one found. It is
  told beforehand, by ignored targets, which rows are active: a training step could only know after another pass.
- trl: TRL's fused head, where trl is installed.
- memory: peak of resident memory beyond the inputs, results included, against the logits alone of all rows.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from common import medians, peak_bytes, report, rounded
from torch import Tensor, nn

from memlaw.losses.head_pass import head_pass
from memlaw.model.head import FrozenHead


@dataclass(frozen=True)
class Shape:
    rows: int
    width: int
    vocabulary: int
    active: float
    """Share of the rows that have a weight."""

    @property
    def case(self) -> str:
        return f"n{self.rows} d{self.width} vocab{self.vocabulary} active{self.active:.0%}"


CPU = (
    Shape(256, 1024, 50_000, 0.10),
    Shape(1024, 1024, 32_768, 0.01),
    Shape(1024, 1024, 32_768, 0.10),
    Shape(256, 1024, 50_000, 1.0),
    Shape(4096, 128, 1024, 0.10),
)
CUDA = tuple(Shape(8192, 4096, vocabulary, active) for vocabulary in (128_256, 151_936) for active in (0.01, 0.1, 1.0))
"""Llama-3.1-8B and Qwen3-8B."""
MEMORY = Shape(8192, 256, 131_072, 0.10)


class Problem:
    def __init__(self, shape: Shape, device: str) -> None:
        stream = torch.Generator().manual_seed(0)
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        weight = torch.randn(shape.vocabulary, shape.width, generator=stream) * 3 / shape.width**0.5
        self.head = FrozenHead(weight.to(device, dtype))
        self.hidden = torch.randn(shape.rows, shape.width, generator=stream).to(device, dtype)
        self.targets = torch.randint(shape.vocabulary, (shape.rows,), generator=stream).to(device)
        self.weights = (torch.rand(shape.rows, generator=stream) < shape.active).float().to(device)

    def memlaw(self) -> Tensor:
        return head_pass(self.head, self.hidden, self.targets, lambda _nll, _hit, rows: self.weights[rows]).gradient

    def naive(self) -> Tensor:
        states = self.hidden.clone().requires_grad_(True)
        nll = F.cross_entropy(F.linear(states, self.head.weight).float(), self.targets, reduction="none")
        return torch.autograd.grad((self.weights * nll).sum(), states)[0]

    def torch_chunked(self, **policy: Any) -> Tensor:
        states = self.hidden.clone().requires_grad_(True)
        told = self.targets.where(self.weights > 0, -100)
        options = nn.LinearCrossEntropyOptions(**policy)
        loss = F.linear_cross_entropy(states, self.head.weight, told, reduction="sum", options=options)
        return torch.autograd.grad(loss, states)[0]

    def trl(self) -> Callable[[], Tensor]:
        from transformers import PretrainedConfig
        from trl.trainer.utils import add_fused_lm_head

        model = _HeadAlone(self.head.weight, PretrainedConfig())
        add_fused_lm_head(model, outputs=("log_probs", "is_top1"))

        def work() -> Tensor:
            states = self.hidden.clone().requires_grad_(True)
            output = model(states[None], shift_labels=self.targets[None], fused_lm_head=True)
            return torch.autograd.grad(-(self.weights * output.log_probs[0]).sum(), states)[0]

        return work

    def sides(self) -> dict[str, Callable[[], Tensor]]:
        sides: dict[str, Callable[[], Tensor]] = {"memlaw": self.memlaw, "naive": self.naive}
        if hasattr(F, "linear_cross_entropy"):
            sides["torch-auto"] = self.torch_chunked
            sides["torch-tuned"] = lambda: self.torch_chunked(acc_policy="accurate", batch_chunk_size=256)
        if importlib.util.find_spec("trl"):
            sides["trl"] = self.trl()
        return sides

    def product(self) -> Callable[[], Tensor]:
        logits = self.hidden.new_empty(len(self.hidden), len(self.head.weight))
        return lambda: torch.mm(self.hidden, self.head.weight.T, out=logits)


class _HeadAlone(nn.Module):
    """As much of a causal language model as TRL's fused head asks for: its backbone hands the hidden states through."""

    def __init__(self, weight: Tensor, config: object) -> None:
        super().__init__()
        self.config = config
        self.embeddings = SimpleNamespace(weight=weight, bias=None)

    def base_model(self, states: Tensor, **_: object) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=states)

    def get_output_embeddings(self) -> SimpleNamespace:
        return self.embeddings

    def forward(self, states: Tensor) -> Tensor:
        return states


def speed(shape: Shape, device: str, repeats: int, others: Sequence[str]) -> None:
    problem = Problem(shape, device)
    sides = {name: side for name, side in problem.sides().items() if name == "memlaw" or name in others}
    wanted = problem.naive().double()
    for name, side in sides.items():
        difference = float((side().double() - wanted).norm() / wanted.norm())
        if not difference < (2e-2 if device == "cuda" else 1e-5):
            raise SystemExit(f"{name} and autograd do not give the same gradient: they differ by {difference:.1e}.")
    seconds = medians({"product": problem.product(), **sides}, repeats=repeats, device=device)
    equivalents = {name: rounded(taken / seconds["product"]) for name, taken in seconds.items()}
    for other in sides:
        if other != "memlaw":
            report(
                "head", f"{shape.case} vs {other}", seconds[other] / seconds["memlaw"], device=device,
                equivalents=equivalents["memlaw"], other_equivalents=equivalents[other],
                memlaw_ms=rounded(1e3 * seconds["memlaw"]), product_ms=rounded(1e3 * seconds["product"]),
                repeats=repeats,
            )  # fmt: skip


def prepared(shape: Shape) -> Callable[[], Tensor]:
    """The pass, ready to be run, after a small one that loaded the libraries."""
    Problem(Shape(64, 64, 512, 1.0), "cpu").memlaw()
    return Problem(shape, "cpu").memlaw


def memory(shape: Shape) -> None:
    materialised = 4 * shape.rows * shape.vocabulary
    taken = peak_bytes(prepared, shape)
    report(
        "head-memory", f"{shape.case} vs the logits of all rows", materialised / taken,
        memlaw_mb=rounded(taken / 1e6), other_mb=rounded(materialised / 1e6),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="run only the cases whose name has this word; 'memory' is one")
    parser.add_argument("--others", default="naive,torch-auto,torch-tuned,trl", help="sides to compare with")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for shape in CUDA if device == "cuda" else CPU:
        if arguments.only in shape.case:
            speed(shape, device, arguments.repeats, arguments.others.split(","))
    if arguments.only in "memory " + MEMORY.case:
        memory(MEMORY)


if __name__ == "__main__":
    main()
