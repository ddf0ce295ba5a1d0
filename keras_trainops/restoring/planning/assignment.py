"""One step of a plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import keras
import numpy as np

from keras_trainops.adapt.base import Adapter
from keras_trainops.checkpoints.dtypes import nbytes


class Assignment(NamedTuple):
    """A variable and the keys of the tensors that are assigned to it.

    Attributes:
        path: The variable's path.
        variable: The variable.
        keys: One key, or several if an adapter combines them.
        adapter: Converts the tensors; None to assign the tensor unchanged.
        copies: Keys under which a weights file stores the variable again, for another layer that
            shares it. Their values must agree.
    """

    path: str
    variable: keras.Variable
    keys: Sequence[str]
    adapter: Adapter | None = None
    copies: Sequence[str] = ()


def variable_bytes(variable: keras.Variable) -> int:
    """Return the size of a variable in bytes."""
    return nbytes(variable.shape, np.dtype(variable.dtype))
