"""The first convolution of a network whose inputs have another number of channels."""

from __future__ import annotations

import numpy as np

from keras_trainops.adapt.base import (
    OneTensor,
    Shape,
    axis_of,
    unmasked,
    upcast_for_arithmetic,
    with_length,
)


class InputChannels(OneTensor):
    """Fits a convolution's kernel to inputs with more or fewer channels, as grey for RGB.

    From `m` channels to `n`:

    * where `n` divides `m`, each gets the sum of those that are `n` apart: of RGB to grey, of all;
    * else channels are repeated in turn, cut at `n`, and scaled by `m / n`.

    So where one number divides the other, an input whose channels are all equal gives the same
    response as before; otherwise nearly.

    Args:
        axis: The axis of the input channels: the last but one of Keras's kernels.

    Example:
        >>> import keras_trainops as kt
        >>> kt.adapt.InputChannels().shape([(7, 7, 3, 64)], target=(7, 7, 1, 64))
        (7, 7, 1, 64)

    References: `adapt_input_conv` of timm (`timm/models/_manipulate.py`), which does the same for
    RGB; it has one more rule, for stems that turn space into channels.
    """

    def __init__(self, axis: int = -2) -> None:
        self.axis = axis

    def _shape(self, shape: Shape, target: Shape) -> Shape:
        axis = axis_of(self.axis, shape)
        length = target[axis_of(self.axis, target)]
        if not shape[axis] or not length:
            raise ValueError(f"there must be a channel on axis {self.axis} of both")
        return with_length(shape, axis, length)

    def _adapt(self, array: np.ndarray, target: Shape) -> np.ndarray:
        array, axis = upcast_for_arithmetic(unmasked(array)), axis_of(self.axis, array.shape)
        old, new = array.shape[axis], target[axis_of(self.axis, target)]
        if old % new == 0:
            groups = (*array.shape[:axis], old // new, new, *array.shape[axis + 1 :])
            return array.reshape(groups).sum(axis)
        return np.take(array, np.arange(new) % old, axis) * (old / new)

    def __repr__(self) -> str:
        return f"InputChannels({'' if self.axis == -2 else f'axis={self.axis}'})"
