"""Arrays in memory, and the weights of another model, as checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from keras_trainops.readers.base import Checkpoint


class ArraysCheckpoint(Checkpoint):
    """A mapping from name to anything NumPy takes for an array."""

    format = "arrays in memory"

    def __init__(self, arrays: Mapping[str, Any], location: str = "a mapping of arrays") -> None:
        super().__init__(location)
        self._arrays = {key: np.asarray(value) for key, value in arrays.items()}

    def _keys(self) -> Mapping[str, np.ndarray]:
        return self._arrays

    def shape(self, key: str) -> tuple[int, ...]:
        return self._arrays[key].shape

    def dtype(self, key: str) -> np.dtype:
        return self._arrays[key].dtype

    def _read(self, key: str) -> np.ndarray:
        return self._arrays[key]


class VariablesCheckpoint(Checkpoint):
    """The variables of another model, read one by one when asked for."""

    format = "Keras model"

    def __init__(
        self, variables: Mapping[str, Any], location: str, to_numpy: Callable[[Any], np.ndarray]
    ) -> None:
        super().__init__(location)
        self._variables = dict(variables)
        self._to_numpy = to_numpy

    def _keys(self) -> Mapping[str, Any]:
        return self._variables

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._variables[key].shape)

    def dtype(self, key: str) -> np.dtype:
        return np.dtype(self._variables[key].dtype)

    def _read(self, key: str) -> np.ndarray:
        return self._to_numpy(self._variables[key])
