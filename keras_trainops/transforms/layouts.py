"""The axes of a weight that lead to one output unit, which depend on its layer, not on its rank.

A kernel of shape `(3, 3, 8, 16)` has 16 output units in a `Conv2D` and 8 in a `Conv2DTranspose`.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import keras

from keras_trainops import paths

Axes: TypeAlias = "tuple[int, ...] | None"  # axes to reduce over; None: the tensor is one unit
Chosen: TypeAlias = "Sequence[int] | None"
Overrides: TypeAlias = "Mapping[str, Chosen] | Iterable[tuple[paths.Pattern, Chosen]] | None"

_L = keras.layers
_owners: contextvars.ContextVar[Mapping[int, keras.layers.Layer]] = contextvars.ContextVar("owners")


@contextmanager
def owners_scope(layers: Sequence[keras.layers.Layer]) -> Iterator[None]:
    """Set the owner of each variable, its innermost layer, while a chain is built."""
    owners: dict[int, keras.layers.Layer] = {}
    for layer in sorted(layers, key=lambda layer: -len(layer.variables)):
        owners.update({id(variable): layer for variable in layer.variables})
    token = _owners.set(owners)
    try:
        yield
    finally:
        _owners.reset(token)


def owner_of(variable: keras.Variable) -> keras.layers.Layer | None:
    """Return the layer that owns `variable`; None if unknown, or outside of `build`."""
    return _owners.get({}).get(id(variable))


def unit_axes(variables: Sequence[keras.Variable], overrides: Overrides = None) -> dict[int, Axes]:
    """Return the axes of each variable that lead to one output unit; call it from `build`.

    Biases, scales and other tensors with at most one axis longer than 1 count as a whole.

    Args:
        variables: The variables to train.
        overrides: Mapping from pattern to axes, or to None for the whole tensor, which takes
            precedence over the layers' layouts.

    Returns:
        By `id(variable)` a tuple of axes to reduce over, or None for the whole tensor.

    Raises:
        ValueError: If neither an override nor a layer determines the axes; the message names the
            variables.
    """
    rules = [(pattern, (axes,)) for pattern, axes in paths.as_rules(overrides)]
    chosen = paths.first_match(rules, paths.by_path(variables))
    found: dict[int, Axes] = {}
    unknown = []
    for variable, choice in zip(variables, chosen, strict=True):
        axes = _checked(choice[0], variable) if choice is not None else _layout_axes(variable)
        if axes is NotImplemented:
            unknown.append(f"{variable.path!r} of shape {tuple(variable.shape)}")
        found[id(variable)] = axes
    if unknown:
        raise ValueError(
            f"The axes that lead to one output unit are unknown for {', '.join(unknown)}: no layer "
            "is known to own it, or the layer's layout is unknown. Train a model with "
            "`TrainOpsMixin`, or pass `axes={pattern: axes}`, as in "
            '`axes={"my_layer/kernel": (0,)}`; None means the whole tensor.'
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


def _layout_axes(variable: keras.Variable) -> Any:
    """Return the axes by the layout of the variable's layer; `NotImplemented` if it is unknown."""
    if sum(size > 1 for size in variable.shape) <= 1 or variable.name.endswith("bias"):
        return None
    layer = owner_of(variable)
    for kinds, axes_of in _LAYOUTS:
        if isinstance(layer, kinds):
            return axes_of(variable, layer)
    return NotImplemented


def _embedding_axes(variable: keras.Variable, layer: Any) -> Any:
    return {"embeddings": (1,), "reverse_embeddings": (0,)}.get(variable.name, NotImplemented)


def _depthwise_axes(variable: keras.Variable, layer: Any) -> Any:
    return tuple(range(len(variable.shape) - 2))


def _separable_axes(variable: keras.Variable, layer: Any) -> Any:
    if variable.name == "depthwise_kernel":
        return _depthwise_axes(variable, layer)
    return _output_last_axes(variable, layer)


def _transposed_axes(variable: keras.Variable, layer: Any) -> Any:
    rank = len(variable.shape)
    return (*range(rank - 2), rank - 1)


def _einsum_axes(variable: keras.Variable, layer: Any) -> Any:
    """Return the kernel's axes that the equation sums over, which its output lacks."""
    kernel, output = layer.equation.split(",")[1].split("->")
    return tuple(i for i in range(len(variable.shape)) if kernel[i] not in output)


def _output_last_axes(variable: keras.Variable, layer: Any) -> Any:
    return tuple(range(len(variable.shape) - 1)) if "kernel" in variable.name else NotImplemented


def _no_axes(variable: keras.Variable, layer: Any) -> Any:
    return None


_OUTPUT_LAST = (
    _L.Dense,
    _L.Conv1D,
    _L.Conv2D,
    _L.Conv3D,
    _L.LSTMCell,
    _L.GRUCell,
    _L.SimpleRNNCell,
    _L.ConvLSTM1D,
    _L.ConvLSTM2D,
    _L.ConvLSTM3D,
)
_LAYOUTS: list[tuple[Any, Callable[[keras.Variable, Any], Any]]] = [
    (_L.Embedding, _embedding_axes),
    ((_L.DepthwiseConv1D, _L.DepthwiseConv2D), _depthwise_axes),
    ((_L.SeparableConv1D, _L.SeparableConv2D), _separable_axes),
    ((_L.Conv1DTranspose, _L.Conv2DTranspose, _L.Conv3DTranspose), _transposed_axes),
    (_L.EinsumDense, _einsum_axes),
    (_OUTPUT_LAST, _output_last_axes),
    ((_L.LayerNormalization, _L.BatchNormalization, _L.PReLU), _no_axes),
]
