"""Every test runs offline and on one thread: what it measures must not depend on the machine it runs on."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
