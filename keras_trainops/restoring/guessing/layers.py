"""Find layers by names alone, and compare layers of a checkpoint with those of a model.

Tensors with a common prefix form a layer (`layer1.0.conv1` with `weight` and `bias`). A layer of
the checkpoint fits one of the model if each of its tensors has a counterpart with the same meaning
(`weight` is Keras's `kernel`, `gamma` or `embeddings`) and a shape that can be adapted.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeAlias

from keras_trainops.adapt.torch_adapters import is_torch_key

Shape: TypeAlias = tuple[int, ...]
Leaves: TypeAlias = tuple[tuple[str, Shape], ...]

# Names in other libraries -> names in Keras.
_MEANINGS = {
    "weight": ("kernel", "gamma", "embeddings"),
    "weights": ("kernel",),
    "w": ("kernel",),
    "bias": ("beta",),
    "biases": ("bias",),
    "b": ("bias",),
    "scale": ("gamma",),
    "offset": ("beta",),
    "mean": ("moving_mean",),
    "running_mean": ("moving_mean",),
    "var": ("moving_variance",),
    "variance": ("moving_variance",),
    "running_var": ("moving_variance",),
    "embedding": ("embeddings",),
    "depthwise_kernel": ("kernel",),
    "depthwise_weights": ("depthwise_kernel", "kernel"),
    "pointwise_weights": ("pointwise_kernel",),
}
_KERNELS = {"kernel", "depthwise_kernel", "pointwise_kernel"}
_MAY_BE_MISSING = {"bias", "beta"}  # often left out of a convolution before a normalisation


class Layer(NamedTuple):
    """The tensors with a common prefix.

    Attributes:
        name: The prefix, without the last component.
        leaves: The last component and the shape of each tensor.
        tensors: The full name of each tensor, by its last component.
    """

    name: str
    leaves: Leaves
    tensors: dict[str, str]


def layers_of(shapes: Mapping[str, Shape], separators: str) -> list[Layer]:
    """Return the layers in the order of their first tensor.

    Args:
        shapes: The shape of each tensor by name.
        separators: The characters between components of a name, such as `"/."`.

    Example:
        >>> layers_of({"net.fc.weight": (2, 3), "net.fc.bias": (2,)}, "/.")[0].leaves
        (('weight', (2, 3)), ('bias', (2,)))
    """
    found: dict[str, list[str]] = {}
    for name in shapes:
        owner = split_leaf(name, separators)[0].rstrip(separators)
        found.setdefault(owner, []).append(name)
    return [
        Layer(
            owner,
            tuple((leaf_of(name, separators), shapes[name]) for name in names),
            {leaf_of(name, separators): name for name in names},
        )
        for owner, names in found.items()
    ]


def split_leaf(name: str, separators: str) -> tuple[str, str]:
    """Split a name into the part before its last component, with the separator, and the rest."""
    leaf = leaf_of(name, separators)
    return name[: -len(leaf)], leaf


def leaf_of(name: str, separators: str) -> str:
    """Return the last component of a name."""
    return re.split(f"[{re.escape(separators)}]", name)[-1] or name


def looks_like_torch(keys: Iterable[str]) -> bool:
    """Return True if a name belongs to a PyTorch layer, with kernels as (outputs, inputs, …)."""
    return any(map(is_torch_key, keys))


def matching_leaves(theirs: Layer, ours: Layer, torch: bool) -> dict[str, str] | None:
    """Pair the tensors of two layers.

    Args:
        theirs: A layer of the checkpoint.
        ours: A layer of the model.
        torch: If True, the checkpoint has PyTorch's layouts.

    Returns:
        Key -> path; None if the layers do not fit.
    """
    leaves = _paired_leaves(theirs.leaves, ours.leaves, torch)
    if leaves is None:
        return None
    return {theirs.tensors[leaf]: ours.tensors[other] for leaf, other in leaves}


@functools.lru_cache(maxsize=1 << 16)  # networks repeat their layers
def _paired_leaves(theirs: Leaves, ours: Leaves, torch: bool) -> list[tuple[str, str]] | None:
    pairs = []
    left = dict(ours)
    for leaf, shape in theirs:
        fitting = [
            other
            for other, wanted in left.items()
            if _same_meaning(leaf, other) and adaptation(other, shape, wanted, torch) is not None
        ]
        if not fitting:
            return None
        other = leaf if leaf in fitting else fitting[0]
        pairs.append((leaf, other))
        del left[other]
    return pairs if left.keys() <= _MAY_BE_MISSING else None


def _same_meaning(one: str, other: str) -> bool:
    return one == other or other in _MEANINGS.get(one, ()) or one in _MEANINGS.get(other, ())


def adaptation(leaf: str, shape: Shape, wanted: Shape, torch: bool) -> str | None:
    """Return the adapter that makes a tensor fit a variable.

    Args:
        leaf: The variable's name in its layer.
        shape: The shape of the tensor.
        wanted: The shape of the variable.
        torch: If True, kernels have PyTorch's layouts. Even square ones must be transposed then.

    Returns:
        "from_torch" or "Reshape"; "" if the tensor fits unchanged; None if nothing fits.

    Example:
        >>> adaptation("kernel", (64, 3, 7, 5), (7, 5, 3, 64), torch=True)
        'from_torch'
        >>> adaptation("kernel", (1, 1, 32, 10), (32, 10), torch=False)
        'Reshape'
    """
    is_kernel = leaf in _KERNELS and len(shape) > 1
    if is_kernel and torch:
        return "from_torch" if wanted in _keras_shapes(shape) else None
    if shape == wanted:
        return ""
    return "Reshape" if is_kernel and _only_flattens(shape, wanted) else None


def _keras_shapes(shape: Shape) -> list[Shape]:
    """Return the shapes that a PyTorch kernel may have in Keras; a depthwise one swaps channels."""
    outputs, inputs, *window = shape
    shapes = [(*window, inputs, outputs)]
    return [*shapes, (*window, outputs, inputs)] if window else shapes


def _only_flattens(shape: Shape, wanted: Shape) -> bool:
    flat = len(wanted) == 2 and shape[-1:] == wanted[-1:]
    return flat and math.prod(shape) == math.prod(wanted)
