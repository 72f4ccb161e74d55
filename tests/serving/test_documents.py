from __future__ import annotations

import json

from helpers.paths import ROOT
from memlaw.serving.documents import verify_schema


def test_the_schema_in_the_documentation_is_that_of_the_code() -> None:
    path = ROOT / "docs" / "schema" / "verify.json"
    assert path.read_text(encoding="utf-8") == json.dumps(verify_schema(), indent=2) + "\n", (
        "memlaw.serving.documents.verify_schema() changed: write its JSON there"
    )
