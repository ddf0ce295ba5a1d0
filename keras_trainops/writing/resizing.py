"""Tensors in the shape that the model has, if it is not that of the source."""

from __future__ import annotations

import math

import numpy as np

from keras_trainops.adapt.axes import Shape, differing_axis, with_length
from keras_trainops.adapt.base import Adapter, Chain, steps_of
from keras_trainops.adapt.layout import Reshape


def resized_inverse(
    adapter: Adapter | None, array: np.ndarray, shape: Shape, target: Shape
) -> np.ndarray:
    """Return the tensor that a source would have if its shape were that of the model.

    Adapters that change lengths, such as `Crop` and `Pad`, are left out.

    Args:
        adapter: The adapter from the tensor of the source.
        array: The variable's value.
        shape: Shape of the tensor in the source.
        target: Shape of the variable.

    Raises:
        ValueError: If it is unclear which axis has changed, or several tensors are combined.

    Example:
        >>> from keras_trainops import adapt
        >>> head = adapt.Chain(adapt.Transpose(), adapt.Crop(axis=1))
        >>> resized_inverse(head, np.zeros((512, 10)), (1000, 512), (512, 10)).shape
        (10, 512)
    """
    if adapter is None:
        return array
    for step, before in reversed(Chain(*steps_of(adapter)).with_shapes([shape], target)):
        if isinstance(step, Reshape):
            array = array.reshape(_refitted(before[0], step.shape(before, target), array.shape))
        elif not step.resizes:
            (array,) = step.inverse(array, before, target)
    if np.ma.is_masked(array):
        raise ValueError("the variable is only a part of the tensor")
    return array


def _refitted(before: Shape, after: Shape, new: Shape) -> Shape:
    """Return the shape before a `Reshape` if one axis has another length after it.

    Args:
        before: Shape of the tensor in the source.
        after: The same, after the `Reshape`.
        new: What it is in the model.
    """
    if after == new:
        return before
    changed = differing_axis(after, new)
    if changed is not None:
        inner = math.prod(after[changed + 1 :])
        for axis, length in enumerate(before):
            if length == after[changed] and math.prod(before[axis + 1 :]) == inner:
                return with_length(before, axis, new[changed])
    raise ValueError(f"it is unclear which axis of {before} has another length in the model")
