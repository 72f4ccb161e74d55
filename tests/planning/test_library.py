"""A library of laws: files that survive a round trip, the nearest law for a plan, and how it differs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.slow_law import BOUNDED, MEMORY, simulate
from memlaw.core.errors import FitError
from memlaw.law import LawFit, Origin, fit_law, published
from memlaw.planning import BORROWED_FACTOR, CellRecall, default_law
from memlaw.planning.library import KnownLaw, PlanContext, adapt_law, library, listing, nearest

USE = PlanContext(
    model="org/model",
    outline="o" * 64,
    placement="down_proj@4",
    tokens=3000,
    optimizer="adamw",
    tokenizer_fingerprint="t" * 64,
    model_fingerprint="m" * 64,
    data_fingerprint="d" * 64,
    loss_init=12.0,
    loss_memoryless=7.0,
)

ORIGIN = Origin(
    model="org/model",
    model_fingerprint="m" * 64,
    outline="o" * 64,
    tokenizer_fingerprint="t" * 64,
    placement="down_proj@4",
    parameters_per_rank=640.0,
    data="random tokens",
    data_fingerprint="d" * 64,
    method="sft",
    steps=600,
    dtype="float32",
    date="2026-05-30",
    version="0.1.0",
)

CELLS = (CellRecall(0.5, 3, 10, 100), CellRecall(0.05, 10, 10, 100))


def law(source: str = "some cells", form: str = "bounded", **origin: Any) -> LawFit:
    truth = MEMORY if form == "memory" else BOUNDED
    return replace(fit_law(simulate(truth, noise=0.05), form, source=source), origin=replace(ORIGIN, **origin))


LAW = law()

OTHER = {"model": "org/other", "model_fingerprint": "x" * 64, "outline": "y" * 64}


def known(source: str = "some cells", **origin: Any) -> KnownLaw:
    return KnownLaw(replace(LAW, source=source, origin=replace(ORIGIN, **origin)), CELLS)


@pytest.mark.parametrize("form", ["bounded", "memory"])
@pytest.mark.parametrize("cells", [(), CELLS], ids=["alone", "with cells"])
def test_a_law_with_its_cells_comes_back_from_its_file(form: str, cells: tuple[CellRecall, ...]) -> None:
    one = KnownLaw(law(form=form), cells)
    assert KnownLaw.from_json(one.to_json(), name="x") == one


def test_the_file_of_a_law_alone_is_read_too() -> None:
    assert KnownLaw.from_json(LAW.to_json(), name="x") == KnownLaw(LAW)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"laws/x\.json is not JSON \(line 1\)"),
        ("[]", r"laws/x\.json is JSON, but not a law of memlaw"),
        ("{}", "not a law of memlaw"),
        ('"text"', "is not JSON|not a law of memlaw"),
        ("[" * 100_000, "nested too deeply|is not JSON"),
    ],
)
def test_a_file_that_is_not_a_law_is_named(text: str, message: str) -> None:
    with pytest.raises(FitError, match=message):
        KnownLaw.from_json(text, name="laws/x.json")


@pytest.mark.parametrize(
    "rows",
    [
        None,
        7,
        "rows",
        [7],
        [[]],
        [[0.5, 1, 2]],
        [[0.5, 1, 2, 3, 4]],
        [["many", 1, 2, 3]],
        [[math.nan, 1, 2, 3]],
        [[math.inf, 1, 2, 3]],
        [[-0.5, 1, 2, 3]],
        [[0.5, 3, 2, 4]],
        [[0.5, -1, 2, 4]],
        [[0.5, 1, 5, 4]],
        [[0.5, 0, 0, 4]],
        [[0.5, math.inf, 2, 4]],
        [[10**400, 1, 2, 4]],
    ],
    ids=str,
)
def test_impossible_cells_mean_a_damaged_file(rows: Any) -> None:
    file = json.dumps({**json.loads(LAW.to_json()), "recalled": rows})
    with pytest.raises(FitError, match=r"laws/x\.json is a damaged law file: .*\. Fit the law again\."):
        KnownLaw.from_json(file, name="laws/x.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=8,
)


@given(entry=st.sampled_from([*json.loads(KnownLaw(LAW, CELLS).to_json())]), value=JSON)
@settings(max_examples=200, deadline=None)
def test_any_value_of_an_entry_gives_a_law_or_a_fit_error(entry: str, value: Any) -> None:
    file = json.dumps({**json.loads(KnownLaw(LAW, CELLS).to_json()), entry: value})
    try:
        found = KnownLaw.from_json(file, name="x")
    except FitError:
        return
    assert isinstance(found.law, LawFit)


@given(st.one_of(st.text(max_size=40), JSON.map(json.dumps)))
@settings(deadline=None)
def test_any_other_text_is_a_fit_error(text: str) -> None:
    with pytest.raises(FitError, match="x is"):
        KnownLaw.from_json(text, name="x")


@given(at=st.integers(0, 10_000), byte=st.integers(32, 126))
@settings(deadline=None)
def test_a_flipped_character_gives_a_law_or_a_fit_error(at: int, byte: int) -> None:
    file = known().to_json()
    at %= len(file)
    try:
        KnownLaw.from_json(file[:at] + chr(byte) + file[at + 1 :], name="x")
    except FitError as error:
        assert str(error).startswith("x is")  # noqa: PT017 - most flips are no error


def test_a_damaged_file_leaves_the_others_usable(tmp_path: Path) -> None:
    (tmp_path / "good.json").write_text(known().to_json(), encoding="utf-8")
    (tmp_path / "cut.json").write_text(known().to_json()[:100], encoding="utf-8")
    (tmp_path / "other.json").write_text("{}", encoding="utf-8")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "notes.txt").write_text("no law", encoding="utf-8")
    found = library(tmp_path)
    assert found.laws == {"good": known()}
    assert len(found.damaged) == 4
    for name, words in (("cut", "is not JSON"), ("other", "not a law"), ("bytes", "cannot be read"),
                        ("folder", "cannot be read")):  # fmt: skip
        assert any(f"{name}.json" in sentence and words in sentence for sentence in found.damaged)


def test_a_missing_directory_is_an_empty_library(tmp_path: Path) -> None:
    assert library(tmp_path / "none") == library(tmp_path)
    assert library(tmp_path).laws == {}


def test_a_list_has_a_row_a_law_and_the_published_one_last() -> None:
    own, last = listing({"mine": known()})
    assert (own["name"], last["name"]) == ("mine", "published")
    assert own == {
        "name": "mine", "model": "org/model", "placement": "down_proj@4", "data": "random tokens", "method": "sft",
        "optimizer": "adamw", "steps": 600, "date": "2026-05-30", "version": "0.1.0", "form": "bounded",
        "status": "ok", "axis": "rank", "ranks": [1.0, 32.0], "lengths": [500.0, 8000.0], "n": 36, "r2": LAW.r2,
    }  # fmt: skip
    assert last["model"] == published.ORIGIN["model"]
    nameless, _ = listing({"x": KnownLaw(replace(LAW, origin=None))})
    assert nameless["model"] is None
    json.dumps([own, last], allow_nan=False)


MEMORYLESS = ((500.0, 7.0), (8000.0, 7.0))

FURTHER: dict[str, KnownLaw] = {
    "another model": known(**OTHER),
    "another placement": known(placement="q_proj@4"),
    "other data": known(data_fingerprint="e" * 64),
    "another optimizer": known(data_fingerprint="e" * 64, optimizer="muon"),
    "doubtful": KnownLaw(replace(known(data_fingerprint="e" * 64).law, status="Not identifiable.")),
    "other losses": KnownLaw(
        replace(known(data_fingerprint="e" * 64).law, loss_init=((500.0, 3.0), (8000.0, 3.0)), status="Hm.")
    ),
}
"""Each further from USE than the one before allows: in one respect that counts more."""


@pytest.mark.parametrize("name", FURTHER)
def test_a_law_of_all_that_is_planned_for_comes_before_any_other(name: str) -> None:
    for shelf in ([known("near"), FURTHER[name]], [FURTHER[name], known("near")]):
        assert nearest(shelf, USE).law.source == "near"


@pytest.mark.parametrize(
    ("near", "far"),
    [
        (FURTHER["another placement"], FURTHER["another model"]),
        (FURTHER["other data"], FURTHER["another placement"]),
        (FURTHER["doubtful"], FURTHER["another placement"]),
        (FURTHER["other data"], FURTHER["another optimizer"]),
        (FURTHER["doubtful"], FURTHER["another optimizer"]),
        (FURTHER["other data"], FURTHER["doubtful"]),
        (FURTHER["doubtful"], FURTHER["other losses"]),
    ],
    ids=[
        "model before placement",
        "placement before data",
        "placement before doubt",
        "optimizer",
        "optimizer before doubt",
        "doubt",
        "losses",
    ],
)
def test_what_counts_more_comes_first(near: KnownLaw, far: KnownLaw) -> None:
    near = replace(near, law=replace(near.law, source="near"))
    assert nearest([far, near], USE).law.source.startswith("near")
    assert nearest([near, far], USE).law.source.startswith("near")


def test_of_two_kinds_of_data_the_one_of_like_losses_is_taken_even_if_no_model_was_run() -> None:
    from_files = replace(USE, model_fingerprint=None, data_fingerprint="f" * 64, loss_init=None, loss_memoryless=2.5)
    noise = KnownLaw(replace(LAW, source="noise", loss_memoryless=((500.0, 7.0), (8000.0, 7.0))))
    book = KnownLaw(replace(LAW, source="book", loss_memoryless=((500.0, 2.3), (8000.0, 2.3))))
    assert nearest([noise, book], from_files).law.source == "book"
    assert nearest([noise, book], replace(from_files, loss_memoryless=6.9)).law.source == "noise"


def test_of_two_like_laws_the_one_measured_at_this_length_is_taken() -> None:
    short = KnownLaw(replace(LAW, source="short", lengths=(16.0, 128.0)))
    for shelf in ([short, known("long")], [known("long"), short]):
        assert nearest(shelf, USE).law.source == "long"
        assert nearest(shelf, replace(USE, tokens=100)).law.source == "short"


def test_without_a_usable_law_the_published_one_is_taken() -> None:
    without_error_bars = KnownLaw(replace(LAW, covariance=None, sigma=None))
    for shelf in ([], [without_error_bars]):
        found = nearest(shelf, USE)
        assert found.law == default_law()
        assert found.cells == ()
        assert "Its model is Qwen3-8B, not org/model." in found.near


def test_a_law_of_the_same_context_is_used_as_it_is_without_remarks() -> None:
    assert adapt_law(known(), USE) == known()


def test_a_law_of_another_model_is_borrowed_over_parameters_with_wider_uncertainty() -> None:
    found = adapt_law(known(**OTHER), USE)
    assert found.law.axis == "parameters"
    assert found.law.caveat.startswith("Borrowed: this law was fitted to org/other, not to this model.")
    assert found.near[0] == "Its model is org/other, not org/model."
    assert found.cells == CELLS
    for length in (600, 3000):
        assert found.law.rank_for(length) == pytest.approx(640 * LAW.rank_for(length))
    assert spread_of_log_size(found.law) == pytest.approx(
        math.hypot(spread_of_log_size(LAW), math.log(BORROWED_FACTOR) / 1.96), rel=1e-3
    )


def spread_of_log_size(one: LawFit) -> float:
    """Standard deviation of ln of the size asked for, by differences."""
    step = 1e-5
    size = math.log(float(one.curve.size_for(one.theta, 3000, 11.3, 12.0)))
    slopes = []
    for at in range(len(one.theta)):
        moved = one.theta.copy()
        moved[at] += step
        slopes.append((math.log(float(one.curve.size_for(moved, 3000, 11.3, 12.0))) - size) / step)
    assert one.covariance is not None
    return math.sqrt(
        sum(
            slopes[row] * one.covariance[row][column] * slopes[column]
            for row in range(len(slopes))
            for column in range(len(slopes))
        )
    )


def test_a_law_of_another_placement_says_just_that() -> None:
    found = adapt_law(known(placement="q_proj@4"), USE)
    assert found.law.axis == "parameters"
    assert found.law.caveat == (
        "This law was fitted at q_proj@4, not at down_proj@4. Adapters are compared by their number of parameters, and "
        "the rank is expected to be right only within a factor of 4."
    )
    assert found.near == ("Its adapters sit at q_proj@4, not at down_proj@4.",)


def test_a_law_over_parameters_of_several_placements_holds_at_each_of_them() -> None:
    over = fit_law(
        [replace(point, parameters=640 * point.rank) for point in simulate(BOUNDED, noise=0.05)], "bounded",
        axis="parameters",
    )  # fmt: skip
    several = KnownLaw(replace(over, origin=replace(ORIGIN, placement=None, parameters_per_rank=None)))
    assert adapt_law(several, USE) == several
    other_model = adapt_law(KnownLaw(replace(over, origin=replace(ORIGIN, placement=None, **OTHER))), USE)
    assert other_model.law.caveat.startswith("Borrowed")


def test_a_law_over_ranks_that_does_not_say_how_large_they_are_cannot_be_borrowed() -> None:
    with pytest.raises(FitError, match=r"The law of some cells was fitted over ranks at another placement or model"):
        adapt_law(known(**OTHER, parameters_per_rank=None), USE)


def test_a_law_of_unknown_origin_is_used_as_it_is_and_the_plan_says_so() -> None:
    found = adapt_law(KnownLaw(replace(LAW, origin=None)), USE)
    assert found.law == replace(LAW, origin=None)
    assert found.near == ("Its file does not say which model, placement and data it was fitted to.",)


def test_a_law_of_another_tokenizer_is_remarked_on() -> None:
    found = adapt_law(known(tokenizer_fingerprint="u" * 64), USE)
    assert found.near == (
        "Its lengths were counted with another tokenizer, which splits the same text into a different number of "
        "tokens.",
    )
    assert adapt_law(known(tokenizer_fingerprint=None), USE).near == ()


def test_weights_that_were_not_compared_are_remarked_on() -> None:
    from_files = replace(USE, model_fingerprint=None)
    found = adapt_law(known(), from_files)
    assert found.law == LAW
    assert found.near == ("Only the model's name and shape were compared: add --calibrate to compare the weights.",)


def test_other_weights_under_the_same_name_are_another_model() -> None:
    assert adapt_law(known(model_fingerprint="x" * 64), USE).law.caveat.startswith("Borrowed")


def test_another_shape_under_the_same_name_is_another_model() -> None:
    from_files = replace(USE, model_fingerprint=None)
    assert adapt_law(known(outline="y" * 64), from_files).law.caveat.startswith("Borrowed")


def test_the_same_weights_under_another_name_are_the_same_model() -> None:
    assert adapt_law(known(model="a/copy"), USE) == known(model="a/copy")


def test_the_same_shape_under_another_name_may_be_the_same_model() -> None:
    found = adapt_law(known(model="a/copy"), replace(USE, model_fingerprint=None))
    assert found.law.caveat.startswith("Borrowed")
    assert found.near == (
        "Its model is a/copy, not org/model. The shapes are the same: add --calibrate to compare the weights.",
    )


def test_cells_of_another_optimizer_than_the_one_that_will_train_are_remarked_on() -> None:
    found = adapt_law(known(), replace(USE, optimizer="muon"))
    assert found.law == LAW
    assert found.near == ("Its cells were trained with adamw, not with muon.",)
    assert adapt_law(known(optimizer="muon"), replace(USE, optimizer="muon")).near == ()
    assert adapt_law(known(optimizer="muon"), replace(USE, optimizer=None)).near == ()


def test_a_file_that_names_no_optimizer_is_of_cells_that_adamw_trained() -> None:
    values = json.loads(known(optimizer="muon").to_json())
    assert KnownLaw.from_json(json.dumps(values), name="x").law.origin.optimizer == "muon"
    del values["origin"]["optimizer"]
    assert KnownLaw.from_json(json.dumps(values), name="x") == known(optimizer="adamw")
    assert json.loads(known(optimizer="adamw").to_json()) == values


def test_other_data_are_named_as_what_the_cells_stored() -> None:
    assert adapt_law(known(data_fingerprint="e" * 64), USE).near == ("Its cells stored random tokens.",)


def test_a_law_that_was_borrowed_before_is_not_borrowed_again() -> None:
    once = adapt_law(known(**OTHER), USE)
    assert adapt_law(once, USE).law == once.law
