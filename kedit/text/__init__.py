"""Strings alone: prompt templates, what stands between a prompt and its answer, whether an answer was given."""
