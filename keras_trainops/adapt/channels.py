"""The adapter for the first convolution of a network with a different number of input channels."""

from __future__ import annotations

import numpy as np

from keras_trainops.adapt.axes import axis_of, unmasked, upcast_for_arithmetic, with_length
from keras_trainops.adapt.base import OneTensor, Shape


class InputChannels(OneTensor):
    """Fits a convolution's kernel to inputs with more or fewer channels, e.g. RGB to gray.

    From `m` channels to `n`:

    * If `n` divides `m`, each new channel is the sum of the old channels that are `n` apart; RGB to
      gray sums all three.
    * Otherwise the old channels are repeated in turn up to `n` and scaled by `m / n`.

    If one number divides the other, an input whose channels are all equal gives the same response
    as before; otherwise the response is only close.

    Args:
        axis: Axis of the input channels; in Keras's kernels the second to last.

    Example:
        >>> import keras_trainops as kt
        >>> kt.adapt.InputChannels().shape([(7, 7, 3, 64)], target=(7, 7, 1, 64))
        (7, 7, 1, 64)

    References: `adapt_input_conv` of timm (`timm/models/_manipulate.py`) does the same for RGB, and
    has one more rule for space-to-depth stems.
    """

    resizes = True

    def __init__(self, axis: int = -2) -> None:
        self.axis = axis

    def _shape(self, shape: Shape, target: Shape) -> Shape:
        axis = axis_of(self.axis, shape)
        length = target[axis_of(self.axis, target)]
        if not shape[axis] or not length:
            raise ValueError(
                f"the tensor and the variable need at least one channel on axis {self.axis}"
            )
        return with_length(shape, axis, length)

    def _adapt(self, array: np.ndarray, target: Shape) -> np.ndarray:
        array, axis = upcast_for_arithmetic(unmasked(array)), axis_of(self.axis, array.shape)
        old, new = array.shape[axis], target[axis_of(self.axis, target)]
        if old % new == 0:
            groups = (*array.shape[:axis], old // new, new, *array.shape[axis + 1 :])
            return array.reshape(groups).sum(axis)
        return np.take(array, np.arange(new) % old, axis) * (old / new)

    def _undo(self, array: np.ndarray, shape: Shape, target: Shape) -> np.ndarray:
        if array.shape != shape:
            raise ValueError("sums of channels do not determine the channels")
        return array

    def __repr__(self) -> str:
        return f"InputChannels({'' if self.axis == -2 else f'axis={self.axis}'})"
