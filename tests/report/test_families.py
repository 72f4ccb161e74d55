from __future__ import annotations

import dataclasses

from helpers.sample import cell
from memlaw.report.families import named_families

SOURCES = {"d" * 64: "codes", "e" * 64: "names"}


def names(*cells, sources=SOURCES):
    return [family.name for family in named_families(cells, sources)]


def labels(*cells, sources=SOURCES):
    return [family.label for family in named_families(cells, sources)]


def trained(result, **settings):
    train = dataclasses.replace(result.cell.train, **settings)
    return dataclasses.replace(result, cell=dataclasses.replace(result.cell, train=train))


def test_a_single_family_is_named_by_data_method_placement_and_dtype():
    assert names(cell(1, 16), cell(2, 32, seed=7)) == ["codes, sft, mlp@3, float32"]
    assert labels(cell(1, 16)) == [""]
    assert named_families([], SOURCES) == []


def test_several_families_are_also_named_by_each_setting_that_differs():
    few = trained(cell(1, 16), steps=20, learning_rate=0.5)
    many = trained(cell(1, 16), steps=2000)
    assert names(few, many) == [
        "codes, sft, mlp@3, float32, learning rate 0.5, 20 steps",
        "codes, sft, mlp@3, float32, learning rate 0.02, 2,000 steps",
    ]
    assert labels(few, many) == ["codes, learning rate 0.5, 20 steps", "codes, learning rate 0.02, 2,000 steps"]


def test_a_label_leaves_out_what_all_families_share():
    assert labels(cell(1, 16), cell(1, 16, data="e" * 64)) == ["codes", "names"]
    assert labels(cell(1, 16), cell(1, 16, method="ot")) == ["codes, sft", "codes, ot"]


def test_models_and_data_without_a_name_of_their_own_are_told_apart_by_their_fingerprints():
    one, other = cell(1, 16), cell(1, 16)
    other = dataclasses.replace(other, cell=dataclasses.replace(other.cell, model="n" * 64))
    assert labels(one, other) == ["codes, model mmmmmmmm", "codes, model nnnnnnnn"]
    twice = {"d" * 64: "facts", "e" * 64: "facts"}
    assert labels(cell(1, 16), cell(1, 16, data="e" * 64), sources=twice) == ["facts (dddddddd)", "facts (eeeeeeee)"]
    assert names(cell(1, 16), sources={}) == ["data dddddddd, sft, mlp@3, float32"]
