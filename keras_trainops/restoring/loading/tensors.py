"""Arrays on their way into variables of any backend."""

from __future__ import annotations

import bisect
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_trainops.checkpoints.storage.limits import nbytes
from keras_trainops.checkpoints.storage.raw import aligned

_LARGE = 1 << 20  # bytes, below which a second copy costs nothing


class Destination:
    """Memory to read a tensor into, which the variable takes over where the backend allows it.

    TensorFlow copies an array twice on its way into a variable, and a tensor of its own not at all.
    The other backends take an array as it is, or copy it once.
    """

    def __init__(self) -> None:
        self._tensor: Any = None
        self._array: np.ndarray | None = None

    def memory(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array to be filled once."""
        large = nbytes(shape, dtype) >= _LARGE
        if large and keras.backend.backend() == "tensorflow":
            self._tensor, self._array = _tensor_to_fill(shape, dtype)
        return aligned(shape, dtype) if self._array is None else self._array

    def tensor(self, array: np.ndarray) -> Any:
        """What to assign for an `array` that nobody will write to again."""
        if self._array is not None and array is self._array:
            return self._tensor
        if array.nbytes < _LARGE or keras.backend.backend() != "tensorflow":
            return array
        tensor, memory = _tensor_to_fill(array.shape, array.dtype)
        if memory is None:
            return array
        np.copyto(memory, array)
        return tensor


def overwritten_memory(model: Any) -> Callable[[int], bool]:
    """Tells whether an address is in a variable that an assignment overwrites in place.

    PyTorch's are; on the other backends an assignment gives a variable another tensor.
    """
    if keras.backend.backend() != "torch":
        return lambda address: False
    tensors = [variable.value for variable in getattr(model, "variables", ())]
    ranges = sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t in tensors if not t.is_meta)
    starts = [start for start, _ in ranges]

    def is_overwritten(address: int) -> bool:
        place = bisect.bisect_right(starts, address) - 1
        return place >= 0 and address < ranges[place][1]

    return is_overwritten


def _tensor_to_fill(shape: tuple[int, ...], dtype: np.dtype) -> tuple[Any, np.ndarray | None]:
    """A tensor of TensorFlow's, and its memory as an array; None where that is not to be had."""
    import tensorflow as tf

    try:
        with tf.device("CPU:0"):
            tensor = tf.raw_ops.Empty(shape=shape, dtype=tf.as_dtype(dtype), init=False)
        first, second = tensor._numpy_internal(), tensor._numpy_internal()
    except (AttributeError, TypeError, tf.errors.OpError):  # private, and not of all dtypes
        return None, None
    shared = first.ctypes.data == second.ctypes.data and first.dtype == dtype
    fit = shared and first.flags.writeable and first.flags.c_contiguous
    return (tensor, first) if fit else (None, None)
