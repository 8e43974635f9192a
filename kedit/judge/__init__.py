"""A judge: another model, behind an OpenAI-compatible endpoint, reads the free answers of a run (docs/judge.md)."""
