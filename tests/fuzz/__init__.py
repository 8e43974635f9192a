"""Files that kedit reads, changed by chance: it refuses them in a line or two, or does what is right.

`python -m tests.fuzz --data 3000 --benchmarks 1500 --deltas 800 --checkpoints 250 --configs 400 --statistics 600` runs
all; the tests run a few of each. Every case is seeded: its number and the run's seed give the same bytes again.
"""
