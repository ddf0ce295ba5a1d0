"""Warm starts: plan a restore, check it completely, and assign the weights."""
