"""Variables that are spread over devices, and over the processes of a run."""

from __future__ import annotations

import keras
import numpy as np

from keras_trainops.backends import backend
from keras_trainops.checkpoints.dtypes import nbytes
from keras_trainops.checkpoints.storage.parts import Index, shape_of, whole


def held_parts(variable: keras.Variable) -> list[Index]:
    """Return the parts of a variable that this process holds."""
    parts = backend().parts_here(variable)
    return [whole(variable.shape)] if parts is None else parts


def is_spread(variable: keras.Variable) -> bool:
    """Return True if no device holds the whole variable."""
    return held_parts(variable) != [whole(variable.shape)]


def bytes_here(variable: keras.Variable) -> int:
    """Return the size of the parts of a variable that this process holds, each counted once."""
    dtype = np.dtype(variable.dtype)
    return sum(nbytes(shape_of(part), dtype) for part in held_parts(variable))
