"""What a run stands on: processes, signals, its folder and files, journal, progress, provenance, cache. No model."""
