"""The layout of each variable, by the class of its layer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import keras
from keras import layers

from keras_trainops import keras_private
from keras_trainops.layouts.flattening import flattened_before
from keras_trainops.layouts.kinds import (
    Convolution,
    Depthwise,
    Layout,
    Linear,
    Parameter,
    RecurrentBias,
    RecurrentKernel,
    Table,
    Vector,
)

_Layouts: TypeAlias = Iterator[tuple[Any, Layout]]

_GRU_GATES = (1, 0, 2)  # reset, update, new in PyTorch; update, reset, new in Keras


def layouts_of(model: keras.layers.Layer) -> dict[int, Layout]:
    """Return the layout of every weight of a model, by `id(variable)`.

    Args:
        model: A model or layer. Weights of unknown layers get `Parameter`.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> list(layouts_of(model).values())
        [Linear([4, 3]), Vector([3])]
    """
    found: dict[int, Layout] = {}
    for layer in keras_private.all_layers(model):
        if layer.built:
            for variable, layout in _layouts_of_layer(layer):
                found.setdefault(id(variable), layout)
    return {
        id(variable): found.get(id(variable)) or _unknown(variable) for variable in model.weights
    }


def _layouts_of_layer(layer: keras.layers.Layer) -> _Layouts:
    """Yield the layouts of a layer's own variables, those of its class first."""
    of_class = [layouts(layer) for kinds, layouts in _LAYOUTS if isinstance(layer, kinds)]
    yield from itertools.chain(*of_class[:1], _low_rank(layer))


def _unknown(variable: keras.Variable) -> Layout:
    is_table = variable.name == "embeddings" and len(variable.shape) > 1
    return (Table if is_table else Parameter)(variable.shape)


def _dense(layer: Any) -> _Layouts:
    kernel, before = keras_private.kernel_of(layer), flattened_before(layer)
    is_channels_first = before is not None and before.is_channels_first
    features = None if before is None or before.is_channels_first else before.shape
    inputs, outputs = kernel.shape
    yield (
        kernel,
        Linear((inputs,), (outputs,), features=features, is_channels_first=is_channels_first),
    )
    yield from _vectors(layer.bias)


def _einsum(layer: Any) -> _Layouts:
    kernel = keras_private.kernel_of(layer)
    axes, inputs, outputs = kernel_axes(layer.equation)
    if set(axes) == set(inputs + outputs) and inputs and outputs:
        length_of = dict(zip(axes, kernel.shape, strict=True))
        order = [(inputs + outputs).index(axis) for axis in axes]
        given = [length_of[axis] for axis in inputs]
        yield kernel, Linear(given, [length_of[axis] for axis in outputs], order)
    yield from _vectors(layer.bias)


def kernel_axes(equation: str) -> tuple[str, str, str]:
    """Return the axes of the kernel: all, those of the inputs only, and of the outputs only.

    Axes that are not in the kernel are batch axes.

    Example:
        >>> kernel_axes("abc,cde->abde")
        ('cde', 'c', 'de')
    """
    terms, result = equation.replace(" ", "").split("->")
    given, kernel = terms.split(",")
    inputs = [axis for axis in given if axis in kernel and axis not in result]
    outputs = [axis for axis in result if axis in kernel and axis not in given]
    return kernel, "".join(inputs), "".join(outputs)


def _embedding(layer: Any) -> _Layouts:
    for variable in keras_private.own_variables(layer):
        if variable.name == "embeddings":
            yield variable, Table(variable.shape)
        elif variable.name == "reverse_embeddings":
            yield variable, Linear(variable.shape[:1], variable.shape[1:])


def _normalization(layer: Any) -> _Layouts:
    axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    if len(axes) == 1:
        yield from _features(layer)
        return
    for variable in keras_private.own_variables(layer):
        yield variable, Vector(variable.shape, has_channels_last=True)


def _features(layer: Any) -> _Layouts:
    """Yield the layouts of variables with an element per feature."""
    before = flattened_before(layer)
    features = None if before is None or before.is_channels_first else before.shape
    for variable in keras_private.own_variables(layer):
        is_reordered = features is not None and math.prod(features) == math.prod(variable.shape)
        yield variable, Vector(variable.shape, features if is_reordered else None)


def _vectors(*variables: Any) -> _Layouts:
    for variable in variables:
        if variable is not None:
            yield variable, Vector(variable.shape)


def _convolution(layer: Any) -> _Layouts:
    kernel = keras_private.kernel_of(layer)
    yield kernel, Convolution(kernel.shape)
    yield from _vectors(layer.bias)


def _transposed(layer: Any) -> _Layouts:
    yield layer.kernel, Convolution(layer.kernel.shape, is_transposed=True)
    yield from _vectors(layer.bias)


def _depthwise(layer: Any) -> _Layouts:
    yield layer.kernel, Depthwise(layer.kernel.shape)
    yield from _vectors(layer.bias)


def _separable(layer: Any) -> _Layouts:
    yield layer.depthwise_kernel, Depthwise(layer.depthwise_kernel.shape)
    yield layer.pointwise_kernel, Convolution(layer.pointwise_kernel.shape)
    yield from _vectors(layer.bias)


def _cell(cell: Any) -> _Layouts:
    yield cell.kernel, RecurrentKernel(cell.kernel.shape)
    yield cell.recurrent_kernel, RecurrentKernel(cell.recurrent_kernel.shape)
    if cell.bias is not None:
        yield cell.bias, RecurrentBias(cell.bias.shape)


def _gru(cell: Any) -> _Layouts:
    """Yield the layouts of a cell; PyTorch does not have those with `reset_after=False`."""
    is_in_torch = cell.reset_after
    for kernel in (cell.kernel, cell.recurrent_kernel):
        yield kernel, RecurrentKernel(kernel.shape, _GRU_GATES, is_in_torch=is_in_torch)
    if cell.bias is not None:
        yield cell.bias, RecurrentBias(cell.bias.shape, _GRU_GATES)


def _low_rank(layer: keras.layers.Layer) -> _Layouts:
    """Yield the layouts of LoRA's matrices; those of `EinsumDense` have no counterpart."""
    if isinstance(layer, layers.EinsumDense):
        return
    for variable in keras_private.own_variables(layer):
        if variable.name in _LOW_RANK and len(variable.shape) == 2:
            yield variable, Linear(variable.shape[:1], variable.shape[1:])
        elif variable.name == "lora_kernel_a":
            yield variable, Convolution(variable.shape)


_LOW_RANK = ("lora_kernel_a", "lora_kernel_b", "lora_embeddings_a", "lora_embeddings_b")
_CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
_TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
_NORMALIZATIONS = (
    *(layers.BatchNormalization, layers.LayerNormalization, layers.GroupNormalization),
    layers.RMSNormalization,
)

_LAYOUTS: tuple[tuple[Any, Callable[[Any], _Layouts]], ...] = (
    (layers.EinsumDense, _einsum),
    (layers.Embedding, _embedding),
    (layers.Dense, _dense),
    (_NORMALIZATIONS, _normalization),
    (layers.PReLU, _features),
    (_TRANSPOSED, _transposed),
    (_CONVOLUTIONS, _convolution),
    ((layers.DepthwiseConv1D, layers.DepthwiseConv2D), _depthwise),
    ((layers.SeparableConv1D, layers.SeparableConv2D), _separable),
    ((layers.LSTMCell, layers.SimpleRNNCell), _cell),
    (layers.GRUCell, _gru),
)
