"""The wheel that people install: it is whole, runs outside the checkout, and its page on an index has no dead links."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email.parser import BytesParser
from pathlib import Path

import pytest

from helpers.paths import FIXTURES, ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts' folder of a new environment with the wheel and, by a path, this environment's dependencies.

    The path file hands on packages but not their own path files, so the editable install here stays invisible.
    """
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False)
    packages = home / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    target = ["--python", str(home / "bin" / "python"), "install", "--no-deps", "--quiet", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *target], check=True, capture_output=True)
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "bin"


def run(installed: Path, tmp_path: Path, *arguments: str) -> str:
    ended = subprocess.run(
        [installed / "memlaw", *arguments], cwd=tmp_path, env={"PATH": ""}, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_wheel_holds_the_data_that_the_code_reads(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "src" / "memlaw"
    ours = {
        f"memlaw/{path.relative_to(package).as_posix()}"
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert ours <= inside


def test_the_installed_command_answers(installed: Path, tmp_path: Path) -> None:
    assert "Usage: memlaw" in run(installed, tmp_path, "--help")
    assert "--out" in run(installed, tmp_path, "demo", "--help")


def test_the_installed_command_fits_a_law(installed: Path, tmp_path: Path) -> None:
    law = json.loads(run(installed, tmp_path, "fit", str(FIXTURES / "tiny_reachable_points.csv"), "--json"))
    assert law["n"] > 5
    assert law["r2"] > 0.9


def test_the_version_has_one_home(wheel: Path, installed: Path, tmp_path: Path) -> None:
    stated = wheel.name.split("-")[1]
    assert run(installed, tmp_path, "--version") == f"memlaw {stated}\n"
    program = "import memlaw; print(memlaw.__version__, memlaw.__file__)"
    ended = subprocess.run([installed / "python", "-c", program], cwd=tmp_path, capture_output=True, text=True, env={})
    version, file = ended.stdout.split()
    assert version == stated
    assert Path(file).is_relative_to(installed.parent)


def test_the_page_on_an_index_has_no_relative_links(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    page = BytesParser().parsebytes(archive.read(name)).get_payload()
    targets = re.findall(r"\]\(([^)\s]+)\)", page)
    assert targets
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []
