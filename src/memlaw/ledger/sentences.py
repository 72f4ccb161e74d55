"""What a ledger says of itself in words, on the command line and on a page. No text of a fact is in it."""

from __future__ import annotations

from memlaw.ledger.records import Effort, Room


def facts_held(facts: int, certified: int, lost: int) -> str:
    """How many facts come back, such as `5 facts, all certified`."""
    if not facts:
        return "no facts"
    rest = f", {lost:,} lost" if lost else ""
    sure = "all certified" if certified == facts else f"{certified:,} certified"
    return f"{_counted(facts, 'fact')}, {sure if facts > 1 or certified < facts else 'certified'}{rest}"


def changes(added: int, changed: int, retracted: int) -> str:
    """What an update did, such as `1 added, 2 retracted`; empty if it changed no fact."""
    counts = {"added": added, "changed": changed, "retracted": retracted}
    return ", ".join(f"{number:,} {name}" for name, number in counts.items() if number)


def what_it_took(effort: Effort) -> str:
    """The training of a version in one sentence."""
    loss = ""
    if effort.loss_init is not None and effort.loss_final is not None:
        loss = f", loss {effort.loss_init:.3f} -> {effort.loss_final:.4f} nats per token"
    steps = _counted(effort.steps, "step")
    return f"{steps} in {effort.seconds:.0f} s, {effort.tokens_forwarded:,} tokens forwarded{loss}."


def room_left(room: Room) -> str:
    """How much more fits, with its interval."""
    high = " or more" if room.high is None else f" to {room.high:,.0f}"
    return f"about {room.tokens:,.0f} target tokens like these (95%: {room.low:,.0f}{high})"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
