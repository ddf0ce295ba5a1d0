"""Suggestions of adapters that make tensors fit, for error messages; never applied unasked.

Users paste a suggestion without checking it. So make one only if shapes and names leave no other
reading: not if two axes could be swapped, and not for several tensors, whose order only the rename
rules define. `from_torch` handles PyTorch's layouts.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Iterable, Sequence

import keras
from keras import layers

from keras_trainops import keras_private
from keras_trainops.adapt.axes import differing_axis
from keras_trainops.adapt.base import Adapter, Chain, Shape
from keras_trainops.adapt.channels import InputChannels
from keras_trainops.adapt.layout import Reshape, Transpose
from keras_trainops.adapt.positions import ResizePositions
from keras_trainops.adapt.slices import Crop, Pad
from keras_trainops.layouts.from_torch import torch_layouts
from keras_trainops.layouts.questions import code_of
from keras_trainops.layouts.torch_adapters import FromTorch, axes_may_be_swapped, is_torch_key

_MAX_IMAGE_CHANNELS = 4
_MAX_PERMUTED_AXES = 6  # all their orders are tried
_FROM_TORCH = "kt.adapt.from_torch(model)"


class Hints:
    """Suggests adapters for the variables of one model."""

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
        owners: dict[int, keras.layers.Layer] = {}
        for layer in keras_private.all_layers(self._model):
            if isinstance(layer, (layers.Dense, layers.Conv1D, layers.Conv2D, layers.Conv3D)):
                owners |= dict.fromkeys(map(id, layer.weights), layer)
        return owners

    def suggest(
        self,
        keys: Sequence[str],
        shapes: Sequence[Shape],
        variable: keras.Variable,
        pattern: str,
        adapter: Adapter | None = None,
    ) -> str:
        """Return code that makes tensors of these shapes fit.

        Args:
            keys: The keys that lead to the variable.
            shapes: Shapes of their tensors, or of the result of `adapter`.
            variable: The variable.
            pattern: A pattern that matches only the variable.
            adapter: The adapter that is already used, if any.

        Returns:
            `adapt=…`, or the adapter to append to `adapter`, or "" if nothing is certain.
        """
        owner = self._owners.get(id(variable))
        plain = fitting_adapter(shapes, tuple(variable.shape), variable.path, owner)
        if adapter is not None:
            return (
                f"{code_of(plain)} after it" if plain and not isinstance(plain, Transpose) else ""
            )
        pattern = f'{"r" if chr(92) in pattern else ""}"{pattern}"'
        plain_code = f"adapt={{{pattern}: {code_of(plain)}}}" if plain else ""
        torch_adapter = self._torch.get(id(variable))
        if torch_adapter is None or not torch_adapter.has_torch_layout:
            return plain_code
        torch_code = _torch_code(torch_adapter, keys, shapes, variable, owner, pattern)
        if any(map(is_torch_key, keys)):
            return torch_code
        return _unambiguous(plain, plain_code, torch_code, shapes)


def _unambiguous(
    plain: Adapter | None, plain_code: str, torch_code: str, shapes: Sequence[Shape]
) -> str:
    """Choose between two suggestions for keys that do not say whether they are PyTorch's.

    Args:
        plain: The adapter for tensors of other libraries, if any.
        plain_code: The suggestion for tensors of other libraries; may be "".
        torch_code: The suggestion for tensors of PyTorch; may be "".
        shapes: Shapes of the tensors.
    """
    if isinstance(plain, Transpose):  # a library that transposes may do more than that
        plain_code = ""
    if plain_code and torch_code:
        return torch_code if isinstance(plain, Reshape) and len(shapes[0]) == 1 else ""
    certain = len(shapes) == 1 and not axes_may_be_swapped(shapes[0])
    return torch_code if torch_code and certain else plain_code


def _torch_code(
    torch_adapter: FromTorch,
    keys: Sequence[str],
    shapes: Sequence[Shape],
    variable: keras.Variable,
    owner: keras.layers.Layer | None,
    pattern: str,
) -> str:
    """Return the suggestion for tensors of PyTorch, or "" if they do not fit as such.

    Args:
        torch_adapter: The adapter of `from_torch` for the variable.
        keys: The keys that lead to the variable.
        shapes: Shapes of their tensors.
        variable: The variable.
        owner: See `fitting_adapter`.
        pattern: A pattern that matches only the variable, quoted.
    """
    target = tuple(variable.shape)
    try:
        _, adapter = torch_adapter.for_keys(keys, shapes, target)
        shape = None if adapter is None else adapter.shape(shapes, target)
    except ValueError:
        return ""
    if adapter is None or shape is None:
        return ""
    if shape == target:
        return f"adapt={_FROM_TORCH}"
    resize = _resizing_adapter(shape, target, variable.path, owner)
    if resize is None:
        return ""
    return f"adapt={{**{_FROM_TORCH}, {pattern}: {code_of(Chain(adapter, resize))}}}"


def in_words(suggestion: str) -> str:
    """Return a suggestion as the end of a sentence that says which slices it keeps."""
    effects = {"Crop(": "takes the first slices", "Pad(": "fills the first slices"}
    words = [effect for name, effect in effects.items() if name in suggestion]
    return f"{suggestion} would fit" + "".join(f", and {effect}" for effect in words)


def fitting_adapter(
    shapes: Sequence[Shape], target: Shape, path: str, owner: keras.layers.Layer | None = None
) -> Adapter | None:
    """Return the only adapter that makes a tensor fit, or None if shapes leave a choice.

    Args:
        shapes: Shapes of the tensors. With several tensors nothing is certain.
        target: Shape of the variable, different from that of the tensor.
        path: Path of the variable.
        owner: The layer of the variable, if it is a `Dense` or a convolution.

    Example:
        >>> fitting_adapter([(512, 1000)], (512, 10), "head/kernel", keras.layers.Dense(10))
        Crop(axis=1)
        >>> fitting_adapter([(8, 8)], (8, 4, 2), "attention/query/kernel")  # transposed or not?
    """
    if len(shapes) != 1:
        return None
    resize = _resizing_adapter(shapes[0], target, path, owner)
    return resize or _rearranging_adapter(shapes[0], target)


def _resizing_adapter(
    shape: Shape, target: Shape, path: str, owner: keras.layers.Layer | None
) -> Adapter | None:
    """Return an adapter for shapes that differ in the length of one axis, if its kind is known.

    Args:
        shape: Shape of the tensor.
        target: Shape of the variable.
        path: Path of the variable.
        owner: See `fitting_adapter`.
    """
    axis = differing_axis(shape, target)
    if axis is None:
        return None
    if isinstance(owner, layers.Dense):
        return _adapter_of_units(shape, target, axis)
    if owner is not None:
        return _adapter_of_channels(shape, target, axis, owner)
    return _adapter_of_positions(shape, target, axis, path)


def _adapter_of_units(shape: Shape, target: Shape, axis: int) -> Adapter | None:
    """Return `Crop` or `Pad` for a dense layer if only the number of its units differs.

    Args:
        shape: Shape of the tensor.
        target: Shape of the variable.
        axis: The only axis along which they differ.
    """
    if axis != len(shape) - 1:
        return None
    return Crop(axis) if shape[axis] > target[axis] else Pad(axis)


def _adapter_of_channels(
    shape: Shape, target: Shape, axis: int, convolution: keras.layers.Layer
) -> Adapter | None:
    """Return `InputChannels` if only the number of input channels differs, as of images.

    Args:
        shape: Shape of the kernel's tensor.
        target: Shape of the kernel.
        axis: The only axis along which they differ.
        convolution: The layer that the kernel belongs to.
    """
    lengths = (shape[axis], target[axis])
    are_images = min(lengths) > 0 and max(lengths) <= _MAX_IMAGE_CHANNELS
    is_input_axis = axis == len(shape) - 2 > 0
    return InputChannels() if are_images and is_input_axis and convolution.groups == 1 else None


def _adapter_of_positions(shape: Shape, target: Shape, axis: int, path: str) -> Adapter | None:
    """Return an adapter for position embeddings with a class token before a square grid.

    Text lengths are rarely a square plus one, so two such lengths indicate image patches.

    Args:
        shape: Shape of the tensor.
        target: Shape of the variable.
        axis: The only axis along which they differ.
        path: Path of the variable.
    """
    is_table = axis == len(shape) - 2 and (len(shape) == 2 or shape[:-2] == (1,))
    are_grids = _is_class_token_and_grid(shape[axis]) and _is_class_token_and_grid(target[axis])
    if is_table and are_grids and ("pos" in path.lower() or len(shape) == 3):
        return ResizePositions(prefix_tokens=1)
    return None


def _is_class_token_and_grid(length: int) -> bool:
    return length > 2 and math.isqrt(length - 1) ** 2 == length - 1


def _rearranging_adapter(shape: Shape, target: Shape) -> Adapter | None:
    """Return an adapter if only one order of the axes merges or splits into the variable's axes.

    Args:
        shape: Shape of the tensor.
        target: Shape of the variable.
    """
    axes = [axis for axis, length in enumerate(shape) if length != 1]
    if math.prod(shape) != math.prod(target) or 0 in target or len(axes) > _MAX_PERMUTED_AXES:
        return None
    orders = [o for o in itertools.permutations(axes) if _merges_or_splits(shape, o, target)]
    if len(orders) != 1:
        return None
    return Reshape() if [*orders[0]] == axes else _only_transpose(shape, target)


def _only_transpose(shape: Shape, target: Shape) -> Transpose | None:
    every_order = itertools.permutations(range(len(shape)))
    fitting = [axes for axes in every_order if tuple(shape[axis] for axis in axes) == target]
    if len(fitting) != 1:
        return None
    is_reversed = fitting[0] == tuple(reversed(range(len(shape))))
    return Transpose(None if is_reversed else fitting[0])


def _merges_or_splits(shape: Shape, order: Sequence[int], target: Shape) -> bool:
    """Return True if the axes in this order merge into those of the target, or split into them.

    Args:
        shape: Shape of the tensor.
        order: Its axes in a new order, without axes of length 1.
        target: Shape of the variable.
    """
    products = _cumulative_products([shape[axis] for axis in order])
    wanted = _cumulative_products(target)
    return products <= wanted or wanted <= products


def _cumulative_products(lengths: Iterable[int]) -> set[int]:
    return {1, *itertools.accumulate(lengths, operator.mul)}
