"""Trees of tensors, mapped faster than by general libraries; an eager step does it every time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras


def first_leaf(tree: Any) -> Any:
    """Return the first leaf of a tree that is not None; None if there is none."""
    if tree is None or hasattr(tree, "dtype"):
        return tree
    if type(tree) in (tuple, list):
        return next((leaf for leaf in map(first_leaf, tree) if leaf is not None), None)
    return next((leaf for leaf in keras.tree.flatten(tree) if leaf is not None), None)


def mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    """Return a tree with the results of a function on its leaves.

    Args:
        function: Takes a leaf, which may be None.
        tree: Tuples, lists and dictionaries, nested; or a leaf. Other containers are left to Keras.
    """
    kind = type(tree)
    if kind is tuple or kind is list:
        return kind([mapped(function, each) for each in tree])
    if kind is dict:
        return {key: mapped(function, each) for key, each in tree.items()}
    if tree is None or hasattr(tree, "dtype"):
        return function(tree)
    return keras.tree.map_structure(function, tree)
