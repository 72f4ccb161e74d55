"""What loads when, and in which direction the modules of memlaw know each other."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import json
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import memlaw
from helpers.paths import ROOT

PACKAGE = Path(memlaw.__file__).parent

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
from memlaw.cli.app import main
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
        (
            "import memlaw.ledger, memlaw.sweep.journal, memlaw.data; "
            "import memlaw.diagnosis.documents, memlaw.diagnosis.patterns",
            set(),
        ),
        (
            "from memlaw import fit_law, LawFit; import memlaw.planning, memlaw.law.published, memlaw.planning.library",
            set(),
        ),
        ("import memlaw.report.figures, memlaw.report.collect, memlaw.sweep.laws, memlaw.cli.app", {"matplotlib"}),
    ],
    ids=["memlaw", "names", "help", "files", "law", "report"],
)
def test_what_needs_no_model_loads_no_torch(statement: str, allowed: set[str]) -> None:
    assert loaded_by(statement) & set(HEAVY) <= allowed


WITHOUT_THE_MODEL = """
import pathlib, tempfile
from memlaw.data import encode, read
from memlaw.model.tokenizer import load_tokenizer, tokenizer_fingerprint
from memlaw.model.outline_from_files import outline_of_files
from memlaw.adapter.placement import resolve
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
from memlaw.cli import app
from memlaw.law import fit_law, published
from memlaw.planning.library import KnownLaw
folder = tempfile.TemporaryDirectory()
facts, law = (pathlib.Path(folder.name, name) for name in ("facts.jsonl", "laws/own.json"))
facts.write_text('{{"query": "The code is ", "target": "42"}}')
law.parent.mkdir()
law.write_text(KnownLaw(fit_law(published.points(), "bounded")).to_json())
data = "task:random:tokens=20" if {task} else str(facts)
sys.argv = ["memlaw", *(part.format(data=data, law=law, laws=law.parent) for part in "{command}".split())]
try:
    app.main()
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
    assert getattr(found, "__name__", name).rpartition(".")[2] == name


def test_no_public_name_can_be_hidden_by_a_module_of_the_same_name() -> None:
    modules = {module.name for module in pkgutil.iter_modules(memlaw.__path__)}
    assert modules & set(memlaw.__all__) == {"ledger"}  # which is that module
    for module in sorted(modules - {"__main__"}):
        importlib.import_module(f"memlaw.{module}")
    public_modules = {name for name in memlaw.__all__ if isinstance(getattr(memlaw, name), type(memlaw))}
    assert public_modules == {"ledger", "published"}


PLANNED_IN_PYTHON = """
import memlaw
facts = memlaw.MemorySet((memlaw.Fact("The code is ", "42", "f"),), eos=True, source="test")
assert memlaw.plan("memlaw/base", facts).tokens > 1
"""


def test_a_plan_from_files_in_python_loads_no_torch_either() -> None:
    loaded = loaded_by(PLANNED_IN_PYTHON)
    assert not loaded & {"torch", "peft", "matplotlib", "pandas", "datasets", "accelerate"}


VERIFIED = """
import memlaw
facts = memlaw.MemorySet((memlaw.Fact("The code is ", "42", "f"),), eos=True, source="test")
try:
    memlaw.verify("http://127.0.0.1:9", facts, config=memlaw.VerifyConfig(retries=0))
except memlaw.MemlawError as error:
    assert "cannot be reached" in str(error)
"""


def test_asking_a_server_loads_no_torch() -> None:
    loaded = loaded_by(VERIFIED)
    assert "httpcore2" in loaded
    assert not loaded & {"torch", "peft", "matplotlib", "pandas", "datasets", "accelerate"}


def test_the_version_is_that_of_the_metadata_and_is_read_when_it_is_asked_for() -> None:
    assert memlaw.__version__ == importlib.metadata.version("memlaw")
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert memlaw.__version__ == stated
    asked = "import sys, memlaw\nassert 'importlib.metadata' not in sys.modules"
    loaded_by(asked)


def test_a_checkout_that_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert memlaw.__version__ == "0+uninstalled"


def test_an_unknown_name_is_an_attribute_error_and_the_known_ones_are_listed() -> None:
    with pytest.raises(AttributeError, match="module 'memlaw' has no attribute 'forget'"):
        memlaw.forget  # noqa: B018
    assert set(memlaw.__all__) <= set(dir(memlaw))


def test_the_rooms_are_those_of_the_layers_contract() -> None:
    """A new room needs a place in the order that `lint-imports` enforces (pyproject.toml)."""
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ][0]
    ordered = {name.strip() for layer in contract["layers"] for name in layer.split("|")}
    modules = {f"memlaw.{module.name}" for module in pkgutil.iter_modules(memlaw.__path__)}
    assert modules == ordered


def test_imports_are_absolute() -> None:
    """Relative imports hide the direction in which rooms know each other."""
    relative = [
        f"{path.name}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []


def test_no_module_needs_banners_to_be_read() -> None:
    banners = [
        path.name for path in PACKAGE.rglob("*.py") if re.search(r"^# -{3,}", path.read_text(encoding="utf-8"), re.M)
    ]
    assert banners == []
