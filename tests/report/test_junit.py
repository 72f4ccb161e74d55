from __future__ import annotations

from xml.dom import minidom

from hypothesis import given
from hypothesis import strategies as st

from helpers import sample
from memlaw.report.junit import junit_xml


def cases(xml: str) -> dict[str, minidom.Element]:
    return {case.getAttribute("name"): case for case in minidom.parseString(xml).getElementsByTagName("testcase")}


def test_a_fact_fails_with_its_reason_unless_it_is_certified() -> None:
    report = sample.recall({"good": [0.1], "bad": [0.1, 2.0]})
    found = cases(junit_xml(report, suite="memlaw.verify"))
    assert found["good"].getElementsByTagName("failure") == []
    (failure,) = found["bad"].getElementsByTagName("failure")
    assert failure.getAttribute("type") == "stubborn"
    assert failure.getAttribute("message") == report.items[1].why
    assert found["bad"].getElementsByTagName("system-out") == []


def test_texts_are_included_where_they_are_given() -> None:
    report = sample.recall({"a": [0.1, 0.1]})
    (case,) = cases(junit_xml(report, suite="s", texts={"a": ("<x>", " & y")})).values()
    assert case.getElementsByTagName("system-out")[0].firstChild.data == "<x> & y"


@given(st.text(min_size=1))
def test_every_id_gives_xml_that_can_be_parsed(name: str) -> None:
    (case,) = minidom.parseString(
        junit_xml(sample.recall({name: [2.0]}), suite=name).encode("utf-8")
    ).getElementsByTagName("testcase")
    if name.isprintable():
        assert case.getAttribute("name") == name
