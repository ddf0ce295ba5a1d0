"""Projections that may be fused are found by the names of their layers."""

from __future__ import annotations

from typing import Any

import keras
import pytest
from keras import layers

from keras_trainops.layouts.groups import fusible

pytestmark = pytest.mark.once


class Own(layers.Layer):
    """An attention of its own, with other names."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.inner = [layers.Dense(6, name=name) for name in names]

    def build(self, shape: Any) -> None:
        for layer in self.inner:
            layer.build(shape)


@pytest.mark.parametrize(
    ("names", "places"),
    [
        (("q_proj", "v_proj", "k_proj", "o_proj"), [0, 0, 2, 2, 1, 1]),
        (("query_dense", "key_dense", "value_dense"), [0, 0, 1, 1, 2, 2]),
        (("query", "key", "values"), []),
        (("query", "key", "value", "q"), []),
    ],
)
def test_members_are_found_by_name(names: tuple[str, ...], places: list[int]) -> None:
    layer = Own(*names)
    layer.build((None, 4))
    found = fusible(layer)
    assert [found[id(v)].place for v in layer.weights if id(v) in found] == places


def test_two_attentions_have_groups_of_their_own() -> None:
    x = keras.Input((5, 6))
    first = layers.MultiHeadAttention(3, 2, name="first")
    second = layers.GroupQueryAttention(4, 6, 2, use_bias=False, name="second")
    model = keras.Model(x, second(first(x, x), x))
    found = fusible(model)
    assert len(found) == 9
    for variable in model.weights:
        if id(variable) in found:
            members = found[id(variable)].members
            layer = first if variable.path.startswith("first") else second
            assert set(members) <= set(map(id, layer.weights))
