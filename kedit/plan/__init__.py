"""How much memory a run will take, from its configuration alone: no weights are read."""
