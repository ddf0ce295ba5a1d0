"""Checkpoint formats that can be written, one tensor at a time."""
