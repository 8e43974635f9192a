"""Reports of runs: one page that stands by itself, and its tables as Markdown, CSV and LaTeX. No model, no network."""
