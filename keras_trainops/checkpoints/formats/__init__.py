"""Checkpoint formats, one module or package each."""
