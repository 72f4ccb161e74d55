from __future__ import annotations

import dataclasses

from helpers.words import words
from memlaw.cli.laws import laws_lines
from memlaw.law import Origin, fit_law, published
from memlaw.planning.library import KnownLaw, listing


def test_laws_are_listed_with_what_they_hold_for() -> None:
    law = fit_law(published.points(), "bounded", origin=Origin(model="org/model", placement="down_proj@4"))
    lines = list(laws_lines(listing({"mine": KnownLaw(law)})))
    assert lines[0] == "mine: bounded form on 70 cells, R^2 0.9994"
    told = words(lines)
    assert (
        "model org/model placement down_proj@4 optimizer adamw ranks 1 to 24 lengths 200 to 10,000 published:" in told
    )
    assert "model Qwen3-8B" in told
    assert "status" not in told


def test_a_doubtful_law_is_listed_with_its_status() -> None:
    doubtful = dataclasses.replace(fit_law(published.points(), "bounded"), status="Not identifiable.", r2=None)
    lines = list(laws_lines(listing({"mine": KnownLaw(doubtful)})))
    assert lines[0] == "mine: bounded form on 70 cells"
    assert "status Not identifiable." in words(lines)
