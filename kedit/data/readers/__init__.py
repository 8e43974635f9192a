"""One reader for each file format; plain functions that yield records."""
