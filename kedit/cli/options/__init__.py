"""Options on the way from words to objects: layers of configurations, checks, messages."""
