"""One step of a sweep: K adapters as one memlaw stack, against the step published with the paper, one after another.

    python benchmarks/probe_vs_reference.py [--repeats 5]

The published code (zjunlp/ParametricMemoryLaw) does not run, so its step is reimplemented from its description: the
whole model forward, full logits, the product A B made dense, and at every step a second forward without the adapter.
Otherwise as probe_vs_peft.py.
"""

from __future__ import annotations

from sides import against, published_arm

if __name__ == "__main__":
    against("reference", published_arm, __doc__)
