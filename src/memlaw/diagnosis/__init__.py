"""What keeps facts from being recalled: rules before training (`lint`), measurement and verdict after it.

`measure` runs the model; `verdicts` judges each record and counts, `reasons` says why one is not certified, `patterns`
what the failures of a set have in common, `documents` writes all of it as JSON and reads it back.
"""
