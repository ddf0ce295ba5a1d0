"""Layers of a model and of a checkpoint, told by names alone, and which fit each other.

The tensors below one name are taken for a layer (`layer1.0.conv1` with `weight` and `bias`). A
layer of the checkpoint fits one of the model if each of its tensors has a counterpart: of the same
meaning (`weight` is what Keras calls `kernel`, `gamma` or `embeddings`) and of a shape that can
become the variable's.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from keras_trainops.adapt.torch_adapters import is_torch_key

Shape = tuple[int, ...]
Leaves = tuple[tuple[str, Shape], ...]

# What the libraries call what Keras calls otherwise.
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
_MAY_BE_MISSING = {"bias", "beta"}  # a convolution before a normalisation often has none


class Layer(NamedTuple):
    """What lies below one name.

    Attributes:
        name: The name without the last component.
        leaves: The last components, each with the shape of its tensor.
        tensors: The full names, by the last component.
    """

    name: str
    leaves: Leaves
    tensors: dict[str, str]


def layers_of(shapes: Mapping[str, Shape], separators: str) -> list[Layer]:
    """Layers in the order of their first tensor.

    Args:
        shapes: The shapes of tensors by their names.
        separators: What parts the components of a name, as in `"/."`.

    Example:
        >>> layers_of({"net.fc.weight": (2, 3), "net.fc.bias": (2,)}, "/.")[0].leaves
        (('weight', (2, 3)), ('bias', (2,)))
    """
    found: dict[str, list[str]] = {}
    for name in shapes:
        owner = parted(name, separators)[0].rstrip(separators)
        found.setdefault(owner, []).append(name)
    return [
        Layer(
            owner,
            tuple((leaf_of(name, separators), shapes[name]) for name in names),
            {leaf_of(name, separators): name for name in names},
        )
        for owner, names in found.items()
    ]


def parted(name: str, separators: str) -> tuple[str, str]:
    """A name up to its last component, with the separator, and that component."""
    leaf = leaf_of(name, separators)
    return name[: -len(leaf)], leaf


def leaf_of(name: str, separators: str) -> str:
    """The last component of a name."""
    return re.split(f"[{re.escape(separators)}]", name)[-1] or name


def looks_like_torch(keys: Iterable[str]) -> bool:
    """Whether names are those of PyTorch's layers, which keep kernels as (outputs, inputs, …)."""
    return any(map(is_torch_key, keys))


def matching_leaves(theirs: Layer, ours: Layer, torch: bool) -> dict[str, str] | None:
    """Which tensor of `theirs` would go to which of `ours`; None where they do not fit.

    Args:
        theirs: A layer of the checkpoint.
        ours: A layer of the model.
        torch: Whether the checkpoint has PyTorch's layouts.
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
    """What makes a tensor fit a variable: "" for nothing, "from_torch", "Reshape"; None: nothing.

    Args:
        leaf: What Keras calls the variable.
        shape: The shape of the tensor.
        wanted: The shape of the variable.
        torch: Whether the checkpoint has PyTorch's layouts. A square kernel of it has to be
            transposed as well as others.

    Example:
        >>> adaptation("kernel", (64, 3, 7, 5), (7, 5, 3, 64), torch=True)
        'from_torch'
        >>> adaptation("kernel", (1, 1, 32, 10), (32, 10), torch=False)
        'Reshape'
    """
    is_kernel = leaf in _KERNELS and len(shape) > 1
    if is_kernel and torch:
        outputs, inputs, *window = shape
        orders = [(inputs, outputs)] + ([(outputs, inputs)] if window else [])  # or depthwise
        return "from_torch" if wanted in [(*window, *order) for order in orders] else None
    if shape == wanted:
        return ""
    flat = len(wanted) == 2 and shape[-1:] == wanted[-1:]
    return "Reshape" if is_kernel and flat and math.prod(shape) == math.prod(wanted) else None
