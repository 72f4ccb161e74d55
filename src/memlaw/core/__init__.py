"""What every room speaks in: records with units, settings, canonical JSON, errors, files that survive a crash.

No numpy, no torch.
"""
