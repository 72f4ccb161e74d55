"""What an audit computes, from its definitions, one number at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

History = Sequence[Mapping[str, tuple[int, float, bool]]]
"""For each version, in order: id -> (version that introduced it, margin, whether it comes back), for the held ones."""


def share(history: History, version: int, update: int) -> float | None:
    """R[version, update]."""
    total = come_back = 0
    for since, _, right in history[version].values():
        if since == update:
            total += 1
            come_back += right
    return come_back / total if total else None


def backward_transfer(history: History) -> float | None:
    """Mean over j < T of R[T, j] - R[j, j]."""
    last, count, total = len(history) - 1, 0, 0.0
    for update in range(last):
        now, then = share(history, last, update), share(history, update, update)
        if now is not None and then is not None:
            count, total = count + 1, total + now - then
    return total / count if count else None


def forgetting(history: History) -> float | None:
    """Mean over j < T of max over l < T of R[l, j], minus R[T, j]."""
    last, count, total = len(history) - 1, 0, 0.0
    for update in range(last):
        now = share(history, last, update)
        before = [share(history, version, update) for version in range(last)]
        known = [value for value in before if value is not None]
        if now is not None and known:
            count, total = count + 1, total + max(known) - now
    return total / count if count else None


def lost(history: History) -> set[tuple[str, int]]:
    """(id, version) wherever a fact came back under the version before and not under this one."""
    found = set()
    for version in range(1, len(history)):
        for name, (since, _, right) in history[version].items():
            earlier = history[version - 1].get(name)
            if earlier is not None and earlier[0] == since and earlier[2] and not right:
                found.add((name, version))
    return found
