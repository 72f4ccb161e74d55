"""The documentation keeps its promises: its commands and its Python run, its links lead somewhere, its quotes are real.

The blocks of one page run in order in one directory, so that a command finds what an earlier one wrote. An HTML comment
before a block, `<!-- test: ... -->`, changes how the test runs it:

    look up   not run here: targets of the Makefile and installations, which other tests carry out
    short     each --steps becomes 20
    hub       the Hub id becomes a local directory with the same kind of files, since tests are offline

`<!-- output of: COMMAND -->` before a text block says which command printed it.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

import memlaw
from memlaw.data import read

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
WITH_COMMANDS = [
    README,
    DOCS / "tutorial.md",
    DOCS / "how-to" / "ledger.md",
    DOCS / "how-to" / "own-law.md",
    DOCS / "how-to" / "budgets.md",
    DOCS / "the-law.md",
]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]
HUB_ID = "Qwen/Qwen3-0.6B"
LOOKED_UP = "look up"
MARKS = ("", "short", "hub", LOOKED_UP)

_BLOCK = re.compile(
    r"(?:^<!-- (?:test: (?P<mark>[\w ]+)|output of: (?P<quoted>[^\n]+)) -->\n)?"
    r"^```(?P<language>\w+)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)")
_PATH = re.compile(r"(?<![\w/.-])(?:benchmarks|examples|recipes|scripts|src|tests)/[\w/.-]+\.(?:csv|jsonl?|md|py)\b")
_NUMBER = re.compile(r"[+-]?\d[\d,.]*(?:e[+-]?\d+)?")


@dataclass(frozen=True)
class Block:
    page: Path
    mark: str
    quoted: str
    """The command that printed it."""
    language: str
    text: str
    line: int
    """Of its fence in the page."""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path, *languages: str) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    all_blocks = (
        Block(
            page=page,
            mark=match["mark"] or "",
            quoted=match["quoted"] or "",
            language=match["language"],
            text=match["text"],
            line=text.count("\n", 0, match.start("language")) + 1,
        )
        for match in _BLOCK.finditer(text)
    )
    return [block for block in all_blocks if block.language in languages]


def commands(block: Block) -> list[str]:
    return [line.split("#")[0].strip() for line in block.text.splitlines()]


PROGRAMS = [block for page in WITH_COMMANDS for block in blocks(page, "bash", "python")]
TO_RUN = [block for block in PROGRAMS if block.mark != LOOKED_UP]
TO_LOOK_UP = [block for block in PROGRAMS if block.mark == LOOKED_UP]
QUOTES = [
    (quote, block)
    for page in WITH_COMMANDS
    for quote in blocks(page, "text")
    for block in blocks(page, "bash")
    if block.mark == "" and quote.quoted in commands(block)
]


class Runs:
    """What the blocks of each page printed; a page runs once, when a test first asks for it."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self._folders = folders
        self._done: dict[Block, subprocess.CompletedProcess[str]] = {}

    def __getitem__(self, block: Block) -> subprocess.CompletedProcess[str]:
        if block not in self._done:
            here, environment = self._workplace()
            for other in TO_RUN:
                if other.page == block.page:
                    self._done[other] = _run(other, here, environment)
        return self._done[block]

    def _workplace(self) -> tuple[Path, dict[str, str]]:
        """A directory with the examples, a model where the Hub id would be, and `memlaw` on the PATH."""
        here = self._folders.mktemp("page")
        shutil.copytree(ROOT / "examples", here / "examples")
        (weights,) = Path(memlaw.__file__).parent.rglob("model.safetensors")
        shutil.copytree(weights.parent, here / HUB_ID)
        command = here / "bin" / "memlaw"
        command.parent.mkdir()
        command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m memlaw "$@"\n', encoding="utf-8")
        command.chmod(0o755)
        return here, {**os.environ, "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}"}


def _run(block: Block, here: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    text = block.text
    if block.mark == "short":
        text = re.sub(r"--steps \d+", "--steps 20", text)
    if block.mark == "hub":
        text = text.replace(HUB_ID, f"./{HUB_ID}")
    program = [sys.executable, "-"] if block.language == "python" else ["bash", "-eu"]
    return subprocess.run(program, input=text, cwd=here, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory)


@pytest.mark.slow
@pytest.mark.parametrize("block", TO_RUN, ids=str)
def test_every_block_runs(runs: Runs, block: Block) -> None:
    done = runs[block]
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.slow
def test_the_facts_of_the_example_come_back_verbatim_as_shown(runs: Runs) -> None:
    count = len(read(ROOT / "examples" / "facts.jsonl").facts)
    verbatim = f"{count} of {count} records (100.0%) by greedy decoding"
    assert verbatim in "".join(block.text for block in blocks(README, "text"))
    recalls = [block for block in TO_RUN if block.page == README and "memlaw recall" in block.text]
    assert recalls
    for block in recalls:
        assert verbatim in runs[block].stdout


@pytest.mark.slow
@pytest.mark.parametrize(("quote", "block"), QUOTES, ids=str)
def test_quoted_output_is_what_the_command_prints_but_for_its_numbers(runs: Runs, quote: Block, block: Block) -> None:
    printed = {_NUMBER.sub("#", line) for line in runs[block].stdout.splitlines()}
    assert [line for line in quote.text.splitlines() if _NUMBER.sub("#", line) not in printed] == []


def test_every_block_names_its_language_and_a_known_mark() -> None:
    for page in WITH_COMMANDS:
        fences = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("```")]
        assert len(fences) == 2 * len(blocks(page, "bash", "python", "json", "text"))
    assert {block.mark for block in PROGRAMS} == set(MARKS)


def test_pages_whose_commands_run_are_all_pages_with_blocks_of_commands() -> None:
    assert {page for page in PAGES if blocks(page, "bash", "python")} == set(WITH_COMMANDS)


def test_every_quote_names_a_command_of_its_page() -> None:
    assert QUOTES
    for page in WITH_COMMANDS:
        shown = {command for block in blocks(page, "bash") for command in commands(block)}
        assert {quote.quoted for quote in blocks(page, "text")} <= shown


def test_blocks_that_are_only_looked_up_name_targets_of_the_makefile_or_this_package() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    looked_up = {command for block in TO_LOOK_UP for command in commands(block)}
    assert looked_up == {"make demo", "make test", "pip install ."}
    assert {"demo", "test"} <= set(targets)


def test_the_facts_shown_are_those_of_the_example() -> None:
    (shown,) = blocks(README, "json")
    assert set(shown.text.splitlines()) <= set((ROOT / "examples" / "facts.jsonl").read_text().splitlines())


def test_the_reference_lists_the_commands_there_are() -> None:
    text = (DOCS / "reference" / "command-line.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `memlaw ((?:(?:journal|ledger) )?[a-z]+)", text, re.MULTILINE))
    groups = {"journal", "ledger"}
    assert listed == (_subcommands() - groups) | {f"{group} {name}" for group in groups for name in _subcommands(group)}


def _subcommands(*group: str) -> set[str]:
    program = [sys.executable, "-m", "memlaw", *group, "--help"]
    environment = {**os.environ, "NO_COLOR": "1", "TERM": "dumb"}
    shown = subprocess.run(program, env=environment, capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"^[│|]?\s{1,3}([a-z]+)\s{2,}\S", shown.partition("Commands")[2], re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_inside_the_project_leads_to_a_file(page: Path) -> None:
    links = _LINK.findall(page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_of_the_project_that_a_page_names_exists(page: Path) -> None:
    assert [path for path in _PATH.findall(page.read_text(encoding="utf-8")) if not (ROOT / path).is_file()] == []


def test_pages_of_the_site_link_to_nothing_outside_it() -> None:
    for page in DOCS.rglob("*.md"):
        links = [(page.parent / link).resolve() for link in _LINK.findall(page.read_text(encoding="utf-8"))]
        assert [link for link in links if not link.is_relative_to(DOCS)] == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, ahead = set(), [README]
    while ahead:
        page = ahead.pop()
        if page not in reached:
            reached.add(page)
            links = (page.parent / link for link in _LINK.findall(page.read_text(encoding="utf-8")))
            ahead.extend(link.resolve() for link in links if link.suffix == ".md")
    assert set(PAGES) <= reached


def test_an_index_page_shows_no_link_that_leads_nowhere() -> None:
    """It shows the README without the repository, so the build turns links into the repository into plain text."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    text = README.read_text(encoding="utf-8")
    for rule in project["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    assert _LINK.findall(text) == []
    assert "(https://arxiv.org/abs/2605.30260)" in text
    assert "tutorial" in text


@pytest.mark.slow
def test_the_site_builds_and_fetches_nothing_from_elsewhere(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    subprocess.run(program, cwd=ROOT, check=True)
    pages = list(tmp_path.rglob("*.html"))
    assert {"index.html", "tutorial.html", "python.html"} <= {page.name for page in pages}
    remote = re.compile(
        r"<(?:script|img|link|iframe|source)[^>]*(?:src|href)=[\"']?(?:https?:)?//[^>]*>|url\([\"']?https?:"
    )
    for file in [*pages, *tmp_path.rglob("*.css")]:
        assert remote.findall(file.read_text(encoding="utf-8")) == [], file.name


def test_hooks_run_what_make_check_runs() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    tools = [hook["entry"].removeprefix(".venv/bin/").removesuffix(" --force-exclude") for hook in hooks]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert tools
    assert [tool for tool in tools if f"$(BIN)/{tool}" not in makefile] == []


def test_pictures_are_small() -> None:
    pictures = list((DOCS / "images").glob("*.png"))
    assert pictures
    assert all(picture.stat().st_size < 400_000 for picture in pictures)
