"""Engines run the packs of a probe: in this process, in a new process each, or on the workers of a Ray cluster."""
