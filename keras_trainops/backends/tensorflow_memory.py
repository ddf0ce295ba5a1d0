"""The memory of TensorFlow's variables."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_trainops.backends.memory import Memory


class TensorFlowMemory(Memory):
    """Reads the memory of tensors in place, and lets variables take tensors over."""

    host_views_last = True  # an assignment leaves alone a tensor that others refer to

    def host_view(self, variable: keras.Variable) -> np.ndarray:
        tensor: Any = tf.convert_to_tensor(variable.value)
        try:
            return np.asarray(memoryview(tensor))
        except (BufferError, TypeError, ValueError):  # a dtype without buffers, or a device
            return ops.convert_to_numpy(tensor)

    def empty_tensor(
        self, shape: tuple[int, ...], dtype: np.dtype
    ) -> tuple[Any, np.ndarray] | None:
        """Return a tensor, which TensorFlow assigns without a copy; it copies an array twice."""
        try:
            with tf.device("CPU:0"):
                tensor = tf.raw_ops.Empty(shape=shape, dtype=tf.as_dtype(dtype), init=False)
            first, second = tensor._numpy_internal(), tensor._numpy_internal()
        except (AttributeError, TypeError, tf.errors.OpError):  # private, not for all dtypes
            return None
        shared = first.ctypes.data == second.ctypes.data and first.dtype == dtype
        usable = shared and first.flags.writeable and first.flags.c_contiguous
        return (tensor, first) if usable else None

    def is_in_host_memory(self, variable: keras.Variable) -> bool:
        return "CPU" in tf.convert_to_tensor(variable.value).device

    def snapshot(self, variable: keras.Variable) -> Any:
        """Return the tensor that the variable has now; it gets another one when it is assigned."""
        return tf.convert_to_tensor(variable.value)
