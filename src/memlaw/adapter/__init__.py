"""Where adapters sit, K of them as one stack of tensors, and one of them as PEFT files."""
