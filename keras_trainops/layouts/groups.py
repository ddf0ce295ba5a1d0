"""Find projections that other libraries may fuse into one tensor: query, key and value."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras
from keras import layers

from keras_trainops import keras_private

_ROLE = re.compile(
    "(q(?:uery)?|k(?:ey)?|v(?:alue)?)"
    "(?:_(?:dense|proj|projector|projection|linear|lin|dense_layer))?"
)
_ROLES = "qkv"


class Fusible(NamedTuple):
    """The place of a variable among those that may be fused.

    Attributes:
        members: The `id` of each of these variables, in the order query, key, value.
        place: The index of the variable among them.
    """

    members: tuple[int, ...]
    place: int


def fusible(model: keras.layers.Layer) -> dict[int, Fusible]:
    """Return the places of all kernels and biases of query, key and value, by `id(variable)`.

    They are recognised by the names of their layers, such as `query`, `key_dense` and `v_proj`.

    Args:
        model: A built model or layer.

    Example:
        >>> import keras
        >>> attention = keras.layers.MultiHeadAttention(2, 3)
        >>> attention.build((None, 5, 4), (None, 5, 4))
        >>> places = fusible(attention)
        >>> [places[id(v)].place for v in attention.weights if id(v) in places]
        [0, 0, 1, 1, 2, 2]
    """
    found: dict[int, Fusible] = {}
    inside = {
        id(layer): keras_private.inner_layers(layer) for layer in keras_private.all_layers(model)
    }
    for inner in sorted(inside.values(), key=len):  # the innermost owner has the fewest
        for members in _groups(inner):
            for place, variable in enumerate(members):
                ids = tuple(map(id, members))
                found.setdefault(id(variable), Fusible(ids, place))
    return found


def _groups(inner: Sequence[keras.layers.Layer]) -> Iterator[list[keras.Variable]]:
    """Yield the kernels of query, key and value among these layers, and their biases."""
    by_role: dict[str, list[Any]] = {role: [] for role in _ROLES}
    for layer in inner:
        match = _ROLE.fullmatch(layer.name)
        if match and layer.built and isinstance(layer, (layers.Dense, layers.EinsumDense)):
            by_role[match[1][0]].append(layer)
    if any(len(found) != 1 for found in by_role.values()):
        return
    projections = [by_role[role][0] for role in _ROLES]
    yield [keras_private.kernel_of(layer) for layer in projections]
    biases = [layer.bias for layer in projections if layer.bias is not None]
    if len(biases) == len(projections):
        yield biases
