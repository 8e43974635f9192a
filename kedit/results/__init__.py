"""From the rows of a run to its numbers: summary, intervals, tables, curves. No model."""
