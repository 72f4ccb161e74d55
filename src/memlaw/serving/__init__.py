"""Did it stick where it runs? Facts asked of a live server, and judged as `memlaw.diagnosis` judges a model.

`client` speaks HTTP within limits, `dialects` the language of each server, `ask` turns the answers about one fact into
the measurements that a verdict needs, `journal` keeps them, `preflight` compares server and facts beforehand, and
`verify` does all of it for a memory set. No torch: the tokenizer is all that is loaded.
"""
