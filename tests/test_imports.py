"""What loads when, and in which direction the modules of memlaw know each other."""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import memlaw

PACKAGE = Path(memlaw.__file__).parent

LEFT_TO_RIGHT = (
    "errors", "records", "bits", "hub", "durable", "memory", "products", "data", "tasks", "outline", "placement",
    "model", "forward", "prefix", "eviction", "reach", "adapter", "kernels", "head", "losses", "training",
    "diagnosis", "measure", "journal", "packs", "engines", "driver", "sweep", "api", "integrations",
    "law", "published", "plan", "laws", "findings", "advice", "figures", "report", "workspace", "budget", "planning",
    "lint", "summary", "progress", "demo", "cli", "__main__",
)  # fmt: skip
"""A module imports only modules to its left, whether at its top, inside a function or for its types alone."""

HEAVY = ("torch", "transformers", "peft", "safetensors", "matplotlib", "pandas", "datasets")


def loaded_by(statement: str) -> set[str]:
    """The top-level names of all modules that a statement loads."""
    program = (
        f"import sys, json\n{statement}\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(ended.stdout.splitlines()[-1]))


HELP = """
import contextlib
from memlaw.cli import main
for sys.argv in (["memlaw", "--help"], ["memlaw", "--version"], ["memlaw", "train", "--help"]):
    with contextlib.suppress(SystemExit):
        main()
"""


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        ("import memlaw", set()),
        ("from memlaw import MemorySet, MemlawError, TrainConfig, read", set()),
        (HELP, set()),
        ("import memlaw.journal, memlaw.data, memlaw.diagnosis", set()),
        ("from memlaw import fit_law, LawFit; import memlaw.plan, memlaw.published, memlaw.laws", set()),
        ("import memlaw.figures, memlaw.report, memlaw.workspace, memlaw.summary", {"matplotlib"}),
    ],
    ids=["memlaw", "names", "help", "files", "law", "report"],
)
def test_what_needs_no_model_loads_no_torch(statement: str, allowed: set[str]) -> None:
    assert loaded_by(statement) & set(HEAVY) <= allowed


WITHOUT_THE_MODEL = """
import pathlib, tempfile
from memlaw.data import encode, load_tokenizer, read, tokenizer_fingerprint
from memlaw.outline import outline_of_files
from memlaw.placement import resolve
outline, tokenizer = outline_of_files("memlaw/base"), load_tokenizer("memlaw/base")
with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, "facts.jsonl")
    path.write_text('{"query": "The code is ", "target": "42"}')
    assert encode(read(path), tokenizer, context=outline.context)
assert resolve(None, outline).parameters(4) and tokenizer_fingerprint(tokenizer)
"""


def test_an_outline_a_placement_and_the_tokens_of_facts_load_no_torch() -> None:
    assert loaded_by(WITHOUT_THE_MODEL) & set(HEAVY) <= {"transformers", "safetensors"}


PLANNED = """
import pathlib, tempfile, warnings
from memlaw import cli, published
from memlaw.law import fit_law
from memlaw.laws import KnownLaw
folder = tempfile.TemporaryDirectory()
facts, law = (pathlib.Path(folder.name, name) for name in ("facts.jsonl", "laws/own.json"))
facts.write_text('{{"query": "The code is ", "target": "42"}}')
law.parent.mkdir()
law.write_text(KnownLaw(fit_law(published.points(), "bounded")).to_json())
data = "task:random:tokens=20" if {task} else str(facts)
sys.argv = ["memlaw", *(part.format(data=data, law=law, laws=law.parent) for part in "{command}".split())]
try:
    cli.main()
except SystemExit as ended:
    assert ended.code == 0
"""


@pytest.mark.parametrize(
    ("command", "task", "loads"),
    [
        ("plan {data} --law {law}", False, False),
        ("plan {data} --laws {laws} --rank 4 --placement all-linear --target 99%", False, False),
        ("laws {laws}", False, False),
        ("plan {data} --law {law} --calibrate", False, True),
        ("plan {data} --law {law}", True, True),
    ],
    ids=["law", "library", "laws", "calibrated", "task"],
)
def test_a_plan_of_a_file_of_facts_loads_torch_only_to_calibrate(command: str, task: bool, loads: bool) -> None:
    loaded = loaded_by(PLANNED.format(command=command, task=task))
    assert ("torch" in loaded) == loads
    assert loads or not loaded & {"peft", "matplotlib", "pandas", "datasets", "accelerate"}


def test_the_help_loads_no_numerics_either() -> None:
    assert not loaded_by(HELP) & {"numpy", "scipy", "pyarrow", "yaml", "jinja2"}


@pytest.mark.parametrize("name", memlaw.__all__)
def test_every_public_name_resolves_to_what_it_is_called(name: str) -> None:
    found = getattr(memlaw, name)
    assert getattr(found, "__name__", name) == name


def test_no_public_name_can_be_hidden_by_a_module_of_the_same_name() -> None:
    modules = {module.name for module in pkgutil.iter_modules(memlaw.__path__)}
    assert not modules & set(memlaw.__all__)
    for module in sorted(modules - {"__main__"}):
        importlib.import_module(f"memlaw.{module}")
    for name in memlaw.__all__:
        assert not isinstance(getattr(memlaw, name), type(memlaw)), name


def test_an_unknown_name_is_an_attribute_error_and_the_known_ones_are_listed() -> None:
    with pytest.raises(AttributeError, match="module 'memlaw' has no attribute 'forget'"):
        memlaw.forget  # noqa: B018
    assert set(memlaw.__all__) <= set(dir(memlaw))


def arrows() -> Iterator[tuple[str, str, str]]:
    """(importing module, imported module, file and line) of every import between the modules of memlaw."""
    for path in PACKAGE.rglob("*.py"):
        inside = path.relative_to(PACKAGE).with_suffix("").parts
        if inside == ("__init__",):
            continue  # its names load lazily
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for name in imported(node):
                yield inside[0], name, f"{'/'.join(inside)}.py, line {node.lineno}"  # type: ignore[attr-defined]


def imported(node: ast.AST) -> Iterator[str]:
    """The modules of memlaw that an import statement names."""
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative imports hide the direction"
        dotted = [f"{node.module}.{alias.name}" for alias in node.names]
    elif isinstance(node, ast.Import):
        dotted = [alias.name for alias in node.names]
    else:
        return
    for name in dotted:
        package, _, rest = name.partition(".")
        module = rest.partition(".")[0]
        if package == "memlaw" and module and not module.startswith("__"):
            yield module


def test_the_order_names_every_module() -> None:
    found = {path.stem for path in PACKAGE.glob("*.py")} | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert found - {"__init__"} == set(LEFT_TO_RIGHT)


def test_modules_import_only_from_their_left() -> None:
    place = {name: number for number, name in enumerate(LEFT_TO_RIGHT)}
    back = [f"{where}: {importing} imports {name}" for importing, name, where in arrows()
            if place[name] > place[importing]]  # fmt: skip
    assert back == []


def test_the_law_stands_on_records_and_errors_alone() -> None:
    assert {name for importing, name, _ in arrows() if importing == "law"} <= {"law", "records", "errors"}
