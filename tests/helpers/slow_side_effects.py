"""Side effects by definition, from the logits of two whole models."""

from __future__ import annotations

import math

import torch


@torch.no_grad()
def all_logits(model, rows):
    """[rows, time, vocab] in float64, one row at a time."""
    return torch.cat([model(input_ids=row[None], use_cache=False).logits.double() for row in rows])


def compared(before, after, rows):
    """(loss before, loss difference, KL, share of equal argmax), means over the predicted tokens."""
    losses, differences, divergences, same = [], [], [], []
    for row, old, new in zip(rows.tolist(), before, after, strict=True):
        for position in range(len(row) - 1):
            p, q = (logits[position].softmax(-1).tolist() for logits in (old, new))
            token = row[position + 1]
            losses.append(-math.log(p[token]))
            differences.append(math.log(p[token]) - math.log(q[token]))
            divergences.append(sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0))
            same.append(p.index(max(p)) == q.index(max(q)))
    count = len(losses)
    return sum(losses) / count, sum(differences) / count, sum(divergences) / count, sum(same) / count


@torch.no_grad()
def answer(model, prompt, tokens):
    """Greedy decoding, the whole text read again for every token."""
    ids = list(prompt)
    for _ in range(tokens):
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]
