"""The recipes run unchanged, offline, and end with all records certified."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.py"))


def test_there_are_recipes_for_every_way_to_train() -> None:
    names = {recipe.stem for recipe in RECIPES}
    assert names == {"memft_in_a_loop", "memft_with_trainer", "memft_with_trl"}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_recipe_is_read_at_one_sitting(recipe: Path) -> None:
    assert len(recipe.read_text(encoding="utf-8").splitlines()) <= 60


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_recipe_runs_and_keeps_its_promise(recipe: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, str(recipe)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    last = ran.stdout.splitlines()[-1]
    found = re.fullmatch(r"exact match 0% -> 100% in (\d+) steps, (\d+) of (\d+) records certified", last)
    assert found, last
    assert int(found[1]) < 300
    assert found[2] == found[3]
