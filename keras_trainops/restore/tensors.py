"""Values between arrays and variables of any backend."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_trainops.readers.raw import ALIGNMENT

_LARGE = 1 << 20  # bytes, below which a second copy costs nothing


def to_numpy(variable: keras.Variable) -> np.ndarray:
    """A copy of a variable's value: some backends would hand out the live buffer."""
    return np.array(keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(variable)))


def to_tensor(array: np.ndarray) -> Any:
    """What to assign for an `array` that nobody will write to again.

    TensorFlow copies an array twice on its way into a variable. Taken in place and copied by
    TensorFlow it is copied once, into memory that TensorFlow owns. The other backends take an
    array as it is, or copy it once.
    """
    in_order = array.flags.c_contiguous and array.flags.writeable
    # TensorFlow aborts the process over a tensor in place that is not aligned.
    if array.nbytes < _LARGE or not in_order or array.ctypes.data % ALIGNMENT:
        return array
    if keras.backend.backend() != "tensorflow":
        return array
    import tensorflow as tf

    try:
        in_place = tf.experimental.dlpack.from_dlpack(array.__dlpack__())
    except (BufferError, TypeError):  # dtypes that DLPack, or NumPy's share of it, does not have
        return array
    return tf.raw_ops.DeepCopy(x=in_place)
