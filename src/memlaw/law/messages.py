"""The sentences of a fit: why it failed, or why it should not be believed."""

from __future__ import annotations

NO_FINAL_LOSS = (
    "The bounded form needs L_init = final_loss + delta_loss, and no cell has a final loss. Add the column final_loss, "
    "or fit the paper's form."
)

NO_MEMORYLESS_LOSS = (
    "The memory form needs L_init', the loss of the best predictor that remembers nothing, and no cell has it. Probes "
    "measure it; fit the bounded form to a table."
)

ALL_SATURATED = (
    "All cells are saturated (final loss <= 0.69 nats): they show that the adapter holds this much, not where it "
    "stops. Probe smaller ranks or longer lengths."
)

ONE_RANK = "All cells have one {axis}, so nothing tells how dL grows with it. Probe at least two."

ONE_LENGTH = "All cells have one length, so nothing tells how dL falls with it. Probe at least two."

TOO_FEW = (
    "{n} usable cells cannot determine {p} parameters and leave any doubt to measure: at least {needed} are needed. "
    "Finish more of the grid."
)

NO_REPLICATES = (
    "No cell was run twice, so replicates cannot weigh the cells. Probe with several seeds, or fit absolute residuals."
)

NO_GROWTH = "dL does not grow with the {axis} in these cells, so they show no capacity. Check that training converged."

RAN_AWAY = (
    "Not identifiable: dL jumps so much from one {axis} or length to the next that the law's scale is beyond any "
    "number. Check the cells."
)

NOT_IDENTIFIABLE = (
    "Not identifiable: other parameters fit these cells just as well, as when longer lengths were only measured at "
    "higher ranks. Cross every rank with every length."
)

NOT_IDENTIFIABLE_POWER = (
    "Not identifiable: alpha's 95% interval reaches 0, where the power becomes a logarithm and C runs to infinity. "
    "Predictions inside the fitted range may still be good; the exponents mean nothing. Widen the grid, or use the log "
    "form, which is that limit."
)

NOT_IDENTIFIABLE_GROWTH = (
    "Not identifiable: the 95% interval of {name} reaches 0, so dL may not grow with the {axis} at all. Widen the "
    "grid, or give replicates."
)

NOT_IDENTIFIABLE_OFFSET = (
    "Not identifiable: the offset b cannot be told from the power term (its 95% interval spans more nats than the "
    "largest dL). Predictions inside the fitted range may still be good; the parameters mean nothing. Widen the grid, "
    "or use the power form (no offset) or the log form."
)

NOT_IDENTIFIABLE_BEND = (
    "Not identifiable: how sharply dL bends to L_init (n), since too few cells are near it. Add cells near saturation, "
    "or fit the paper's form."
)

AT_BOUND = "{names} stopped at the edge of the search, so the error bars mean nothing. Widen the grid: {advice}."

WORSE = "{count} of {n} cells got worse by training (dL < 0); they are kept. Check that their training converged."

MERGED = "{runs} runs are replicates of {n} cells: each cell counts once, by their mean."

LEFT_OUT = "{count} saturated cells (final loss <= 0.69 nats) are left out: only the bounded form can use them."

NO_CEILING = "{count} points without {loss} are left out: the {form} form needs it."
