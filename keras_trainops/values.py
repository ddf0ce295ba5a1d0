"""Copies of variables' values, on one replica or on each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_trainops.backends import backend


def parts_of(variable: keras.Variable) -> list[Any]:
    """Return a variable's part on each replica of a strategy, or the variable itself on one.

    Parts may differ, as those of gradient sums and metrics do. Such a variable reads as one of its
    parts, or as their sum, and an assignment to it reaches all parts.
    """
    return backend().parts_of(variable)


def copies_of(variable: keras.Variable) -> list[np.ndarray]:
    """Return a copy of a variable's value on each replica."""
    return [copy_of(part) for part in parts_of(variable)]


def assign_copies(variable: keras.Variable, copies: Sequence[np.ndarray]) -> None:
    """Assign the result of `copies_of`, which must come from as many replicas."""
    for part, value in zip(parts_of(variable), copies, strict=True):
        part.assign(value)


def copy_of(variable: Any) -> np.ndarray:
    """Return a copy of a variable's value; some backends would return the live buffer."""
    return np.array(view_of(variable))


def view_of(variable: Any) -> np.ndarray:
    """Return a variable's value to read from at once; it may be the live buffer."""
    return np.asarray(ops.convert_to_numpy(ops.convert_to_tensor(variable)))
