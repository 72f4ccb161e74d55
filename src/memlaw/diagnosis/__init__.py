"""What keeps facts from being recalled: rules to check before training (`lint`), measurement and verdicts after it.

`measure` runs the model. `verdicts` judges each record and counts, `reasons` explains why a record is not certified,
`patterns` finds what the failures of a set have in common, and `documents` writes all of it as JSON and reads it back.
"""
