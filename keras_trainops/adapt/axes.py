"""Shapes, axes and slices of arrays."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex, TypeAlias

import numpy as np

Shape: TypeAlias = tuple[int, ...]
Index: TypeAlias = tuple[slice, ...]


def axis_of(axis: int, shape: Shape) -> int:
    """Return `axis` as a non-negative index into `shape`.

    Raises:
        ValueError: If a tensor of this shape does not have the axis.
    """
    if not isinstance(axis, SupportsIndex) or not -len(shape) <= axis < len(shape):
        raise ValueError(
            f"`axis` must be one of the {len(shape)} axes of {shape}. Received: axis={axis}"
        )
    return axis % len(shape)


def with_length(shape: Shape, axis: int, length: int) -> Shape:
    """Return `shape` with a different length along `axis`, a non-negative index."""
    return (*shape[:axis], length, *shape[axis + 1 :])


def upcast_for_arithmetic(array: np.ndarray) -> np.ndarray:
    """Cast narrow dtypes to wide ones, because sums would overflow or lose digits."""
    if array.dtype.kind in "bi":
        return array.astype("int64")
    if array.dtype.kind == "u":
        return array.astype("uint64")
    return array.astype("float32") if array.dtype.itemsize < 4 else array


def whole_numbers(argument: str, values: Iterable[Any]) -> tuple[int, ...]:
    """Return `values`, integers of Python or NumPy, as a tuple of `int`.

    Raises:
        ValueError: If a value is not an integer; the message names `argument`.
    """
    try:
        return tuple(operator.index(value) for value in values)
    except TypeError:
        raise ValueError(
            f"`{argument}` must be whole numbers. Received: {argument}={values!r}"
        ) from None


def unmasked(array: np.ndarray) -> np.ndarray:
    """Return the array without its mask, for an adapter that computes with all elements.

    Raises:
        ValueError: If elements are masked, which means that the variable keeps its values there.
    """
    if np.ma.is_masked(array):
        raise ValueError(
            "it computes with all slices, but an earlier adapter leaves some to the variable. Put "
            "it before that adapter, or give that adapter a `default`"
        )
    return np.ma.getdata(array)


def scatter(array: np.ndarray, axis: int, length: int, indices: Sequence[int]) -> np.ndarray:
    """Write the slices of `array` to `indices` of a longer array, and mask the other slices.

    Args:
        array: The slices.
        axis: A non-negative axis.
        length: Length of the result along `axis`.
        indices: Index in the result for each slice.

    Returns:
        The array, masked if some elements have no value.
    """
    shape = with_length(array.shape, axis, length)
    result = np.ma.masked_array(np.empty(shape, array.dtype), mask=True)
    places: tuple[Any, ...] = (*[slice(None)] * axis, np.asarray(indices, int))
    result[places] = array
    return result if result.mask.any() else result.data


def differing_axis(shape: Shape, target: Shape) -> int | None:
    """Return the only axis along which two shapes of equal rank differ, or None."""
    if len(shape) != len(target):
        return None
    axes = [axis for axis, (a, b) in enumerate(zip(shape, target, strict=True)) if a != b]
    return axes[0] if len(axes) == 1 else None
