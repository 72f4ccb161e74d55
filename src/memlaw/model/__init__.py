"""One frozen base model: find its files, load it, read its shape with or without torch, run it fast and exactly."""
