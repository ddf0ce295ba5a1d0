"""Which axes of a weight lead to one output unit: a matter of its layer, not of its rank.

A kernel of shape `(3, 3, 8, 16)` has 16 output units in a `Conv2D` and 8 in a `Conv2DTranspose`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import keras

from keras_trainops import paths
from keras_trainops.transforms.scope import owner_of

Axes: TypeAlias = "tuple[int, ...] | None"  # what to reduce over; None: the whole tensor is a unit
Overrides: TypeAlias = "Mapping[str, Any] | Iterable[tuple[paths.Pattern, Any]] | None"

_L = keras.layers
_DEPTHWISE = (_L.DepthwiseConv1D, _L.DepthwiseConv2D)
_SEPARABLE = (_L.SeparableConv1D, _L.SeparableConv2D)
_TRANSPOSED = (_L.Conv1DTranspose, _L.Conv2DTranspose, _L.Conv3DTranspose)
_OUTPUT_LAST = (
    _L.Dense,
    _L.Conv1D,
    _L.Conv2D,
    _L.Conv3D,
    *_SEPARABLE,
    _L.LSTMCell,
    _L.GRUCell,
    _L.SimpleRNNCell,
    _L.ConvLSTM1D,
    _L.ConvLSTM2D,
    _L.ConvLSTM3D,
)


def unit_axes(variables: Sequence[keras.Variable], overrides: Overrides = None) -> list[Axes]:
    """The axes of each variable that lead to one output unit; while transforms are built.

    Biases, scales and whatever else has one axis longer than 1 at most count as a whole.

    Args:
        variables: The variables to train.
        overrides: Mapping from pattern to axes, or to None for the whole tensor, which is asked
            before the layers are.

    Returns:
        For each variable a tuple of axes to reduce over, or None for the whole tensor.

    Raises:
        ValueError: If neither an override nor a layer tells; the message names the variables.
    """
    rules = [(pattern, (axes,)) for pattern, axes in paths.as_rules(overrides)]
    chosen = paths.first_match(rules, paths.by_path(variables))
    found: list[Axes] = []
    unknown = []
    for variable, choice in zip(variables, chosen, strict=True):
        axes = _checked(choice[0], variable) if choice is not None else _of_layer(variable)
        if axes is NotImplemented:
            unknown.append(f"{variable.path!r} of shape {tuple(variable.shape)}")
        found.append(axes)
    if unknown:
        raise ValueError(
            f"Which axes of {', '.join(unknown)} lead to one output unit? The layer they belong to "
            "is not known, or not of a kind that tells. Train a model with `TrainOpsMixin`, or say "
            'it with `axes={pattern: axes}`, as in `axes={"my_layer/kernel": (0,)}`; None stands '
            "for the whole tensor."
        )
    return found


def _checked(axes: Any, variable: keras.Variable) -> Axes:
    rank = len(variable.shape)
    if axes is None:
        return None
    if not all(isinstance(axis, int) and -rank <= axis < rank for axis in axes):
        raise ValueError(
            f"`axes` of {variable.path!r} must be axes of the shape {tuple(variable.shape)}. "
            f"Received: {axes!r}"
        )
    return tuple(axis % rank for axis in axes)


def _of_layer(variable: keras.Variable) -> Any:
    """The axes by the layer's own layout, `NotImplemented` where it is not known."""
    if sum(size > 1 for size in variable.shape) <= 1 or variable.name.endswith("bias"):
        return None
    layer, rank, name = owner_of(variable), len(variable.shape), variable.name
    if isinstance(layer, _L.Embedding) and name in ("embeddings", "reverse_embeddings"):
        return (1,) if name == "embeddings" else (0,)
    if isinstance(layer, _DEPTHWISE) or (
        isinstance(layer, _SEPARABLE) and name == "depthwise_kernel"
    ):
        return tuple(range(rank - 2))
    if isinstance(layer, _TRANSPOSED):
        return (*range(rank - 2), rank - 1)
    if isinstance(layer, _L.EinsumDense):
        return _contracted(layer.equation, rank)
    if isinstance(layer, _OUTPUT_LAST) and "kernel" in name:
        return tuple(range(rank - 1))
    if isinstance(layer, (_L.LayerNormalization, _L.BatchNormalization, _L.PReLU)):
        return None
    return NotImplemented


def _contracted(equation: str, rank: int) -> Any:
    """The kernel's axes that an `EinsumDense` sums over: those that its output lacks."""
    kernel, output = equation.split(",")[1].split("->")
    return tuple(i for i in range(rank) if kernel[i] not in output)
