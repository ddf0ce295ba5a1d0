"""Adapters that reorder or reshape a tensor and keep all its elements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, SupportsIndex

import numpy as np

from keras_trainops.adapt.axes import axis_of, whole_numbers
from keras_trainops.adapt.base import Chain, Index, OneTensor, Shape


class Transpose(OneTensor):
    """Permutes the axes of one tensor.

    Square kernels need it too if the other library stores them as (outputs, inputs); their shapes
    do not show that.

    Args:
        axes: New order of the tensor's axes. Default: reversed.

    Raises:
        ValueError: If `axes` is not a permutation.

    Example:
        >>> import keras_trainops as kt
        >>> kt.adapt.Transpose().shape([(768, 3072)], target=(3072, 768))
        (3072, 768)

    References: `numpy.transpose`; PyTorch's `Linear.weight` is `Dense.kernel` transposed.
    """

    def __init__(self, axes: Sequence[int] | None = None) -> None:
        if axes is not None and sorted(axes) != list(range(len(axes))):
            raise ValueError(f"`axes` must be a permutation of 0 … n-1. Received: axes={axes!r}")
        self.axes = None if axes is None else whole_numbers("axes", axes)

    def _shape(self, shape: Shape, target: Shape) -> Shape:
        if self.axes is None:
            return shape[::-1]
        if len(shape) != len(self.axes):
            raise ValueError(f"it takes {len(self.axes)} axes, but the tensor has shape {shape}")
        return tuple(shape[axis] for axis in self.axes)

    def _adapt(self, array: np.ndarray, target: Shape) -> np.ndarray:
        return np.transpose(array, self.axes)

    def sources(
        self, index: Index, shapes: Sequence[Shape], target: Shape
    ) -> Sequence[Index] | None:
        axes = self.axes or tuple(range(len(index)))[::-1]
        found = dict(zip(axes, index, strict=True))
        return [tuple(found[axis] for axis in range(len(index)))]

    def _undo(self, array: np.ndarray, shape: Shape, target: Shape) -> np.ndarray:
        return np.transpose(array, None if self.axes is None else np.argsort(self.axes).tolist())

    def __repr__(self) -> str:
        return f"Transpose({'' if self.axes is None else list(self.axes)})"


class Reshape(OneTensor):
    """Changes the shape of one tensor; the elements keep their order.

    Args:
        shape: The new shape, for use in a chain; one length may be -1. Default: the shape of the
            variable.

    Raises:
        ValueError: If `shape` is not a valid shape.

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
        if self.new_shape is None:
            _require_size(shape, math.prod(target), f"the variable's {target}")
            return target
        if -1 in self.new_shape:
            return _with_inferred_length(shape, self.new_shape)
        _require_size(shape, math.prod(self.new_shape), str(self.new_shape))
        return self.new_shape

    def _adapt(self, array: np.ndarray, target: Shape) -> np.ndarray:
        return np.reshape(array, self._shape(array.shape, target))

    def _undo(self, array: np.ndarray, shape: Shape, target: Shape) -> np.ndarray:
        return np.reshape(array, shape)

    def get_config(self) -> dict[str, Any]:
        return {"shape": self.new_shape}

    def __repr__(self) -> str:
        return f"Reshape({'' if self.new_shape is None else list(self.new_shape)})"


def _require_size(shape: Shape, size: int, wanted: str) -> None:
    if math.prod(shape) != size:
        raise ValueError(f"{shape} has {math.prod(shape)} elements, but {wanted} has {size}")


def _with_inferred_length(shape: Shape, wanted: Shape) -> Shape:
    """Return `wanted` with the -1 replaced by the length that keeps all elements of `shape`."""
    size, known = math.prod(shape), math.prod(length for length in wanted if length >= 0)
    if not known or size % known:
        raise ValueError(f"{shape} has {size} elements, but {wanted} has a multiple of {known}")
    return tuple(size // known if length < 0 else length for length in wanted)


class ReshapeFrom(Reshape):
    """A `Reshape` that checks the tensor's first axes; others would get mixed up.

    Args:
        leading: Lengths of the tensor's first axes.
        shape: The new shape, as in `Reshape`.
    """

    def __init__(self, leading: Sequence[int], shape: Sequence[int]) -> None:
        super().__init__(shape)
        self.leading = tuple(leading)

    def get_config(self) -> dict[str, Any]:
        return {"leading": self.leading, **super().get_config()}

    def _shape(self, shape: Shape, target: Shape) -> Shape:
        if shape[: len(self.leading)] != self.leading:
            raise ValueError(f"it takes tensors whose first axes are {self.leading}, not {shape}")
        return super()._shape(shape, target)


class Flip(OneTensor):
    """Reverses axes of one tensor.

    Args:
        axes: The axes.

    Example:
        Flax's `ConvTranspose` does not flip its kernel, unless `transpose_kernel=True`:

        >>> import keras_trainops as kt
        >>> kernel = kt.adapt.Chain(kt.adapt.Flip([0, 1]), kt.adapt.Transpose([0, 1, 3, 2]))
        >>> kernel.shape([(3, 2, 4, 6)], target=(3, 2, 6, 4))
        (3, 2, 6, 4)

    References: `numpy.flip`.
    """

    def __init__(self, axes: Sequence[int]) -> None:
        self.axes = whole_numbers("axes", axes)

    def _shape(self, shape: Shape, target: Shape) -> Shape:
        for axis in self.axes:
            axis_of(axis, shape)
        return shape

    def _adapt(self, array: np.ndarray, target: Shape) -> np.ndarray:
        return np.flip(array, self.axes)

    def _undo(self, array: np.ndarray, shape: Shape, target: Shape) -> np.ndarray:
        return np.flip(array, self.axes)

    def __repr__(self) -> str:
        return f"Flip({list(self.axes)})"


class Gates(OneTensor):
    """Reorders blocks of equal length along one axis, such as the gates of recurrent layers.

    Args:
        order: For each block of the result, its index in the tensor.
        axis: The axis along which the blocks are concatenated.

    Raises:
        ValueError: If `order` is not a permutation.

    Example:
        PyTorch's GRU orders its gates as reset, update, new; Keras as update, reset, new:

        >>> import keras_trainops as kt
        >>> kernel = kt.adapt.Chain(kt.adapt.Transpose(), kt.adapt.Gates([1, 0, 2]))
        >>> kernel.shape([(12, 5)], target=(5, 12))
        (5, 12)

    References: `torch.nn.GRU`, `keras.layers.GRU`. TF1's `LSTMCell` orders its gates as input, new,
    forget, output and Keras as input, forget, new, output: use `Gates([0, 2, 1, 3])`. In addition,
    `LSTMCell` adds its `forget_bias` (1) at run time.
    """

    def __init__(self, order: Sequence[int], axis: int = -1) -> None:
        if sorted(order) != list(range(len(order))) or not order:
            raise ValueError(f"`order` must be a permutation of 0 … n-1. Received: order={order!r}")
        self.order, self.axis = tuple(order), axis

    def _shape(self, shape: Shape, target: Shape) -> Shape:
        length = shape[axis_of(self.axis, shape)]
        if length % len(self.order):
            raise ValueError(
                f"{length} of {shape} cannot be split into {len(self.order)} equal blocks"
            )
        return shape

    def _adapt(self, array: np.ndarray, target: Shape) -> np.ndarray:
        return self._ordered(array, self.order)

    def _undo(self, array: np.ndarray, shape: Shape, target: Shape) -> np.ndarray:
        return self._ordered(array, np.argsort(self.order).tolist())

    def _ordered(self, array: np.ndarray, order: Sequence[int]) -> np.ndarray:
        axis = axis_of(self.axis, array.shape)
        blocks = np.arange(array.shape[axis]).reshape(len(order), -1)
        return np.take(array, blocks[list(order)].reshape(-1), axis)

    def __repr__(self) -> str:
        axis = "" if self.axis == -1 else f", axis={self.axis}"
        return f"Gates({list(self.order)}{axis})"


def channels_first_flatten(shape: Sequence[int]) -> Chain:
    """Return an adapter for the kernel of a layer after `Flatten`, from a channels-first library.

    PyTorch flattens features as (channels, height, width), Keras as (height, width, channels), so
    the rows of the kernel are in a different order. The inputs must be on axis 0 of the kernel;
    transpose PyTorch's first: `[Transpose(), channels_first_flatten(shape)]`.

    Args:
        shape: Shape of the features in Keras, without the batch: (height, width, channels), or any
            number of axes before the channels.

    Returns:
        An adapter from (channels · height · width, units) to (height · width · channels, units).

    Raises:
        ValueError: If `shape` has no axis other than the channels.

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
        ReshapeFrom([math.prod(shape)], [channels, *space, -1]),
        Transpose([*range(1, rank), 0, rank]),
        Reshape([math.prod(shape), -1]),
    )
