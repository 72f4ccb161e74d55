"""The JSON of `memlaw ledger` under a fixed schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field, TypeAdapter

from helpers.ledgers import SECRET, a_ledger, some_facts, update
from helpers.paths import ROOT
from memlaw.core.canonical import to_dict
from memlaw.ledger import documents, upkeep, view
from memlaw.ledger.documents import Document
from memlaw.ledger.records import Audit, Change
from memlaw.ledger.review import review
from memlaw.ledger.status import status
from memlaw.ledger.store import Store

READER: TypeAdapter[Any] = TypeAdapter(Annotated[Document, Field(discriminator="schema")])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = a_ledger(tmp_path / "KB")
    update(made, some_facts("a", "b"))
    update(made, some_facts("a", value="!"), ["b"])
    return made


def every_document(store: Store) -> list[Any]:
    head, now = store.head(), status(store)
    audit = Audit(2, head.held, head.retracted, "served", "now", returned=("b",))
    return [
        documents.init_document("KB", store.settings()),
        documents.update_document(now, Change(), head),
        documents.update_document(now, Change(added=("x",)), None),
        documents.StatusDocument(**vars(now)),
        documents.audit_document([audit], review(store, 2, [audit])),
        documents.LogDocument(**vars(view.log(store))),
        documents.RollbackDocument(**vars(now), before=None),
        documents.ExportDocument(version=2, adapter="A", adapters=(1,)),
        documents.RouteDocument(version=2, adapter=None),
        documents.ReportDocument(report="r.html", version=2),
        documents.VerifyDocument(**vars(upkeep.verify(store))),
    ]


def test_the_schema_in_the_documentation_is_that_of_the_code():
    path = ROOT / "docs" / "schema" / "ledger.json"
    assert path.read_text(encoding="utf-8") == json.dumps(documents.ledger_schema(), indent=2) + "\n", (
        "documents.ledger_schema() changed: write its JSON there, and raise the number of a document of which a key "
        "went or changed"
    )


def test_the_documents_of_the_schema_and_their_own_keys_are_described():
    definitions = documents.ledger_schema()["$defs"]
    named = {name: definition for name, definition in definitions.items() if name.endswith("Document")}
    assert len(named) == 10
    for name, definition in named.items():
        assert "description" in definition, name
    for name in (
        "AuditDocument",
        "AuditedVersion",
        "AuditedFact",
        "FactLoss",
        "InitDocument",
        "ExportDocument",
        "ReportDocument",
    ):
        for key, described in definitions[name]["properties"].items():
            assert "description" in described, (name, key)
    assert definitions["StatusDocument"]["properties"]["at_risk"]["description"].startswith("Facts that come back")


def test_every_document_is_read_back_as_it_was(store: Store):
    for document in every_document(store):
        assert READER.validate_json(json.dumps(to_dict(document)), strict=True) == document


def test_no_document_holds_a_text_or_a_hash(store: Store):
    held = store.head().held[0]
    for document in every_document(store):
        printed = json.dumps(to_dict(document))
        assert SECRET not in printed
        assert held.prompt not in printed
        assert held.target not in printed


def test_an_update_document_says_what_was_published_or_would_be(store: Store):
    head, now = store.head(), status(store)
    done = documents.update_document(now, Change(added=("x",)), head)
    assert (done.published, done.change, done.version) == (True, Change(changed=("a",), retracted=("b",)), 2)
    planned = documents.update_document(now, Change(added=("x",)), None)
    assert (planned.published, planned.change, planned.effort) == (False, Change(added=("x",)), None)


def test_an_audit_document_names_what_is_lost_and_what_returned(store: Store):
    head = store.head()
    audit = Audit(2, head.held, head.retracted, "served", "now", rounding=0.5, returned=("b",))
    (found,) = documents.audit_document([audit], review(store, 2, [audit])).audits
    assert (found.facts, found.certified, found.lost, found.at_risk, found.returned) == (1, 1, 0, 1, ("b",))
    assert (found.adapter, [item.id for item in found.items]) == ("served", ["a"])
