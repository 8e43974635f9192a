"""Forward passes that cost no more than they must: replay, caches, packing, generation, what layers saw."""
