"""Optimizers of a stack: each of the K adapters takes the step that it would take alone."""
