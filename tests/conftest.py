"""Every test runs offline and on one thread: what it measures must not depend on the machine it runs on."""

from __future__ import annotations

import os
import signal
import sys

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TRITON_INTERPRET"] = "1"  # read when Triton loads, which transformers or peft do
os.environ["OMP_NUM_THREADS"] = "1"  # read when torch loads, here and in the processes that tests start


# A shell's background jobs start with Ctrl-C ignored, and hand that on; some tests press it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Also where something imported torch before this file could say so."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
