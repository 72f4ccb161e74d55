"""The sentences about a fit: why it failed, why its numbers should not be trusted, and what to note about its cells."""

from __future__ import annotations

NO_FINAL_LOSS = (
    "The bounded form needs L_init = final_loss + delta_loss, and no cell has a final loss. Add the column final_loss, "
    "or fit the paper's form."
)
NO_MEMORYLESS_LOSS = (
    "The memory form needs L_init', the loss of the best predictor without memory, and no cell has it. Fit a probe, "
    "which measures it, or fit the bounded form."
)
ALL_SATURATED = (
    "All cells are saturated (final loss <= 0.69 nats): every text fitted, so they show a lower bound on the capacity "
    "but not its limit. Probe smaller ranks or longer lengths."
)
ONE_RANK = "All cells have one {axis}, so they do not show how dL grows with it. Probe at least two."
ONE_LENGTH = "All cells have one length, so they do not show how dL falls with it. Probe at least two."
TOO_FEW = (
    "{n} usable cells are too few to estimate {p} parameters and their errors: at least {needed} are needed. Finish "
    "more of the grid."
)
NO_REPLICATES = (
    "No cell has replicates, so their scatter cannot weight the cells. Probe with several seeds, or fit absolute "
    "residuals."
)
NO_GROWTH = "dL does not grow with the {axis} in these cells, so they show no capacity. Check that training converged."
RAN_AWAY = (
    "Not identifiable: dL changes so steeply between neighbouring {axis} values or lengths that the fitted scale "
    "overflows. Check the cells."
)
NOT_IDENTIFIABLE = (
    "Not identifiable: other parameters fit these cells equally well, as happens if longer lengths were measured only "
    "at higher ranks. Measure every rank at every length."
)
NOT_IDENTIFIABLE_POWER = (
    "Not identifiable: alpha's 95% interval includes 0, where the power law becomes a logarithm and C diverges. "
    "Predictions within the fitted range may still be good, but the exponents have no meaning. Widen the grid, or use "
    "the log form, which is that limit."
)
NOT_IDENTIFIABLE_GROWTH = (
    "Not identifiable: the 95% interval of {name} includes 0, so dL may not grow with the {axis} at all. Widen the "
    "grid, or add replicates."
)
NOT_IDENTIFIABLE_OFFSET = (
    "Not identifiable: the offset b cannot be separated from the power term (its 95% interval is wider than the "
    "largest dL). Predictions within the fitted range may still be good, but the parameters have no meaning. Widen the "
    "grid, or use the power form (no offset) or the log form."
)
NOT_IDENTIFIABLE_BEND = (
    "Not identifiable: too few cells are close to saturation to tell how sharply dL bends towards L_init (n). Add "
    "cells near saturation, or fit the paper's form."
)
AT_BOUND = "{names} stopped at the edge of the search, so the error bars are not valid. Widen the grid: {advice}."

WORSE = "Training raised the loss of {count} of {n} cells (dL < 0). They are included; check that training converged."
MERGED = "{runs} runs are replicates of {n} cells; each cell counts once, with the mean of its runs."
LEFT_OUT = "{count} saturated cells (final loss <= 0.69 nats) are left out: only the bounded and memory forms use them."
NO_CEILING = "{count} points without {loss} are left out: the {form} form needs it."
IMPOSSIBLE = (
    "Do not plan with the {form} form: at {axis} {size:,.6g}, length {length:,.6g}, it predicts that the loss falls by "
    "{delta:.3g} nats, where it was {start:.3g}."
)
