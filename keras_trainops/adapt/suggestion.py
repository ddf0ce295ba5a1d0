"""Which adapter would make tensors fit: a hint in an error, never done unasked.

A hint is followed to the letter. So there is one only where shapes and names leave no other
reading: not where two axes could be exchanged, and not for several tensors whose order only the
rename rules tell. What is known of PyTorch's layers is `from_torch`'s to say.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Sequence

import keras
from keras import layers

from keras_trainops import keras_private
from keras_trainops.adapt.base import Adapter, Chain, Shape, only_difference
from keras_trainops.adapt.channels import InputChannels
from keras_trainops.adapt.layout import Reshape, Transpose
from keras_trainops.adapt.positions import ResizePositions
from keras_trainops.adapt.slices import Crop, Pad
from keras_trainops.adapt.torch_adapters import FromTorch, Unknown, is_torch_key
from keras_trainops.adapt.torch_layouts import may_be_exchanged, torch_layouts

_OF_IMAGES = 4  # channels, at most
_MOST_AXES = 6  # of which all orders are tried
_FROM_TORCH = "kt.adapt.from_torch(model)"


class Hints:
    """Says which adapters would make tensors fit the variables of one model."""

    def __init__(self, model: keras.layers.Layer) -> None:
        self._model = model

    @functools.cached_property
    def _torch(self) -> dict[int, FromTorch]:
        try:
            return torch_layouts(self._model)
        except ValueError:  # a layer that PyTorch does not have
            return {}

    @functools.cached_property
    def _owners(self) -> dict[int, keras.layers.Layer]:
        known = (layers.Dense, layers.Conv1D, layers.Conv2D, layers.Conv3D)
        return {
            id(variable): layer
            for layer in keras_private.all_layers(self._model)
            if isinstance(layer, known)
            for variable in layer.weights
        }

    def suggest(
        self,
        keys: Sequence[str],
        shapes: Sequence[Shape],
        variable: keras.Variable,
        pattern: str,
        adapter: Adapter | None = None,
    ) -> str:
        """What to write so that tensors of these shapes fit.

        Args:
            keys: The keys that lead to the variable.
            shapes: The shapes of their tensors, or of what `adapter` makes of them.
            variable: The variable.
            pattern: A pattern that matches it alone.
            adapter: What there is already.

        Returns:
            `adapt=…`; or what is to stand behind `adapter`; empty where nothing is certain.
        """
        target, owner = tuple(variable.shape), self._owners.get(id(variable))
        raw = fitting(shapes, target, variable.path, owner)
        if adapter is not None:
            return f"{_call(raw)} behind it" if raw and not isinstance(raw, Transpose) else ""
        pattern = f'{"r" if chr(92) in pattern else ""}"{pattern}"'
        as_it_is = f"adapt={{{pattern}: {_call(raw)}}}" if raw else ""
        known = self._torch.get(id(variable))
        if known is None or isinstance(known, Unknown):
            return as_it_is
        as_torch = _as_torch(known, keys, shapes, target, variable.path, owner, pattern)
        if any(map(is_torch_key, keys)):
            return as_torch
        if isinstance(raw, Transpose):  # whoever transposes it may do more
            as_it_is = ""
        if as_it_is and as_torch:
            return as_torch if isinstance(raw, Reshape) and len(shapes[0]) == 1 else ""
        certain = len(shapes) == 1 and not may_be_exchanged(shapes[0])
        return as_torch if as_torch and certain else as_it_is


def _as_torch(
    known: FromTorch,
    keys: Sequence[str],
    shapes: Sequence[Shape],
    target: Shape,
    path: str,
    owner: keras.layers.Layer | None,
    pattern: str,
) -> str:
    """What to write if the tensors are PyTorch's; empty if they do not fit as such."""
    try:
        _, adapter = known.for_keys(keys, shapes, target)
        shape = None if adapter is None else adapter.shape(shapes, target)
    except ValueError:
        return ""
    if adapter is None or shape is None:
        return ""
    if shape == target:
        return f"adapt={_FROM_TORCH}"
    resize = _resizing(shape, target, path, owner)
    return (
        f"adapt={{**{_FROM_TORCH}, {pattern}: {_call(Chain(adapter, resize))}}}" if resize else ""
    )


def _call(adapter: Adapter) -> str:
    """What makes it, as Python."""
    steps = adapter.adapters if isinstance(adapter, Chain) else [adapter]
    calls = [f"kt.adapt.{step!r}" for step in steps]
    return calls[0] if len(calls) == 1 else f"[{', '.join(calls)}]"


def in_words(suggestion: str) -> str:
    """A suggestion as the end of a sentence, with what it decides for the user."""
    decided = {"Crop(": "takes the first slices", "Pad(": "fills the first slices"}
    what = [words for name, words in decided.items() if name in suggestion]
    return f"{suggestion} would fit" + "".join(f", and {words}" for words in what)


def fitting(
    shapes: Sequence[Shape], target: Shape, path: str, owner: keras.layers.Layer | None = None
) -> Adapter | None:
    """The only adapter that makes a tensor of this shape fit, as far as shapes tell.

    Args:
        shapes: The shapes of the tensors; of several nothing is certain.
        target: The shape of the variable, which is another one.
        path: The path of the variable.
        owner: The layer that it is of, where that is known.

    Example:
        >>> fitting([(512, 1000)], (512, 10), "head/kernel", keras.layers.Dense(10))
        Crop(axis=1)
        >>> fitting([(8, 8)], (8, 4, 2), "attention/query/kernel")  # transposed or not?
    """
    if len(shapes) != 1:
        return None
    return _resizing(shapes[0], target, path, owner) or _rearranging(shapes[0], target)


def _resizing(
    shape: Shape, target: Shape, path: str, owner: keras.layers.Layer | None
) -> Adapter | None:
    """For one axis of another length, if it is one that may have it."""
    axis = only_difference(shape, target)
    if axis is None:
        return None
    old, new = shape[axis], target[axis]
    if isinstance(owner, layers.Dense):
        if axis == len(shape) - 1:
            return Crop(axis) if old > new else Pad(axis)
        return None
    if owner is not None:  # a convolution
        of_images = min(old, new) > 0 and max(old, new) <= _OF_IMAGES and owner.groups == 1
        return InputChannels() if of_images and axis == len(shape) - 2 > 0 else None
    # A class token in front of a square grid; texts have lengths that are no such numbers.
    grids = all(math.isqrt(length - 1) ** 2 == length - 1 > 1 for length in (old, new))
    is_table = axis == len(shape) - 2 and (len(shape) == 2 or shape[:-2] == (1,))
    if is_table and grids and ("pos" in path.lower() or len(shape) == 3):
        return ResizePositions(prefix_tokens=1)
    return None


def _rearranging(shape: Shape, target: Shape) -> Adapter | None:
    """Where only one order of the axes can be merged or divided into those of the variable."""
    axes = [axis for axis, length in enumerate(shape) if length != 1]
    if math.prod(shape) != math.prod(target) or 0 in target or len(axes) > _MOST_AXES:
        return None
    orders = [
        order
        for order in itertools.permutations(axes)
        if _merged_or_divided([shape[axis] for axis in order], target)
    ]
    if len(orders) != 1:
        return None
    if [*orders[0]] == axes:
        return Reshape()
    everywhere = itertools.permutations(range(len(shape)))
    transposes = [order for order in everywhere if tuple(shape[axis] for axis in order) == target]
    if len(transposes) != 1:
        return None
    (order,) = transposes
    return Transpose(None if [*order] == [*reversed(range(len(shape)))] else order)


def _merged_or_divided(shape: Sequence[int], target: Shape) -> bool:
    ends = [{1, *itertools.accumulate(side, operator.mul)} for side in (shape, target)]
    return ends[0] <= ends[1] or ends[1] <= ends[0]
