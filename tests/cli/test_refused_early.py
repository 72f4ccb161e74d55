"""What refuses a command is said before what takes long: here before a model that does not exist is looked for."""

from __future__ import annotations

from pathlib import Path

from helpers.commands import Run, assert_refused, write

NOWHERE = ("--model", "/nowhere/model")


def test_train_does_not_load_a_model_for_a_directory_it_may_not_write(run: Run, facts: Path, tmp_path: Path) -> None:
    (tmp_path / "A").mkdir()
    write(tmp_path / "A" / "thesis.txt", "mine")
    ran = run("train", facts, *NOWHERE, "--rank", 2, "--out", tmp_path / "A")
    assert_refused(ran, "belongs to something else (it holds thesis.txt)")


def test_recall_does_not_load_a_model_for_an_adapter_that_is_none(run: Run, facts: Path, tmp_path: Path) -> None:
    ran = run("recall", facts, *NOWHERE, "--adapter", tmp_path / "A")
    assert_refused(ran, f"The adapter directory {tmp_path / 'A'} does not exist.")


def test_probe_does_not_load_a_model_for_the_directory_of_another_probe(run: Run, facts: Path, single: Path) -> None:
    grid = ("--ranks", "1", "--lengths", "12", "--steps", 7, "--out", single)
    assert_refused(run("probe", facts, *NOWHERE, *grid), "belongs to another run, which differs in", "here 7)")


def test_probe_judges_no_tokens_for_a_rank_that_the_model_cannot_have(run: Run, model: Path, tmp_path: Path) -> None:
    grid = ("--ranks", "1,99", "--lengths", "12", "--out", tmp_path / "P")
    ran = run("probe", "task:random:tokens=999999999", "--model", model, *grid)
    assert_refused(ran, "Rank 99 is above 32")
