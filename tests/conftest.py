"""Every test runs offline and on one thread: what it measures must not depend on the machine it runs on."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings

from memlaw.core.cache import cache_folder

os.environ["HF_HUB_OFFLINE"] = "1"

os.environ["TOKENIZERS_PARALLELISM"] = "false"

os.environ["TRITON_INTERPRET"] = "1"  # read when Triton loads, which transformers or peft do

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch loads, here and in the processes that tests start

# Real models stay where the Makefile put them: hundreds of megabytes are not fetched for each run. Set once, since the
# next line hides that folder and processes inherit both.
os.environ.setdefault("REAL_MODELS", str(cache_folder("models")))

# What one run of the tests computed must not decide what the next one tests.
os.environ["MEMLAW_CACHE"] = tempfile.mkdtemp(prefix="memlaw-cache-")

# What a worker is to call, it imports by name, also from a module of these tests.
_inherited = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))

os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *_inherited])

# Asserts in helpers are rewritten like those of the tests, so that a failure shows its values.
pytest.register_assert_rewrite("helpers")

# Speed is measured in benchmarks/, on a machine at rest; here it would only make tests fail now and then.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

# A shell's background jobs start with Ctrl-C ignored, and hand that on; some tests press it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Also where something imported torch before this file could say so."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def twelve_facts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the bundled base that recalls examples/facts.jsonl, trained once: leave it as it is."""
    from memlaw.adapter.on_model import placement_on
    from memlaw.core.config import UNTIL_RECALLED
    from memlaw.data import read
    from memlaw.model.base import load
    from memlaw.training.adapter import train_adapter
    from memlaw.training.run import Run

    base, out = load(dtype="float32"), tmp_path_factory.mktemp("twelve") / "adapter"
    run = Run(16, placement_on(None, base.model), replace(UNTIL_RECALLED, protect=0.0))
    assert train_adapter(base, read(Path(__file__).parents[1] / "examples" / "facts.jsonl"), run, out=out).recalled
    return out
