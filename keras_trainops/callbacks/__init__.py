"""Callbacks; each is thin and calls one function of the layers below."""
