"""Adapters that keep all elements and bring them into another order or shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import SupportsIndex

import numpy as np

from keras_trainops.adapt.base import (
    Chain,
    OneTensor,
    Shape,
    axis_of,
    whole_numbers,
)


class Transpose(OneTensor):
    """Permutes the axes of one tensor.

    Square kernels need it, too, where the other library stores them as (outputs, inputs): that is
    nothing shapes could tell.

    Args:
        axes: The order of the tensor's axes; None reverses them.

    Raises:
        ValueError: If `axes` is no permutation.

    Example:
        >>> import keras_trainops as kt
        >>> kt.adapt.Transpose().shape([(768, 3072)], target=(3072, 768))
        (3072, 768)

    References: `numpy.transpose`; PyTorch's `Linear.weight` is `Dense.kernel` transposed.
    """

    def __init__(self, axes: Sequence[int] | None = None) -> None:
        if axes is not None and sorted(axes) != list(range(len(axes))):
            raise ValueError(f"`axes` must be a permutation of 0 … n-1. Received: axes={axes!r}")
        self.axes = None if axes is None else tuple(axes)

    def _shape(self, shape: Shape, target: Shape) -> Shape:
        if self.axes is None:
            return shape[::-1]
        if len(shape) != len(self.axes):
            raise ValueError(f"it takes {len(self.axes)} axes, and the tensor is {shape}")
        return tuple(shape[axis] for axis in self.axes)

    def _adapt(self, array: np.ndarray, target: Shape) -> np.ndarray:
        return np.transpose(array, self.axes)

    def __repr__(self) -> str:
        return f"Transpose({'' if self.axes is None else list(self.axes)})"


class Reshape(OneTensor):
    """Gives one tensor another shape; the elements keep their order.

    Args:
        shape: The new shape, of which one length may be -1, for use in a chain; None: the shape of
            the variable.

    Raises:
        ValueError: If `shape` is no shape.

    Example:
        >>> import keras_trainops as kt
        >>> kt.adapt.Reshape().shape([(1, 1, 2048, 10)], target=(2048, 10))
        (2048, 10)

    References: `numpy.reshape`; `reshape_variables` of `assign_from_checkpoint_fn` in
    tf.contrib.framework.
    """

    def __init__(self, shape: int | Sequence[int] | None = None) -> None:
        lengths = [shape] if isinstance(shape, SupportsIndex) else shape
        self.new_shape = None if lengths is None else whole_numbers("shape", lengths)
        if self.new_shape is not None and (
            any(length < -1 for length in self.new_shape) or self.new_shape.count(-1) > 1
        ):
            raise ValueError(f"`shape` must be a shape with at most one -1. Received: {shape!r}")

    def _shape(self, shape: Shape, target: Shape) -> Shape:
        wanted = target if self.new_shape is None else self.new_shape
        size, known = math.prod(shape), math.prod(length for length in wanted if length >= 0)
        if -1 in wanted and known and size % known == 0:
            return tuple(size // known if length < 0 else length for length in wanted)
        if size != known or -1 in wanted:
            whose = "the variable's " if self.new_shape is None else ""
            raise ValueError(
                f"{shape} has {size} elements, and {whose}{wanted} has "
                f"{'a multiple of ' if -1 in wanted else ''}{known}"
            )
        return wanted

    def _adapt(self, array: np.ndarray, target: Shape) -> np.ndarray:
        return np.reshape(array, self._shape(array.shape, target))

    def __repr__(self) -> str:
        return f"Reshape({'' if self.new_shape is None else list(self.new_shape)})"


class Refold(Reshape):
    """A `Reshape` of tensors that begin with known axes: of others it would mix the axes.

    Args:
        leading: The lengths of the tensor's first axes.
        shape: As of `Reshape`.
    """

    def __init__(self, leading: Sequence[int], shape: Sequence[int]) -> None:
        super().__init__(shape)
        self.leading = tuple(leading)

    def _shape(self, shape: Shape, target: Shape) -> Shape:
        if shape[: len(self.leading)] != self.leading:
            raise ValueError(f"it takes tensors whose first axes are {self.leading}, not {shape}")
        return super()._shape(shape, target)


class Gates(OneTensor):
    """Brings equal blocks along one axis into another order, as the gates of recurrent layers.

    Args:
        order: For each block of the result, the number of the tensor's block that it is.
        axis: The axis along which the blocks lie side by side.

    Raises:
        ValueError: If `order` is no permutation.

    Example:
        PyTorch's GRU has its gates as reset, update, new; Keras as update, reset, new:

        >>> import keras_trainops as kt
        >>> kernel = kt.adapt.Chain(kt.adapt.Transpose(), kt.adapt.Gates([1, 0, 2]))
        >>> kernel.shape([(12, 5)], target=(5, 12))
        (5, 12)

    References: `torch.nn.GRU`, `keras.layers.GRU`. TF1's `LSTMCell` has input, new, forget, output
    where Keras has input, forget, new, output: `Gates([0, 2, 1, 3])`; besides, it adds its
    `forget_bias` (1) when it runs.
    """

    def __init__(self, order: Sequence[int], axis: int = -1) -> None:
        if sorted(order) != list(range(len(order))) or not order:
            raise ValueError(f"`order` must be a permutation of 0 … n-1. Received: order={order!r}")
        self.order, self.axis = tuple(order), axis

    def _shape(self, shape: Shape, target: Shape) -> Shape:
        length = shape[axis_of(self.axis, shape)]
        if length % len(self.order):
            raise ValueError(f"{length} of {shape} cannot be cut into {len(self.order)} blocks")
        return shape

    def _adapt(self, array: np.ndarray, target: Shape) -> np.ndarray:
        axis = axis_of(self.axis, array.shape)
        blocks = np.arange(array.shape[axis]).reshape(len(self.order), -1)
        return np.take(array, blocks[list(self.order)].reshape(-1), axis)

    def __repr__(self) -> str:
        return f"Gates({list(self.order)}, axis={self.axis})"


def channels_first_flatten(shape: Sequence[int]) -> Chain:
    """For the kernel of a layer behind `Flatten`, where the other library has channels first.

    PyTorch flattens features (channels, height, width), Keras (height, width, channels): the rows
    of the kernel are to be brought into another order. The kernel must have its inputs on axis 0;
    PyTorch's is transposed first: `[Transpose(), channels_first_flatten(shape)]`.

    Args:
        shape: The shape of the features in Keras, without the batch: (height, width, channels), or
            any number of axes before the channels.

    Returns:
        An adapter from (channels · height · width, units) to (height · width · channels, units).

    Raises:
        ValueError: If `shape` has no axis besides the channels.

    Example:
        >>> import keras_trainops as kt
        >>> adapter = kt.adapt.channels_first_flatten((7, 5, 64))
        >>> adapter.shape([(2240, 10)], target=(2240, 10))
        (2240, 10)
    """
    *space, channels = shape or [0]
    if not space:
        raise ValueError(
            "`shape` must be that of the features before `Flatten`, as (height, width, channels). "
            f"Received: shape={shape!r}"
        )
    rank = len(shape)
    return Chain(
        Refold([math.prod(shape)], [channels, *space, -1]),
        Transpose([*range(1, rank), 0, rank]),
        Reshape([math.prod(shape), -1]),
    )
