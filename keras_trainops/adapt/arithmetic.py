"""Adapters that compute with the elements of a tensor."""

from __future__ import annotations

import math

import numpy as np

from keras_trainops.adapt.axes import axis_of, upcast_for_arithmetic, with_length
from keras_trainops.adapt.base import OneTensor, Shape


class Add(OneTensor):
    """Adds a number to one tensor.

    Going back, the difference is rounded, by 6e-8 for a scale of 1 in float32; a tensor that has
    not changed stays as it was.

    Args:
        value: The number.

    Raises:
        ValueError: If `value` is not a finite number.

    Example:
        Gemma stores the scales of its norms minus one:

        >>> import keras_trainops as kt
        >>> kt.adapt.Add(1)([np.zeros(2, "float32")], target=(2,)).tolist()
        [1.0, 1.0]

    References: `GemmaRMSNorm` in transformers multiplies by `1.0 + weight`.
    """

    inverse_is_exact = False

    def __init__(self, value: float) -> None:
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"`value` must be a finite number. Received: {value=}")
        self.value = value

    def _shape(self, shape: Shape, target: Shape) -> Shape:
        return shape

    def _adapt(self, array: np.ndarray, target: Shape) -> np.ndarray:
        return upcast_for_arithmetic(array) + self.value

    def _undo(self, array: np.ndarray, shape: Shape, target: Shape) -> np.ndarray:
        return upcast_for_arithmetic(array) - self.value

    def __repr__(self) -> str:
        return f"Add({self.value})"


class Repeat(OneTensor):
    """Repeats each slice of one tensor, such as the heads that several queries share.

    Going back, the copies must still be equal.

    Args:
        times: Number of copies of each slice; they follow one another.
        axis: The axis of the slices.

    Raises:
        ValueError: If `times` is less than 1.

    Example:
        Two key heads for four query heads:

        >>> import keras_trainops as kt
        >>> kt.adapt.Repeat(2, axis=1).shape([(64, 2, 16)], target=(64, 4, 16))
        (64, 4, 16)

    References: `numpy.repeat`; `repeat_kv` in transformers.
    """

    def __init__(self, times: int, axis: int = 0) -> None:
        if times < 1:
            raise ValueError(f"`times` must be a number of copies ≥ 1. Received: {times=}")
        self.times, self.axis = times, axis

    def _shape(self, shape: Shape, target: Shape) -> Shape:
        axis = axis_of(self.axis, shape)
        return with_length(shape, axis, shape[axis] * self.times)

    def _adapt(self, array: np.ndarray, target: Shape) -> np.ndarray:
        return np.repeat(array, self.times, axis_of(self.axis, array.shape))

    def _undo(self, array: np.ndarray, shape: Shape, target: Shape) -> np.ndarray:
        first = np.take(
            array, np.arange(0, array.shape[self.axis], self.times), axis_of(self.axis, shape)
        )
        if not np.array_equal(self._adapt(first, target), array, equal_nan=True):
            raise ValueError("the copies of a slice differ, so that no tensor has all of them")
        return first

    def __repr__(self) -> str:
        return f"Repeat({self.times}{f', axis={self.axis}' if self.axis else ''})"
