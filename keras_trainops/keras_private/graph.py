"""Keras's private API of graphs: which layers a functional model feeds, and lookup layers in it.

`tests/test_keras_private.py` holds each use to the behaviour relied on here, as it does those in
`_keras.py`.
"""

from __future__ import annotations

from typing import Any

import keras

from keras_trainops.keras_private.model import all_layers


def operation_before(operation: Any) -> Any:
    """What an operation of a functional model takes its first input from; None if nothing is known.

    Of a model within the model, the last operation in it.
    """
    parents = [parent for node in operation._inbound_nodes for parent in node.parent_nodes]
    before = parents[0].operation if parents else None
    while isinstance(before, keras.Model) and getattr(before, "outputs", None):
        before = before.outputs[0]._keras_history.operation
    return before


def vocabulary_layers(model: keras.Model) -> list[Any]:
    """The layers of a model that look words or numbers up in a vocabulary."""
    kinds = tuple(
        getattr(keras.layers, name)
        for name in ("StringLookup", "IntegerLookup", "TextVectorization")
    )
    found = [layer for layer in all_layers(model) if isinstance(layer, kinds)]
    inner = {id(getattr(layer, "_lookup_layer", None)) for layer in found}
    return [layer for layer in found if id(layer) not in inner]


def vocabulary_of(layer: Any) -> tuple[str, ...]:
    """The entries of a lookup layer by index, special ones included; none before it has any."""
    if not len(layer.get_vocabulary(include_special_tokens=False)):
        return ()
    return tuple(str(entry) for entry in layer.get_vocabulary())


def idf_of(layer: Any) -> Any:
    """The tf-idf weights of a lookup layer by index; None where it has none."""
    weights = getattr(getattr(layer, "_lookup_layer", layer), "idf_weights_const", None)
    return None if weights is None else weights.numpy()


def first_variables_behind(layer: Any) -> list[Any] | None:
    """The first layers with variables that a functional model feeds with a layer's output.

    Returns:
        The layers, or None where the layer is in no graph.
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
