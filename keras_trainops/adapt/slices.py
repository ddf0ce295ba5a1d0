"""Adapters that put slices along one axis into other places: other classes, longer or shorter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np

from keras_trainops.adapt.base import (
    Adapter,
    OneTensor,
    Shape,
    axis_of,
    whole_numbers,
    with_length,
)

Default: TypeAlias = "float | str | np.ndarray | Sequence[Any] | Callable[..., Any] | None"


class Pad(OneTensor):
    """Puts the slices of a shorter tensor into places of a longer variable.

    Args:
        axis: The axis along which the variable is longer.
        indices: For each slice of the tensor, its place in the variable; None: the first places.
        default: What the other places get. None: they keep what the variable holds, as its
            initial values; a number; an array of the other slices in their order, or that
            broadcasts to them; a Keras initializer or its name, which is called for the whole
            shape; "mean": the mean of the tensor's slices.

    Raises:
        ValueError: If `indices` are negative or repeated, or `default` is none of this.

    Example:
        Two classes more, whose weights stay as they were initialised:

        >>> import keras_trainops as kt
        >>> kt.adapt.Pad(axis=-1).shape([(64, 10)], target=(64, 12))
        (64, 12)
    """

    def __init__(
        self, axis: int, indices: Sequence[int] | None = None, default: Default = None
    ) -> None:
        self.axis, self.indices = axis, checked_indices(indices)
        self.default = checked_default(default)

    def _shape(self, shape: Shape, target: Shape) -> Shape:
        axis = axis_of(self.axis, shape)
        length = target[axis_of(self.axis, target)]
        if length < shape[axis]:
            raise ValueError(
                f"it makes axis {self.axis} longer, and {shape[axis]} slices do not fit into the "
                f"variable's {length}. `Crop` takes a part of them"
            )
        if self.indices is not None:
            require_within(self.indices, length, "variable")
            if len(self.indices) != shape[axis]:
                raise ValueError(
                    f"there must be one index for each of {shape[axis]} slices. Received: "
                    f"{len(self.indices)} indices"
                )
        require_default(self.default, shape, axis, length - shape[axis])
        return with_length(shape, axis, length)

    def _adapt(self, array: np.ndarray, target: Shape) -> np.ndarray:
        axis = axis_of(self.axis, array.shape)
        places = range(array.shape[axis]) if self.indices is None else self.indices
        return place(array, axis, target[axis_of(self.axis, target)], places, self.default)

    def __repr__(self) -> str:
        return call(self, self.axis, indices=self.indices, default=self.default)


class Crop(OneTensor):
    """Takes some of the slices of a longer tensor.

    Args:
        axis: The axis along which the variable is shorter.
        indices: Which slices, in the order they have in the variable; None: the first ones, as
            many as the variable has.

    Raises:
        ValueError: If `indices` are negative or repeated.

    Example:
        >>> import keras_trainops as kt
        >>> kt.adapt.Crop(axis=-1, indices=[4, 0, 2]).shape([(64, 10)], target=(64, 3))
        (64, 3)
    """

    def __init__(self, axis: int, indices: Sequence[int] | None = None) -> None:
        self.axis, self.indices = axis, checked_indices(indices)

    def _shape(self, shape: Shape, target: Shape) -> Shape:
        axis = axis_of(self.axis, shape)
        if self.indices is not None:
            require_within(self.indices, shape[axis], "tensor")
            return with_length(shape, axis, len(self.indices))
        length = target[axis_of(self.axis, target)]
        if length > shape[axis]:
            raise ValueError(
                f"it makes axis {self.axis} shorter, and the tensor has {shape[axis]} slices of "
                f"the variable's {length}. `Pad` puts them into the first places"
            )
        return with_length(shape, axis, length)

    def _adapt(self, array: np.ndarray, target: Shape) -> np.ndarray:
        axis = axis_of(self.axis, array.shape)
        first = range(target[axis_of(self.axis, target)])
        return np.take(array, first if self.indices is None else self.indices, axis)

    def __repr__(self) -> str:
        return call(self, self.axis, indices=self.indices)


def place(
    array: np.ndarray, axis: int, length: int, places: Sequence[int], default: Any
) -> np.ndarray:
    """Puts the slices of `array` into `places` of `length`; the rest is default, or masked."""
    shape = with_length(array.shape, axis, length)
    others = np.setdiff1d(np.arange(length), np.asarray(places, int))
    dtype, values = array.dtype, None
    if default is not None and len(others):
        values = _default_values(default, array, shape, axis, others)
        if dtype.kind in "biu":  # integers for a variable of floats
            dtype = np.result_type(dtype, values)
    result = np.ma.masked_all(shape, dtype)
    result[_at(axis, places)] = array
    if values is not None:
        missing = with_length(shape, axis, len(others))
        result[_at(axis, others)] = np.ma.array(
            np.broadcast_to(np.ma.getdata(values), missing).astype(dtype),
            mask=np.broadcast_to(np.ma.getmaskarray(values), missing),  # a mean of what is masked
        )
    return result if result.mask.any() else result.data


def _at(axis: int, places: Sequence[int] | np.ndarray) -> tuple[Any, ...]:
    return (*[slice(None)] * axis, np.asarray(places, int))


def _default_values(
    default: Any, array: np.ndarray, shape: Shape, axis: int, others: np.ndarray
) -> np.ndarray:
    if isinstance(default, str):  # "mean"
        return np.mean(array, axis, dtype="float64", keepdims=True)
    if callable(default):
        # For the whole shape: an initializer scales with the number of inputs and outputs.
        whole = keras.ops.convert_to_numpy(default(shape, dtype="float32"))
        return np.take(whole, others, axis)
    return default


def checked_default(default: Any) -> Any:
    """None, "mean", an initializer or an array.

    Raises:
        ValueError: If it is none of this, or the name of no initializer.
    """
    if default is None or (isinstance(default, str) and default == "mean"):
        return default
    try:
        if isinstance(default, str) or callable(default):
            return keras.initializers.get(default)
        array = np.asarray(default)
        if array.dtype.kind in "biuf":
            return array
    except ValueError:
        pass
    raise ValueError(
        '`default` must be None, a number, an array, "mean", or a Keras initializer or its name. '
        f"Received: default={default!r}"
    )


def require_default(default: Any, shape: Shape, axis: int, others: int) -> None:
    """Refuses an array that is not for that many slices.

    Raises:
        ValueError: It says what the array must broadcast to.
    """
    if isinstance(default, np.ndarray):
        wanted = with_length(shape, axis, others)
        try:
            fits = np.broadcast_shapes(default.shape, wanted) == wanted
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                f"`default` must be of shape {wanted}, or broadcast to it: {others} slices have no "
                f"value. Received: an array of shape {default.shape}"
            )


def checked_indices(indices: Sequence[int] | None) -> list[int] | None:
    """`indices` as a list.

    Raises:
        ValueError: If one is negative or repeated.
    """
    if indices is None:
        return None
    listed = [*whole_numbers("indices", indices)]
    if len(set(listed)) < len(listed) or any(index < 0 for index in listed):
        raise ValueError(
            f"`indices` must be places from 0, each once. Received: indices={listed!r}"
        )
    return listed


def require_within(indices: Sequence[int], length: int, whose: str) -> None:
    """Refuses places that there are not.

    Raises:
        ValueError: It names the largest.
    """
    if indices and max(indices) >= length:
        raise ValueError(
            f"`indices` must be < {length}, the length of the {whose}'s axis. Received: "
            f"{max(indices)}"
        )


def call(adapter: Adapter, axis: int, **options: Any) -> str:
    """The call that makes `adapter`, for its `repr`."""
    given = [f"{name}={_short(value)}" for name, value in options.items() if value is not None]
    return f"{type(adapter).__name__}({', '.join([f'axis={axis}', *given])})"


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return str(value) if value.ndim == 0 else f"<array {value.shape}>"
    if callable(value):
        return type(value).__name__
    if isinstance(value, list) and len(value) > 8:
        return f"[{', '.join(map(str, value[:6]))}, … {len(value)} in all]"
    return repr(value)
