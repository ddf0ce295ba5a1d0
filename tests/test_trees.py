from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from keras_trainops.trees import first_leaf, mapped


class Pair(NamedTuple):
    first: Any
    second: Any


def test_leaves_are_mapped_and_containers_kept() -> None:
    one, two = np.ones(1), np.full(1, 2.0)
    tree = ([one, None, {"a": (two,)}], Pair(one, [two]), 3.0)
    found = mapped(lambda leaf: None if leaf is None else leaf + 1, tree)
    assert found == ([2, None, {"a": (3,)}], Pair(2, [3]), 4.0)
    assert isinstance(found[1], Pair)


def test_the_first_leaf_is_found_in_any_container() -> None:
    array = np.ones(1)
    assert first_leaf(array) is array
    assert first_leaf({"b": None, "c": (array, 2)}) is array
    assert first_leaf((None, [])) is None
