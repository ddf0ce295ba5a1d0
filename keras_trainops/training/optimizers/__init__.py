"""Optimizers around other optimizers: transforms, and moving state to another set of variables."""
