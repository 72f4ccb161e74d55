"""The vocabulary of all rooms: records with units, settings, canonical JSON, errors, files that survive a crash.

No numpy, no torch.
"""
