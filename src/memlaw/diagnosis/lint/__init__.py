"""Rules that find, before any training, what would keep facts from being recalled."""
