"""MemFT: which target tokens the training step is spent on (arXiv 2605.30260, section 4).

    L = sum_t w_t L_t / (sum_t w_t + eps),    w detached, over target tokens only.

*sft*: all target tokens alike. *ot* ("only threshold"): those with p <= 1/2, which greedy decoding need not emit. *sw*
("sliding window"): within a sample, the tokens up to and shortly after the first wrong one. *curriculum*: ot on more
and more of the samples. Two modifiers apply to each of them: *position* favours the earlier of the stubborn tokens,
*focus* (memlaw's own) the samples closest to full recall.
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
