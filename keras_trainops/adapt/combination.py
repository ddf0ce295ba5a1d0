"""Adapters that join several tensors into one, or take a part of a fused tensor."""

from __future__ import annotations

import operator
from abc import abstractmethod
from collections.abc import Sequence
from typing import SupportsIndex

import numpy as np

from keras_trainops.adapt.axes import (
    axis_of,
    scatter,
    upcast_for_arithmetic,
    whole_numbers,
    with_length,
)
from keras_trainops.adapt.base import Adapter, OneTensor, Shape


class _Combination(Adapter):
    """Base class of adapters that take several tensors, in the order of the rename rules."""

    def shape(self, shapes: Sequence[Shape], target: Shape) -> Shape:
        if len(shapes) < 2:
            raise ValueError("it combines several tensors, but only one key leads here")
        return self._shape(shapes)

    @abstractmethod
    def _shape(self, shapes: Sequence[Shape]) -> Shape: ...

    def _require_equal(self, shapes: Sequence[Shape]) -> None:
        if len(set(shapes)) > 1:
            raise ValueError(f"the tensors must have the same shape, but are {_joined(shapes)}")


class Concat(_Combination):
    """Joins tensors along an axis, in the order of the rename rules that lead to the variable.

    If one rule leads several keys there, they are ordered by their numbers, provided that the keys
    differ in numbers only; otherwise they keep the order of the checkpoint. To be certain, write
    one rule per key.

    Args:
        axis: An existing axis of the tensors.

    Example:
        >>> import keras_trainops as kt
        >>> kt.adapt.Concat(axis=-1).shape([(4, 3), (4, 2)], target=(4, 5))
        (4, 5)

    References: `numpy.concatenate`.
    """

    def __init__(self, axis: int = 0) -> None:
        self.axis = axis

    def _shape(self, shapes: Sequence[Shape]) -> Shape:
        axes = [axis_of(self.axis, shape) for shape in shapes]
        others = [with_length(shape, axis, 0) for shape, axis in zip(shapes, axes, strict=True)]
        if len(set(others)) > 1:
            raise ValueError(
                f"the tensors must have the same shape except along axis {self.axis}, but are "
                f"{_joined(shapes)}"
            )
        return with_length(shapes[0], axes[0], sum(shape[axes[0]] for shape in shapes))

    def __call__(self, arrays: Sequence[np.ndarray], target: Shape) -> np.ndarray:
        return np.concatenate(arrays, self.axis)

    def inverse(
        self, array: np.ndarray, shapes: Sequence[Shape], target: Shape
    ) -> Sequence[np.ndarray]:
        axis = axis_of(self.axis, array.shape)
        ends = np.cumsum([shape[axis] for shape in shapes])
        return np.split(array, ends[:-1], axis)

    def __repr__(self) -> str:
        return f"Concat({f'axis={self.axis}' if self.axis else ''})"


class Stack(_Combination):
    """Joins tensors of one shape along a new axis, in the order of the rename rules.

    Args:
        axis: Index of the new axis in the result.

    Example:
        Stack the two biases of a GRU:

        >>> import keras_trainops as kt
        >>> kt.adapt.Stack().shape([(12,), (12,)], target=(2, 12))
        (2, 12)

    References: `numpy.stack`.
    """

    def __init__(self, axis: int = 0) -> None:
        self.axis = axis

    def _shape(self, shapes: Sequence[Shape]) -> Shape:
        self._require_equal(shapes)
        axis = axis_of(self.axis, (*shapes[0], 1))
        return (*shapes[0][:axis], len(shapes), *shapes[0][axis:])

    def __call__(self, arrays: Sequence[np.ndarray], target: Shape) -> np.ndarray:
        return np.stack(arrays, self.axis)

    def inverse(
        self, array: np.ndarray, shapes: Sequence[Shape], target: Shape
    ) -> Sequence[np.ndarray]:
        return [*np.moveaxis(array, self.axis, 0)]

    def __repr__(self) -> str:
        return f"Stack({f'axis={self.axis}' if self.axis else ''})"


class Sum(_Combination):
    """Adds tensors of one shape.

    The sum does not determine the tensors: back in a file, a new value is that of the first tensor,
    and the others are zero.

    Example:
        Keras's LSTM has one bias, the sum of the two in PyTorch:

        >>> import keras_trainops as kt
        >>> kt.adapt.Sum().shape([(12,), (12,)], target=(12,))
        (12,)
    """

    inverse_is_exact = False

    def _shape(self, shapes: Sequence[Shape]) -> Shape:
        self._require_equal(shapes)
        return shapes[0]

    def __call__(self, arrays: Sequence[np.ndarray], target: Shape) -> np.ndarray:
        return sum(map(upcast_for_arithmetic, arrays[1:]), start=upcast_for_arithmetic(arrays[0]))

    def inverse(
        self, array: np.ndarray, shapes: Sequence[Shape], target: Shape
    ) -> Sequence[np.ndarray]:
        return [array, *(np.zeros_like(array) for _ in shapes[1:])]

    def __repr__(self) -> str:
        return "Sum()"


class Split(OneTensor):
    """Takes one part of a fused tensor, such as the query of a fused query, key and value.

    Lead the key to a list of variables with one rename rule, and give each variable its own
    `Split`.

    Args:
        index: Index of the part, from 0.
        parts: Number of parts of equal length, or the lengths of the parts along the axis.
        axis: The axis along which the parts are concatenated.

    Raises:
        ValueError: If `index` is out of range or a length is negative.

    Example:
        Take the key from the fused weight of PyTorch's `MultiheadAttention`:

        >>> import keras_trainops as kt
        >>> kt.adapt.Split(1, parts=3).shape([(36, 12)], target=(12, 12))
        (12, 12)

    References: `numpy.split`.
    """

    def __init__(self, index: int, parts: int | Sequence[int], axis: int = 0) -> None:
        self.index, self.axis = index, axis
        self.parts: int | tuple[int, ...]
        if isinstance(parts, SupportsIndex):
            self.parts = operator.index(parts)
        else:
            self.parts = whole_numbers("parts", parts)
        count = self.parts if isinstance(self.parts, int) else len(self.parts)
        if not 0 <= index < count:
            raise ValueError(
                f"`index` must be that of one of {count} parts, from 0. Received: {index=}"
            )
        if not isinstance(self.parts, int) and min(self.parts) < 0:
            raise ValueError(f"`parts` must be lengths ≥ 0. Received: {parts=}")

    def _shape(self, shape: Shape, target: Shape) -> Shape:
        axis = axis_of(self.axis, shape)
        start, stop = self._range(shape[axis])
        return with_length(shape, axis, stop - start)

    def _range(self, length: int) -> tuple[int, int]:
        if isinstance(self.parts, int):
            if length % self.parts:
                raise ValueError(
                    f"{length} cannot be split into {self.parts} parts of equal length"
                )
            size = length // self.parts
            return self.index * size, (self.index + 1) * size
        if sum(self.parts) != length:
            raise ValueError(
                f"`parts` must add up to {length}, the length of axis {self.axis}. Received: "
                f"parts={list(self.parts)}, which is {sum(self.parts)}"
            )
        return sum(self.parts[: self.index]), sum(self.parts[: self.index + 1])

    def _adapt(self, array: np.ndarray, target: Shape) -> np.ndarray:
        axis = axis_of(self.axis, array.shape)
        return np.take(array, range(*self._range(array.shape[axis])), axis)

    def _undo(self, array: np.ndarray, shape: Shape, target: Shape) -> np.ndarray:
        axis = axis_of(self.axis, shape)
        return scatter(array, axis, shape[axis], range(*self._range(shape[axis])))

    def __repr__(self) -> str:
        parts = self.parts if isinstance(self.parts, int) else list(self.parts)
        axis = f", axis={self.axis}" if self.axis else ""
        return f"Split({self.index}, {parts}{axis})"


def _joined(shapes: Sequence[Shape]) -> str:
    return " and ".join(map(str, shapes))
