"""What a model says to probes, and the scores of it."""
