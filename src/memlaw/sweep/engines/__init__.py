"""Who runs the packs of a probe: this process, a fresh process for each, or the workers of a Ray cluster."""
