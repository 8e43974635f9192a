"""kedit edits facts inside large language models and measures, honestly, what the edit did."""

__version__ = "0.1.0"
