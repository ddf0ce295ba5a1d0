"""One step of a plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import keras
import numpy as np

from keras_trainops.adapt.base import Adapter
from keras_trainops.checkpoints.arrays import nbytes


class Assignment(NamedTuple):
    """One variable and the key whose tensor it gets; several only with an adapter.

    `copies` are keys under which a weights file holds the same variable again, for another layer
    that shares it. They must agree.
    """

    path: str
    variable: keras.Variable
    keys: Sequence[str]
    adapter: Adapter | None = None
    copies: Sequence[str] = ()


def variable_bytes(variable: keras.Variable) -> int:
    """The bytes that a variable's elements take."""
    return nbytes(variable.shape, np.dtype(variable.dtype))
