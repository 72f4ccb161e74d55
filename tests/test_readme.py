"""The README keeps its promises: every command and every line of Python in it runs, every link leads somewhere.

The blocks of the README run in their order in one directory, so that a command finds what an earlier one wrote. An HTML
comment before a block, `<!-- test: ... -->`, says what the test does otherwise:

    make    the commands are targets of the Makefile; they are looked up, not run inside themselves
    short   each --steps becomes 20
    hub     the Hub id becomes a local directory with the same kind of files, since tests are offline
"""

from __future__ import annotations

import importlib.resources
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from memlaw.data import read

ROOT = Path(__file__).parents[1]

README = ROOT / "README.md"

HUB_ID = "Qwen/Qwen3-0.6B"

RUNS = ("", "short", "hub")

_BLOCK = re.compile(
    r"(?:^<!-- test: (?P<mark>\w+) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)

_LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)")


@dataclass(frozen=True)
class Block:
    mark: str
    language: str
    text: str
    line: int
    """Of its fence in the README."""

    def __str__(self) -> str:
        return f"line {self.line}"


def blocks(*languages: str) -> list[Block]:
    text = README.read_text(encoding="utf-8")
    found = (
        Block(match["mark"] or "", match["language"], match["text"], text.count("\n", 0, match.start("language")) + 1)
        for match in _BLOCK.finditer(text)
    )
    return [block for block in found if block.language in languages]


TO_RUN = [block for block in blocks("bash", "python") if block.mark != "make"]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[Block, subprocess.CompletedProcess[str]]:
    """Every block that can be run, in order, in one directory."""
    here = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "examples", here / "examples")
    with importlib.resources.as_file(importlib.resources.files("memlaw") / "base") as base:
        shutil.copytree(base, here / HUB_ID)
    command = here / "bin" / "memlaw"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m memlaw "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    searched = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    return {block: _run(block, here, {**os.environ, "PATH": searched}) for block in TO_RUN}


def _run(block: Block, here: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    text = block.text
    if block.mark == "short":
        text = re.sub(r"--steps \d+", "--steps 20", text)
    if block.mark == "hub":
        text = text.replace(HUB_ID, f"./{HUB_ID}")
    program = [sys.executable, "-"] if block.language == "python" else ["bash", "-eu"]
    return subprocess.run(program, input=text, cwd=here, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("block", TO_RUN, ids=str)
def test_every_block_runs(ran: dict[Block, subprocess.CompletedProcess[str]], block: Block) -> None:
    assert block.mark in RUNS
    done = ran[block]
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.slow
def test_the_facts_of_the_example_come_back_verbatim_as_shown(
    ran: dict[Block, subprocess.CompletedProcess[str]],
) -> None:
    count = len(read(ROOT / "examples" / "facts.jsonl").facts)
    verbatim = f"{count} of {count} records (100.0%) by greedy decoding"
    assert verbatim in "".join(block.text for block in blocks("text"))
    recalls = [done for block, done in ran.items() if "memlaw recall" in block.text]
    assert recalls
    for done in recalls:
        assert verbatim in done.stdout


def test_the_blocks_that_are_only_looked_up_name_targets_of_the_makefile() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    commands = [line for block in blocks("bash") if block.mark == "make" for line in block.text.splitlines()]
    assert [line.split()[:2] for line in commands] == [["make", "demo"], ["make", "test"]]
    assert {"demo", "test"} <= set(targets)


def test_no_block_escapes() -> None:
    fences = [line for line in README.read_text(encoding="utf-8").splitlines() if line.startswith("```")]
    assert len(fences) == 2 * len(blocks("bash", "python", "json", "text", "bibtex"))


def test_the_facts_shown_are_those_of_the_example() -> None:
    (shown,) = blocks("json")
    assert set(shown.text.splitlines()) <= set((ROOT / "examples" / "facts.jsonl").read_text().splitlines())


PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_inside_the_project_leads_to_a_file(page: Path) -> None:
    links = _LINK.findall(page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).is_file()] == []


def test_pages_are_linked_from_the_readme() -> None:
    linked = {(README.parent / link).resolve() for link in _LINK.findall(README.read_text(encoding="utf-8"))}
    assert {page.resolve() for page in PAGES} - {README} <= linked


def test_pictures_are_small() -> None:
    pictures = list((ROOT / "docs" / "images").glob("*.png"))
    assert pictures
    assert all(picture.stat().st_size < 400_000 for picture in pictures)
