from __future__ import annotations

from memlaw.core.config import PRESETS
from memlaw.core.precision import LARGEST_MARGIN, MARGINS, TOLERANCE
from memlaw.core.recall import LN2


def test_every_precision_has_both_numbers_and_a_margin_that_can_be_reached() -> None:
    assert MARGINS.keys() == TOLERANCE.keys()
    assert all(TOLERANCE[dtype] < margin < LARGEST_MARGIN < LN2 for dtype, margin in MARGINS.items())


def test_the_default_preset_trains_for_float32() -> None:
    assert PRESETS["default"].margin == MARGINS["float32"]
