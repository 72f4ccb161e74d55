"""One step of a sweep: K adapters as one memlaw stack, against the same K adapters one after another in PEFT.

    python benchmarks/probe_vs_peft.py [--repeats 5]

Both sides train rank-8 LoRA on the MLP's output projection two thirds up, on one random row, from random weights, with
AdamW and clipping; their losses are compared before their times are. One thread, process CPU time, medians of
interleaved repeats, one JSON line a case. `ratio` above 1: memlaw is faster.
"""

from __future__ import annotations

from sides import against, peft_arm

if __name__ == "__main__":
    against("peft", peft_arm, __doc__)
