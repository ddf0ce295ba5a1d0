"""Copies of variables' values, on one replica or on each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops


def parts_of(variable: keras.Variable) -> list[Any]:
    """A variable's part on each replica of a strategy; where there is one, the variable itself.

    Parts may differ: sums of gradients and the numbers of metrics do. A variable then reads as one
    of them, or as their sum, and assigning to it assigns to all.
    """
    parts = getattr(variable.value, "values", None)
    return list(parts) if isinstance(parts, tuple) and len(parts) > 1 else [variable]


def copies_of(variable: keras.Variable) -> list[np.ndarray]:
    """A copy of a variable's value on each replica."""
    return [copy_of(part) for part in parts_of(variable)]


def assign_copies(variable: keras.Variable, copies: Sequence[np.ndarray]) -> None:
    """The inverse of `copies_of`, for as many replicas."""
    for part, value in zip(parts_of(variable), copies, strict=True):
        part.assign(value)


def copy_of(variable: Any) -> np.ndarray:
    """A copy of a variable's value: some backends would hand out the live buffer."""
    return np.array(ops.convert_to_numpy(ops.convert_to_tensor(variable)))
