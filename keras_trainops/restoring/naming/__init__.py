"""Pair the keys of a checkpoint with the variables of a model, by name."""
