"""Weights and models saved by Keras 3."""
