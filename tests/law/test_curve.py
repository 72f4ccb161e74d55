"""The curves of the law: values, slopes, bound, inverse, and what shifting their units does."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.slow_law import BOUNDED, GIVEN, TRUTHS, law
from memlaw.law.curve import FORMS, invert_soft_bound, soft_bound

sizes = st.floats(1, 512)

lengths = st.floats(1, 1e5)

forms = pytest.mark.parametrize("form", FORMS)


def theta_of(form: str, truth: dict[str, float]) -> np.ndarray:
    return np.array([math.log(value) if name in FORMS[form].positive else value for name, value in truth.items()])


def value(form: str, theta: np.ndarray, rank: float, length: float, loss_init: float) -> float:
    return FORMS[form].value(theta, *(np.array([at]) for at in (math.log(rank), math.log(length), loss_init)))[0][0]


@forms
@settings(deadline=None)
@given(rank=sizes, length=lengths, loss_init=st.floats(0.5, 15), b=st.floats(-2, 2), n=st.floats(0.5, 20))
def test_the_curves_are_those_written_out_cell_by_cell(form, rank, length, loss_init, b, n):
    truth = TRUTHS[form] | {name: at for name, at in (("b", b), ("n", n)) if name in TRUTHS[form]}
    found = value(form, theta_of(form, truth), rank, length, loss_init)
    expected = (
        law(truth, rank, length, loss_init) if form != "memory" else law(truth, rank, length, loss_init + GIVEN) - GIVEN
    )
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)
    if form == "bounded":
        assert found <= loss_init
        assert found <= value("paper", theta_of(form, truth)[:4], rank, length, loss_init)


def test_the_log_form_is_the_limit_of_the_paper_form_and_the_power_form_has_no_offset():
    """k = C alpha and a = C + b stay, alpha goes to 0."""
    alpha, k, a, q = 1e-6, 2.0, 14.0, 0.8
    paper = np.array([math.log(k / alpha), alpha, q * alpha, a - k / alpha])
    log = np.array([math.log(k), q, a])
    for rank, length in ((1, 100), (8, 100), (64, 5000)):
        assert value("paper", paper, rank, length, 12.0) == pytest.approx(
            value("log", log, rank, length, 12.0), abs=1e-3
        )
    without = np.array([math.log(240), 0.66, 0.56])
    assert value("power", without, 4, 900, 12.0) == value("paper", np.append(without, 0.0), 4, 900, 12.0)


@forms
@settings(deadline=None)
@given(rank=sizes, length=st.floats(100, 1e4), step=st.just(1e-6))
def test_slopes_are_differences_of_the_curve(form, rank, length, step):
    theta = theta_of(form, TRUTHS[form])
    at = [np.array([each]) for each in (math.log(rank), math.log(length), 12.0)]
    _, slopes = FORMS[form].value(theta, *at)
    for index in range(len(theta)):
        moved = step * np.eye(len(theta))[index]
        above, below = (FORMS[form].value(theta + sign * moved, *at)[0][0] for sign in (1, -1))
        assert slopes[0, index] == pytest.approx((above - below) / (2 * step), rel=1e-4, abs=1e-4)


@settings(deadline=None)
@given(u=st.floats(-5, 40), ceiling=st.floats(0.5, 15), n=st.floats(0.5, 20))
def test_slopes_of_the_bound_are_its_differences(u, ceiling, n):
    step = 1e-6
    _, slope, slope_bend = soft_bound(np.array([u]), np.array([ceiling]), n)
    if abs(u) > 10 * step:
        above, below = (soft_bound(np.array([u + s]), np.array([ceiling]), n)[0][0] for s in (step, -step))
        assert slope[0] == pytest.approx((above - below) / (2 * step), abs=1e-5)
    above, below = (soft_bound(np.array([u]), np.array([ceiling]), n * math.exp(s))[0][0] for s in (step, -step))
    assert slope_bend[0] == pytest.approx((above - below) / (2 * step), abs=1e-5)


@settings(deadline=None)
@given(share=st.floats(-1, 0.999), ceiling=st.floats(0.5, 15), n=st.floats(0.5, 20))
def test_the_soft_bound_can_be_inverted(share, ceiling, n):
    delta = np.array([share * ceiling])
    u = invert_soft_bound(delta, np.array([ceiling]), n)
    assert soft_bound(u, np.array([ceiling]), n)[0] == pytest.approx(delta, rel=1e-6, abs=1e-9)


def test_no_finite_u_reaches_the_ceiling():
    assert invert_soft_bound(np.array([3.0, 4.0]), np.array([3.0, 3.0]), 2.0).tolist() == [math.inf, math.inf]
    # A bend this soft asks for more than a float holds; that is infinite too, and no warning.
    assert invert_soft_bound(np.array([2.9999]), np.array([3.0]), 1e-3).tolist() == [math.inf]


@forms
@settings(deadline=None)
@given(delta=st.floats(1, 11.5), length=st.floats(100, 1e4))
def test_the_size_for_a_gain_has_that_gain(form, delta, length):
    theta = theta_of(form, TRUTHS[form])
    size = float(FORMS[form].size_for(theta, length, delta, 12.0))
    assert value(form, theta, size, length, 12.0) == pytest.approx(delta, rel=1e-9)
    further = FORMS[form].size_for(theta, length, delta, 12.0, extra=0.5)
    assert further > size
    laws = np.stack([theta, theta + 0.01])
    assert FORMS[form].size_for(laws, length, np.array([delta, delta]), 12.0)[0] == pytest.approx(size)


def test_the_size_is_zero_if_the_offset_is_enough_and_infinite_if_no_size_is():
    flat = np.array([0.0, 0.0, 0.5, 0.0])
    assert FORMS["paper"].size_for(flat, 100, 1.0, 12.0) == math.inf
    assert FORMS["bounded"].size_for(theta_of("bounded", BOUNDED), 100, 0.5, 12.0) == 0
    assert FORMS["bounded"].size_for(theta_of("bounded", BOUNDED), 100, 12.0, 12.0) == math.inf
    tiny_k = np.array([-700.0, 0.5, 0.0])
    assert FORMS["log"].size_for(tiny_k, 100, 1.0, 12.0) == math.inf


@forms
@settings(deadline=None)
@given(x=st.floats(-10, 10), y=st.floats(-10, 10))
def test_other_units_of_size_and_length_are_another_theta_of_the_same_curve(form, x, y):
    theta = theta_of(form, TRUTHS[form])
    there = FORMS[form].shifted(theta, x, y)
    at = np.array([1.3]), np.array([6.0])
    moved = FORMS[form].value(theta, at[0] + x, at[1] + y, np.array([12.0]))[0]
    assert FORMS[form].value(there, *at, np.array([12.0]))[0] == pytest.approx(moved, rel=1e-9, abs=1e-9)


@forms
def test_the_search_sees_the_same_curve_in_its_own_coordinates(form):
    phi = {"paper": [0.5, 0.7, 0.9, 6.0], "power": [1.0, 0.7, 0.6], "log": [0.5, 0.9, 6.0],
           "bounded": [0.5, 0.7, 0.9, 6.0, 1.2], "memory": [1.0, 0.7, 0.6, 1.2]}[form]  # fmt: skip
    x, y, start = np.array([-1.0, 0.3, 2.0]), np.array([0.5, -1.0, 1.0]), np.full(3, 12.0)
    found, slopes = FORMS[form].search_value(np.array(phi), x, y, start)
    assert found == pytest.approx(FORMS[form].value(FORMS[form].theta(np.array(phi)), x, y, start)[0])
    step = 1e-6
    for index in range(len(phi)):
        moved = step * np.eye(len(phi))[index]
        above, below = (FORMS[form].search_value(np.array(phi) + sign * moved, x, y, start)[0] for sign in (1, -1))
        assert slopes[:, index] == pytest.approx((above - below) / (2 * step), rel=1e-5, abs=1e-7)
