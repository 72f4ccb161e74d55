"""MemFT in other people's trainers: transformers, TRL, Axolotl. Each module imports its own library and no other."""
