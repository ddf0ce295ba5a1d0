"""Private Keras API of graphs of layers, and of lookup layers.

`tests/test_keras_private.py` tests the behaviour that each use relies on.
"""

from __future__ import annotations

import itertools
from typing import Any

import keras

from keras_trainops.keras_private.model import all_layers


def operation_before(operation: Any) -> Any:
    """Return the operation that an operation of a functional model takes its first input from.

    None if it is not known; inside a nested model, the last operation of that model.
    """
    parents = itertools.chain(*(node.parent_nodes for node in operation._inbound_nodes))
    first = next(parents, None)
    before: Any = None if first is None else first.operation
    while isinstance(before, keras.Model) and getattr(before, "outputs", None):
        before = before.outputs[0]._keras_history.operation
    return before


def vocabulary_layers(model: keras.Model) -> list[Any]:
    """Return the layers of a model that look words or numbers up in a vocabulary."""
    kinds = tuple(
        getattr(keras.layers, name)
        for name in ("StringLookup", "IntegerLookup", "TextVectorization")
    )
    found = [layer for layer in all_layers(model) if isinstance(layer, kinds)]
    inner = {id(getattr(layer, "_lookup_layer", None)) for layer in found}
    return [layer for layer in found if id(layer) not in inner]


def vocabulary_of(layer: Any) -> tuple[str, ...]:
    """Return the entries of a lookup layer by index, including special ones."""
    if not len(layer.get_vocabulary(include_special_tokens=False)):
        return ()
    return tuple(str(entry) for entry in layer.get_vocabulary())


def idf_of(layer: Any) -> Any:
    """Return the tf-idf weights of a lookup layer by index; None if it has none."""
    weights = getattr(getattr(layer, "_lookup_layer", layer), "idf_weights_const", None)
    return None if weights is None else weights.numpy()


def first_variables_after(layer: Any) -> list[Any] | None:
    """Return the first layers with variables that a functional model feeds a layer's output to.

    None if the layer is not in a graph.
    """
    if not layer._outbound_nodes:
        return None
    found, seen, ahead = [], {id(layer)}, [layer]
    while ahead:
        for node in ahead.pop()._outbound_nodes:
            operation = node.operation
            if id(operation) in seen:
                continue
            seen.add(id(operation))
            if isinstance(operation, keras.Model) and getattr(operation, "inputs", None):
                ahead += [tensor._keras_history.operation for tensor in operation.inputs]
            elif isinstance(operation, keras.layers.Layer) and operation.weights:
                found.append(operation)
            else:
                ahead.append(operation)
    return found
