"""Adapters that move slices along one axis, for more, fewer or reordered classes or positions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np

from keras_trainops.adapt.axes import axis_of, scatter, whole_numbers, with_length
from keras_trainops.adapt.base import Adapter, OneTensor, Shape

Default: TypeAlias = "float | str | np.ndarray | Sequence[Any] | Callable[..., Any] | None"


class Pad(OneTensor):
    """Writes the slices of a shorter tensor into a longer variable.

    Args:
        axis: The axis along which the variable is longer.
        indices: Index in the variable for each slice of the tensor. Default: the first slices.
        default: Value of the other slices: a number; an array that broadcasts to the other slices,
            in their order; a Keras initializer or its name, called with the shape of the whole
            result; or "mean", the mean of the tensor's slices. None keeps the variable's values,
            e.g. its initial ones.

    Raises:
        ValueError: If `indices` are negative or repeated, or `default` is none of these.

    Example:
        Add two classes, whose weights keep their initial values:

        >>> import keras_trainops as kt
        >>> kt.adapt.Pad(axis=-1).shape([(64, 10)], target=(64, 12))
        (64, 12)
    """

    resizes = True

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
                f"along axis {self.axis} the tensor has {shape[axis]} slices and the variable only "
                f"{length}. `Crop` takes a part of them"
            )
        if self.indices is not None:
            require_within(self.indices, length, "variable")
            if len(self.indices) != shape[axis]:
                raise ValueError(
                    f"`indices` must have length {shape[axis]}, one per slice of the tensor. "
                    f"Received: {len(self.indices)} indices"
                )
        require_default(self.default, shape, axis, length - shape[axis])
        return with_length(shape, axis, length)

    def _adapt(self, array: np.ndarray, target: Shape) -> np.ndarray:
        axis = axis_of(self.axis, array.shape)
        length = target[axis_of(self.axis, target)]
        return filled(array, axis, length, self._places(array.shape[axis]), self.default)

    def _undo(self, array: np.ndarray, shape: Shape, target: Shape) -> np.ndarray:
        axis = axis_of(self.axis, shape)
        require_room(array.shape[axis] - shape[axis])
        return np.take(array, self._places(shape[axis]), axis)

    def get_config(self) -> dict[str, Any]:
        return {"axis": self.axis, "indices": self.indices, "default": plain(self.default)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Pad:
        return cls(config["axis"], config["indices"], unpacked(config["default"]))

    def _places(self, length: int) -> Sequence[int]:
        return range(length) if self.indices is None else self.indices

    def __repr__(self) -> str:
        return constructor_call(self, self.axis, indices=self.indices, default=self.default)


class Crop(OneTensor):
    """Takes some slices of a longer tensor.

    Args:
        axis: The axis along which the variable is shorter.
        indices: Indices of the slices to take, in the order of the variable. Default: the first
            slices, as many as the variable has.

    Raises:
        ValueError: If `indices` are negative or repeated.

    Example:
        >>> import keras_trainops as kt
        >>> kt.adapt.Crop(axis=-1, indices=[4, 0, 2]).shape([(64, 10)], target=(64, 3))
        (64, 3)
    """

    resizes = True

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
                f"along axis {self.axis} the tensor has only {shape[axis]} of the {length} slices "
                "the variable needs. `Pad` puts them first"
            )
        return with_length(shape, axis, length)

    def _adapt(self, array: np.ndarray, target: Shape) -> np.ndarray:
        return np.take(array, self._places(target), axis_of(self.axis, array.shape))

    def _undo(self, array: np.ndarray, shape: Shape, target: Shape) -> np.ndarray:
        axis = axis_of(self.axis, shape)
        return scatter(array, axis, shape[axis], self._places(target))

    def _places(self, target: Shape) -> Sequence[int]:
        first = range(target[axis_of(self.axis, target)])
        return first if self.indices is None else self.indices

    def __repr__(self) -> str:
        return constructor_call(self, self.axis, indices=self.indices)


def filled(
    array: np.ndarray, axis: int, length: int, indices: Sequence[int], default: Any
) -> np.ndarray:
    """Write the slices of `array` to `indices` of a longer array, and a default elsewhere.

    Args:
        array: The slices.
        axis: A non-negative axis.
        length: Length of the result along `axis`.
        indices: Index in the result for each slice.
        default: Value of the other slices, as returned by `checked_default`; None masks them.

    Returns:
        The array, masked if some elements have no value. Integers become floats if `default` does
        not fit into their dtype.
    """
    others = np.setdiff1d(np.arange(length), np.asarray(indices, int))
    if default is None or not len(others):
        return scatter(array, axis, length, indices)
    values = _default_values(default, array, with_length(array.shape, axis, length), axis, others)
    if array.dtype.kind in "biu":  # stored as integers, for a variable of floats
        array = array.astype(np.result_type(array.dtype, values))
    missing = with_length(array.shape, axis, len(others))
    rest = np.ma.array(
        np.broadcast_to(np.ma.getdata(values), missing).astype(array.dtype),
        # The mean of masked slices is masked.
        mask=np.broadcast_to(np.ma.getmaskarray(values), missing),
    )
    both = np.ma.concatenate([array, rest], axis)
    return scatter(both, axis, length, [*indices, *others])


def _default_values(
    default: Any, array: np.ndarray, shape: Shape, axis: int, others: np.ndarray
) -> np.ndarray:
    """Return values, to be broadcast, for the slices that the tensor does not fill.

    Args:
        default: Result of `checked_default`, but not None.
        array: The tensor.
        shape: Shape of the result.
        axis: A non-negative axis.
        others: Indices of the slices without a value.
    """
    if isinstance(default, str):  # "mean"
        return np.mean(array, axis, dtype="float64", keepdims=True)
    if callable(default):
        # An initializer scales with the fans of the whole shape, not with those of the new slices.
        whole = keras.ops.convert_to_numpy(default(shape, dtype="float32"))
        return np.take(whole, others, axis)
    return default


def checked_default(default: Any) -> Any:
    """Return `default` as None, "mean", an initializer or an array.

    Raises:
        ValueError: If it is none of these, or names an unknown initializer.
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


def plain(default: Any) -> Any:
    """Return the result of `checked_default` as data that can be stored as JSON.

    Raises:
        ValueError: If it is an initializer other than those of Keras.
    """
    if isinstance(default, np.ndarray):
        return {"values": default.tolist(), "dtype": str(default.dtype)}
    if not isinstance(default, keras.initializers.Initializer):
        return default
    name = type(default).__name__
    if getattr(keras.initializers, name, None) is not type(default):
        raise ValueError(f"the initializer {name} cannot be stored: it is not one of Keras's")
    return {"initializer": name, "config": default.get_config()}


def unpacked(stored: Any) -> Any:
    """Return the default from the result of `plain`.

    Raises:
        ValueError: If it names something else than an initializer of Keras.
    """
    if not isinstance(stored, Mapping):
        return stored
    if "values" in stored:
        return np.array(stored["values"], stored["dtype"])
    kind = getattr(keras.initializers, str(stored["initializer"]), None)
    if not isinstance(kind, type) or not issubclass(kind, keras.initializers.Initializer):
        raise ValueError(f"Keras has no initializer {stored['initializer']!r}")
    return kind(**stored["config"])


def require_default(default: Any, shape: Shape, axis: int, others: int) -> None:
    """Raise if `default` is an array that does not broadcast to the slices without a value.

    Args:
        default: Result of `checked_default`.
        shape: Shape of the tensor.
        axis: A non-negative axis.
        others: Number of slices without a value.
    """
    if isinstance(default, np.ndarray):
        wanted = with_length(shape, axis, others)
        try:
            fits = np.broadcast_shapes(default.shape, wanted) == wanted
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                f"`default` must have shape {wanted} or broadcast to it, as {others} slices have "
                f"no value. Received: an array of shape {default.shape}"
            )


def checked_indices(indices: Sequence[int] | None) -> list[int] | None:
    """Return `indices` as a list; None stays None.

    Raises:
        ValueError: If an index is negative or repeated.
    """
    if indices is None:
        return None
    listed = [*whole_numbers("indices", indices)]
    if len(set(listed)) < len(listed) or any(index < 0 for index in listed):
        raise ValueError(
            f"`indices` must be distinct and not negative. Received: indices={listed!r}"
        )
    return listed


def require_within(indices: Sequence[int], length: int, whose: str) -> None:
    """Raise if an index is out of range.

    Args:
        indices: Non-negative indices.
        length: Length of the axis.
        whose: Owner of the axis, for the message.
    """
    if indices and max(indices) >= length:
        raise ValueError(
            f"`indices` must be < {length}, the length of the {whose}'s axis. Received: "
            f"{max(indices)}"
        )


def require_room(lost: int) -> None:
    """Raise if slices of a variable have no place in the tensor.

    Args:
        lost: Their number.
    """
    if lost:
        raise ValueError(f"the tensor has no room for {lost} slices of the variable")


def constructor_call(adapter: Adapter, axis: int, **options: Any) -> str:
    """Return the call that creates `adapter`, for its `repr`; options that are None are left out.

    Args:
        adapter: The adapter.
        axis: Its axis.
        **options: Its other arguments.
    """
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
