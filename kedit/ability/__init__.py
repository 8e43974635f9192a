"""General ability: what a model can do besides what was edited, before and after (docs/ability.md)."""
