"""The version of kedit, which results, deltas and checkpoints name."""

__version__ = "0.2.0"
