"""Thin commands: `python -m launch.<name>`, run from the repository root."""
