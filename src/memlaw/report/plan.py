"""Plans, as the template needs them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memlaw.report.words import interval, number, plan_size, plan_target, share


def plan_view(plan: Mapping[str, Any]) -> dict[str, Any]:
    config = plan.get("lora_config") or {}
    lines = [f"    {key}={value!r},\n" for key, value in config.items()]
    to_paste = [f"LoraConfig(\n{''.join(lines)})"] if lines else []
    notes = [plan.get("reason"), plan.get("extrapolates"), *plan.get("caveats", ())]
    return {
        "rows": [(label, text) for label, text in _plan_rows(plan) if text],
        "notes": [note for note in notes if note],
        "config": "\n\n".join([*to_paste, *([plan["train"]] if plan.get("train") else [])]),
    }


def _plan_rows(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(label, text); the text is empty if the plan has no such part, as plans of earlier versions."""
    saturation, cost = plan.get("saturation") or {}, plan.get("cost") or {}
    chances = (f"rank {row['rank']}: {share(row['probability'])}" for row in plan.get("probabilities", ()))
    thumb = plan.get("rule_of_thumb")
    return [
        ("memory set", f"{plan_size(plan)}, about {number(plan['bits'])} bits"),
        ("target", plan_target(plan.get("target"))),
        ("placement", str(plan.get("placement") or "")),
        ("rank", _plan_rank(plan)),
        ("probability", ", ".join(chances)),
        ("several adapters", _plan_split(plan.get("split") or {})),
        ("mean loss needed", _plan_loss(plan)),
        (
            "mean loss under ln 2",
            f"from rank {number(saturation.get('value'))}{interval(saturation)}" if saturation else "",
        ),
        ("capacity", _plan_capacity(plan.get("capacity") or {})),
        ("rule of thumb", f"rank {number(thumb)}: as many adapter parameters as target tokens" if thumb else ""),
        ("law", _plan_law(plan.get("law") or {})),
        ("how close the law is", " ".join((plan.get("law") or {}).get("near", ()))),
        ("adapter", _plan_adapter(cost)),
        ("training", _plan_work(cost)),
    ]


def _plan_rank(plan: Mapping[str, Any]) -> str:
    rank, most, sure = plan["rank"], plan.get("largest_rank"), plan.get("sure")
    certain = f"; 95 % certain from rank {number(sure)}" if sure else ""
    return f"{number(rank.get('value'))}{interval(rank)}{certain}" + (
        f"; this placement allows {number(most)}" if most else ""
    )


def _plan_split(split: Mapping[str, Any]) -> str:
    if not split:
        return ""
    return (
        f"{number(split['adapters'])} of rank {number(split['rank_each'])}, each for "
        f"{number(split['tokens_each'])} target tokens"
    )


def _plan_loss(plan: Mapping[str, Any]) -> str:
    needed = plan.get("loss_needed")
    if not needed:
        return ""
    return f"{number(needed.get('nats'))} nats per token, from {number(plan.get('loss_init'))}. {needed.get('why', '')}"


def _plan_capacity(capacity: Mapping[str, Any]) -> str:
    if not capacity:
        return ""
    full = capacity.get("saturates")
    under = f"; mean loss under ln 2 up to {number(full)}" if full else ""
    return f"rank {number(capacity['rank'])}: {number(capacity['tokens'])} target tokens{interval(capacity)}{under}"


def _plan_law(law: Mapping[str, Any]) -> str:
    over = [f"{name} {law[name][0]:g} to {law[name][1]:g}" for name in ("ranks", "lengths") if name in law]
    return ", ".join([str(law.get("source", "")), *([f"{law['form']} form"] if "form" in law else []), *over])


def _plan_adapter(cost: Mapping[str, Any]) -> str:
    if not cost:
        return ""
    optimizer = cost.get("optimizer_bytes")
    more = f"; training takes another {number(optimizer / 1000)} kB" if optimizer else ""
    size = number(cost.get("adapter_bytes", 0) / 1000)
    return f"{number(cost.get('adapter_parameters'))} parameters, {size} kB{more}"


def _plan_work(cost: Mapping[str, Any]) -> str:
    """Upper limits of the training's cost, as far as they are known."""
    units = (("steps", "steps"), ("training_flops", "operations"), ("seconds", "s on the machine of the plan"))
    return ", ".join(f"{number(cost[key])} {unit}" for key, unit in units if cost.get(key))
