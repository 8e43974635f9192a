"""Changes of a model: what they are, how they are applied and put back, lanes of them, and their files."""
