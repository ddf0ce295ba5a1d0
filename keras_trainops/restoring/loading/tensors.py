"""Memory for tensors that are assigned to variables of any backend."""

from __future__ import annotations

import bisect
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_trainops.backends import backend
from keras_trainops.checkpoints.dtypes import nbytes
from keras_trainops.checkpoints.storage.pages import prefer_huge_pages
from keras_trainops.checkpoints.storage.raw import aligned

_LARGE = 1 << 20  # bytes; below that, a second copy costs nothing


class Destination:
    """Memory to read a tensor into; the variable takes it over if the backend allows that."""

    def __init__(self) -> None:
        self._tensor: Any = None
        self._array: np.ndarray | None = None

    def memory(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Return an array to read the tensor into, once."""
        empty = _empty(shape, dtype)
        if empty is None:
            return aligned(shape, dtype) if self._array is None else self._array
        self._tensor, self._array = empty
        return self._array

    def tensor(self, array: np.ndarray) -> Any:
        """Return the value to assign for an `array` that is not written to again."""
        if self._array is not None and array is self._array:
            return self._tensor
        empty = _empty(array.shape, array.dtype)
        if empty is None:
            return array
        tensor, memory = empty
        np.copyto(memory, array)
        return tensor


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> tuple[Any, np.ndarray] | None:
    """Return a large tensor of the backend and its memory, or None."""
    empty = backend().empty_tensor(shape, dtype) if nbytes(shape, dtype) >= _LARGE else None
    if empty is not None:
        prefer_huge_pages(empty[1])
    return empty


def overwritten_memory(model: Any) -> Callable[[int], bool]:
    """Return a function that tests if assignments to the model overwrite an address in place."""
    ranges = backend().overwritten_memory(getattr(model, "variables", ()))
    starts = [start for start, _ in ranges]

    def is_overwritten(address: int) -> bool:
        place = bisect.bisect_right(starts, address) - 1
        return place >= 0 and address < ranges[place][1]

    return is_overwritten
