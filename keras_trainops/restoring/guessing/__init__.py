"""Suggest rename rules from names, shapes and order."""
