"""Assign previous values again, and what layers derive from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_trainops import keras_private


def assigned(variable: keras.Variable, value: Any) -> bool:
    """Assign a value, with a second try after an exception; return True if it succeeded."""
    for _ in range(2):
        try:
            variable.assign(value)
        except BaseException:
            continue
        return True
    return False


def derive_again(model: keras.Model, variables: Sequence[keras.Variable]) -> None:
    """Let layers recompute values that they derive from their variables.

    `Normalization` uses constants that it computes from its variables. Keras also calls
    `finalize_state` when it loads weights.
    """
    changed = {id(variable) for variable in variables}
    for layer in keras_private.all_layers(model):
        derive = getattr(layer, "finalize_state", None)
        if derive is not None and any(id(v) in changed for v in layer.weights):
            derive()
