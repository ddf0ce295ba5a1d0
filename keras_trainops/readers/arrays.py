"""Arrays in memory, and the weights of another model, as checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from keras_trainops.readers.base import Checkpoint


class ArraysCheckpoint(Checkpoint):
    """A mapping from name to anything NumPy takes for an array."""

    format = "arrays in memory"

    def __init__(self, arrays: Mapping[str, Any], location: str = "a mapping of arrays") -> None:
        super().__init__(location)
        self._arrays = {key: _as_array(key, value) for key, value in arrays.items()}

    def _keys(self) -> Mapping[str, np.ndarray]:
        return self._arrays

    def _shape(self, key: str) -> tuple[int, ...]:
        return self._arrays[key].shape

    def _dtype(self, key: str) -> np.dtype:
        return self._arrays[key].dtype

    def _read(self, key: str) -> np.ndarray:
        # JAX would make an aligned array the variable's own memory, and so share it with the user.
        return self._arrays[key].copy()


def _as_array(key: Any, value: Any) -> np.ndarray:
    if not isinstance(key, str):
        raise ValueError(
            f"A mapping of arrays must have names (strings) as keys. Received: {key!r}"
        )
    try:
        return np.asarray(value)
    except Exception as error:  # lists of unequal lengths; tensors that refuse to be converted
        raise ValueError(f"The value under {key!r} is no array: {error}") from error


class VariablesCheckpoint(Checkpoint):
    """The variables of another model, read one by one when asked for."""

    format = "Keras model"

    def __init__(
        self,
        variables: Mapping[str, Any],
        location: str,
        to_numpy: Callable[[Any], np.ndarray],
        training_state: Iterable[str] = (),
    ) -> None:
        super().__init__(location)
        self.training_state = frozenset(training_state)
        self._variables = dict(variables)
        self._to_numpy = to_numpy

    def _keys(self) -> Mapping[str, Any]:
        return self._variables

    def _shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._variables[key].shape)

    def _dtype(self, key: str) -> np.dtype:
        return np.dtype(self._variables[key].dtype)

    def _read(self, key: str) -> np.ndarray:
        return self._to_numpy(self._variables[key])
