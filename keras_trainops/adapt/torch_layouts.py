"""Adapters from the tensor layouts of PyTorch's layers to those of the same layers in Keras."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import keras
from keras import layers

from keras_trainops import keras_private
from keras_trainops.adapt.base import Adapter, Shape
from keras_trainops.adapt.combination import Stack, Sum
from keras_trainops.adapt.layout import (
    Gates,
    Reshape,
    ReshapeFrom,
    Transpose,
    channels_first_flatten,
)
from keras_trainops.adapt.torch_adapters import (
    FromTorch,
    LinearProjection,
    LinearWeight,
    RecurrentBiases,
    UnknownLayout,
)
from keras_trainops.paths import exact_pattern
from keras_trainops.weight_names import model_weights

# Pairs of a variable and the adapter of its tensor; None if the tensor stays as it is.
_Layout: TypeAlias = "Iterator[tuple[Any, FromTorch | None]]"


def from_torch(model: keras.layers.Layer | Iterable[keras.layers.Layer]) -> dict[str, Adapter]:
    """Return adapters from the tensor layouts of PyTorch to those of a model's layers.

    Adapters convert layouts, not names: rename rules assign keys to variables. Other rules for the
    same variables take precedence, in any order, as in `{**from_torch(model), "head": ...}`.

    * `Dense`, from `Linear`: transposes the weight. If the inputs are the flattened features of a
      convolution, it also reorders them, because PyTorch flattens channels first and Keras last. A
      `BatchNormalization` of such features is reordered too.
    * `Conv1D` to `Conv3D` and `Conv1DTranspose` to `Conv3DTranspose`: moves the spatial axes of the
      kernel before its two channel axes.
    * `DepthwiseConv1D`, `2D`, from a convolution with one group per channel: converts (channels ·
      multiplier, 1, space) into (space, channels, multiplier). `SeparableConv1D`, `2D`: does the
      same, and converts the kernel of the second convolution as above.
    * `LSTM`, `SimpleRNN` and their cells: transposes weights and adds `bias_ih` and `bias_hh`.
    * `GRU`, `GRUCell`: transposes weights, stacks `bias_ih` and `bias_hh` in this order, and
      reorders gates.
    * `EinsumDense`, from `Linear`: transposes the weight and splits it into the axes of the
      equation.
    * `MultiHeadAttention`: does the same for query, key, value and output, and first splits
      `in_proj_weight` and `in_proj_bias`.
    * `Embedding` and all other normalizations differ in names only.

    Lead two keys to the bias of a recurrent layer; their names identify them, so the order of the
    rename rules does not matter. Lead the key of a fused query, key and value to a list of three
    paths. Some tensors are rejected, because their layout is ambiguous; write your own entry for
    them: fused tensors with other names than those of `torch.nn.MultiheadAttention`, as libraries
    order their parts differently; square tensors of GPT-2's `Conv1D`; and tensors of layers not
    listed here, if two axes have equal length.

    A layer after a convolution and `Flatten`, with pooling, activations and dropout in between, is
    recognised in functional and sequential models only. Elsewhere, and if input images are
    flattened directly, add `channels_first_flatten`. The computations of the layers are not
    compared: epsilons, paddings and activations must agree.

    Args:
        model: A built model or layer, or several layers.

    Returns:
        A mapping for `adapt=`, from patterns, each the whole path of a variable, to adapters.

    Raises:
        ValueError: If `model` contains anything but layers, a layer without variables, or a GRU
            with `reset_after=False`, which PyTorch does not have.

    Example:
        >>> import keras, keras_trainops as kt
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="head")])
        >>> list(kt.adapt.from_torch(model).values())
        [Transpose()]

    References: the documentation of `torch.nn`.
    """
    roots: list[Any] = [model] if isinstance(model, keras.layers.Layer) else list(model)
    adapters: dict[str, Adapter] = {}
    for root in roots:
        if not isinstance(root, keras.layers.Layer) or not root.weights:
            raise ValueError(
                "`model` must be a model or layers that have variables: call it on a batch first. "
                f"Received: {root!r}"
            )
        adapter_of = torch_layouts(root)
        for path, variable in model_weights(root):
            if id(variable) in adapter_of:
                adapters[exact_pattern(path)] = adapter_of[id(variable)]
    return adapters


def torch_layouts(root: keras.layers.Layer) -> dict[int, FromTorch]:
    """Return the adapters for the variables of a layer and its sublayers, by `id(variable)`.

    Raises:
        ValueError: If PyTorch does not have one of the layers.
    """
    built = [layer for layer in keras_private.all_layers(root) if layer.built]
    known = _known_layouts(built)
    adapters = {key: adapter for key, adapter in known.items() if adapter is not None}
    return adapters | _unknown_layouts(root, built, known)


def _known_layouts(built: Iterable[keras.layers.Layer]) -> dict[int, FromTorch | None]:
    known: dict[int, FromTorch | None] = {}
    for kinds, layout in _LAYOUTS:  # composite layers come before the layers inside them
        of_kind = [layer for layer in built if isinstance(layer, kinds)]
        for variable, adapter in itertools.chain.from_iterable(map(layout, of_kind)):
            known.setdefault(id(variable), adapter)
    return known


def _unknown_layouts(
    root: keras.layers.Layer, built: Iterable[keras.layers.Layer], known: Container[int]
) -> dict[int, FromTorch]:
    """Return adapters for the variables without a known layout whose axes may be swapped.

    Args:
        root: The layer.
        built: The built layers in it, outer layers before inner ones.
        known: The `id` of each variable with a known layout.
    """
    owners: dict[int, str] = {}
    for layer in built:  # the innermost owner wins
        name = f"{layer.name!r} ({type(layer).__name__})"
        owners |= dict.fromkeys(map(id, layer.weights), name)
    return {
        id(variable): UnknownLayout(owners.get(id(variable), repr(root.name)))
        for variable in root.weights
        if id(variable) not in known and axes_may_be_swapped(variable.shape)
    }


def axes_may_be_swapped(shape: Sequence[int]) -> bool:
    """Return True if two axes have equal length, so a tensor fits in several axis orders."""
    lengths = [length for length in shape if length != 1]
    return len(set(lengths)) < len(lengths)


def _dense(layer: Any) -> _Layout:
    yield keras_private.kernel_of(layer), LinearWeight(Transpose(), *_reordering(layer))


def _batch_norm(layer: Any) -> _Layout:
    reordering = _reordering(layer)
    if reordering:
        for variable in layer.weights:
            yield variable, FromTorch(*reordering, Reshape())


def _reordering(layer: keras.layers.Layer) -> list[Adapter]:
    """Return the adapters for inputs that are flattened features of a convolution, else none."""
    flatten = _operation_before(layer, skipped=_PER_FEATURE)
    if not _flattens(flatten):
        return []
    convolution = _operation_before(flatten, skipped=_KEEPING_CHANNELS)
    if not isinstance(convolution, _CONVOLUTIONS):
        return []
    features = flatten.input.shape[1:]
    if convolution.data_format == "channels_first":
        if getattr(flatten, "data_format", "") != "channels_first":
            return []  # features are flattened as in PyTorch
        features = (*features[1:], features[0])
    return [channels_first_flatten(features)]


def _flattens(operation: Any) -> bool:
    is_flat = isinstance(operation, layers.Reshape) and len(operation.output.shape) == 2
    return is_flat or isinstance(operation, layers.Flatten)


def _operation_before(layer: Any, skipped: tuple[type, ...]) -> Any:
    """Return the closest operation before a layer that is not of the skipped kinds."""
    before = keras_private.operation_before(layer)
    while isinstance(before, skipped):
        before = keras_private.operation_before(before)
    return before


def _convolution(layer: Any) -> _Layout:
    kernel = keras_private.kernel_of(layer)
    yield kernel, FromTorch(_space_first(len(kernel.shape)))


def _depthwise(layer: Any) -> _Layout:
    yield layer.kernel, _by_channel(layer.kernel)


def _separable(layer: Any) -> _Layout:
    yield layer.depthwise_kernel, _by_channel(layer.depthwise_kernel)
    yield layer.pointwise_kernel, FromTorch(_space_first(len(layer.pointwise_kernel.shape)))


def _by_channel(kernel: Any) -> FromTorch:
    *space, channels, multiplier = kernel.shape
    order = [*range(2, 2 + len(space)), 0, 1]
    torch_shape = [channels * multiplier, 1, *space]
    return FromTorch(ReshapeFrom(torch_shape, [channels, multiplier, *space]), Transpose(order))


def _space_first(rank: int) -> Transpose:
    return Transpose([*range(2, rank), 1, 0])


def _summed_biases(cell: Any) -> _Layout:
    yield cell.kernel, FromTorch(Transpose())
    yield cell.recurrent_kernel, FromTorch(Transpose())
    yield cell.bias, RecurrentBiases(Sum(), ordered=False)


def _gru(cell: Any) -> _Layout:
    if not cell.reset_after:
        raise ValueError(
            f"{cell.name!r} has reset_after=False, but PyTorch's GRU resets after the product, so "
            "its weights mean something else. Build the layer with reset_after=True"
        )
    gates = Gates([1, 0, 2])  # reset, update, new -> update, reset, new
    yield cell.kernel, FromTorch(Transpose(), gates)
    yield cell.recurrent_kernel, FromTorch(Transpose(), gates)
    yield cell.bias, RecurrentBiases(Stack(), gates, ordered=True)


def _attention(layer: Any) -> _Layout:
    for index, projection in enumerate([layer.query_dense, layer.key_dense, layer.value_dense]):
        yield from _einsum(projection, index)


def _einsum(layer: Any, index: int | None = None) -> _Layout:
    """Yield the layout of an `EinsumDense` whose equation is that of a `Linear`.

    Args:
        layer: The layer.
        index: See `LinearProjection`.
    """
    kernel = keras_private.kernel_of(layer)
    axes, inputs, outputs = _kernel_axes(layer.equation)
    if set(axes) != set(inputs + outputs) or not inputs or not outputs:
        return
    length_of = dict(zip(axes, kernel.shape, strict=True))
    input_shape = tuple(length_of[axis] for axis in inputs)
    output_shape = tuple(length_of[axis] for axis in outputs)
    order = [(inputs + outputs).index(axis) for axis in axes]
    yield kernel, LinearProjection(input_shape, output_shape, order, index)
    if layer.bias is not None:
        yield layer.bias, _einsum_bias(tuple(layer.bias.shape), output_shape, index)


def _kernel_axes(equation: str) -> tuple[str, str, str]:
    """Return the axes of the kernel: all, those of the inputs only, and of the outputs only.

    Axes that are not in the kernel are batch axes.

    Example:
        >>> _kernel_axes("abc,cde->abde")
        ('cde', 'c', 'de')
    """
    terms, result = equation.replace(" ", "").split("->")
    given, kernel = terms.split(",")
    inputs = [axis for axis in given if axis in kernel and axis not in result]
    outputs = [axis for axis in result if axis in kernel and axis not in given]
    return kernel, "".join(inputs), "".join(outputs)


def _einsum_bias(bias: Shape, output: Shape, index: int | None) -> LinearProjection | None:
    if bias != output or len(bias) == 1:
        return None
    return LinearProjection((), bias, range(len(bias)), index)


def _embedding(layer: Any) -> _Layout:
    for variable in layer.weights:
        if variable.name == "embeddings":  # LoRA and reverse embeddings have other variables
            yield variable, None


# Layers that treat each feature on its own, so the order of features does not matter.
_PER_FEATURE: tuple[type, ...] = (
    *(layers.Activation, layers.ReLU, layers.LeakyReLU, layers.ELU, layers.Identity),
    *(layers.Dropout, layers.AlphaDropout, layers.GaussianDropout, layers.GaussianNoise),
    *(layers.ActivityRegularization, layers.BatchNormalization),
)
# Layers that keep the order of channels.
_KEEPING_CHANNELS: tuple[type, ...] = (
    *_PER_FEATURE,
    *(layers.PReLU, layers.LayerNormalization, layers.GroupNormalization),
    *(layers.SpatialDropout1D, layers.SpatialDropout2D, layers.SpatialDropout3D),
    *(layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D),
    *(layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D),
    *(layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D),
    *(layers.Cropping1D, layers.Cropping2D, layers.Cropping3D),
    *(layers.UpSampling1D, layers.UpSampling2D, layers.UpSampling3D),
    *(layers.Add, layers.Average, layers.Maximum, layers.Multiply, layers.Concatenate),
)
_CONVOLUTIONS = (
    *(layers.Conv1D, layers.Conv2D, layers.Conv3D, layers.SeparableConv1D, layers.SeparableConv2D),
    *(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose),
    *(layers.DepthwiseConv1D, layers.DepthwiseConv2D),
)

_LAYOUTS: tuple[tuple[Any, Callable[[Any], _Layout]], ...] = (
    (layers.MultiHeadAttention, _attention),
    (layers.EinsumDense, _einsum),
    (layers.Embedding, _embedding),
    (layers.Dense, _dense),
    (layers.BatchNormalization, _batch_norm),
    (
        (
            *(layers.Conv1D, layers.Conv2D, layers.Conv3D),
            *(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose),
        ),
        _convolution,
    ),
    ((layers.DepthwiseConv1D, layers.DepthwiseConv2D), _depthwise),
    ((layers.SeparableConv1D, layers.SeparableConv2D), _separable),
    ((layers.LSTMCell, layers.SimpleRNNCell), _summed_biases),
    (layers.GRUCell, _gru),
)
