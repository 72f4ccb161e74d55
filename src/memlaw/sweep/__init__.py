"""A grid of adapters, trained and measured: cells, packs, engines, the journal, and the laws fitted to them."""
