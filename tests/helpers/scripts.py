"""scripts/real_models.py as a module, since it is in no package."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

from helpers.paths import ROOT

REAL_MODELS = ROOT / "scripts" / "real_models.py"


def _loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("real_models", REAL_MODELS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


real_models = _loaded()
