"""MemFT: which target tokens the training step is spent on (arXiv 2605.30260, section 4).

    L = sum_t w_t L_t / (sum_t w_t + eps),    w detached, over target tokens only.

*sft*: all target tokens alike. *ot* ("only threshold"): those the model would not yet surely emit, p <= 1/2. *sw*
("sliding window"): within a sample, the tokens around and shortly behind the first wrong one. *curriculum*: ot on more
and more of the samples. Two modifiers go with each of them: *position* spends the step on the earlier of the stubborn
tokens, *focus* (memlaw's own) on the samples nearest to full recall.
"""

from memlaw.losses.curriculum import CURRICULA, PublishedCurriculum, curriculum_order, curriculum_rows, exposed
from memlaw.losses.memft import MemFTSums, memft_loss, memft_sums, memft_token_sums
from memlaw.losses.memft_head import memft_head_loss
from memlaw.losses.settings import MemFT
from memlaw.losses.targets import IGNORED
from memlaw.losses.weights import (
    EPS,
    Samples,
    focus_factor,
    pointwise_weights,
    position_factor,
    record_factor,
    token_weights,
    weighted_mean,
    weighted_terms,
)
from memlaw.losses.window import WindowPass, WindowState

__all__ = [
    "CURRICULA",
    "EPS",
    "IGNORED",
    "MemFT",
    "MemFTSums",
    "PublishedCurriculum",
    "Samples",
    "WindowPass",
    "WindowState",
    "curriculum_order",
    "curriculum_rows",
    "exposed",
    "focus_factor",
    "memft_head_loss",
    "memft_loss",
    "memft_sums",
    "memft_token_sums",
    "pointwise_weights",
    "position_factor",
    "record_factor",
    "token_weights",
    "weighted_mean",
    "weighted_terms",
]
