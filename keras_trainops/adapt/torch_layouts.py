"""How PyTorch's layers keep their tensors, for the Keras layers that do the same."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import keras
from keras import layers

from keras_trainops import keras_private
from keras_trainops.adapt.base import Adapter
from keras_trainops.adapt.combination import Stack, Sum
from keras_trainops.adapt.layout import (
    Gates,
    Refold,
    Reshape,
    Transpose,
    channels_first_flatten,
)
from keras_trainops.adapt.torch_adapters import Biases, FromTorch, Kernel, Projection, Unknown
from keras_trainops.weight_names import model_weights

# Variables, and what becomes of the tensor of each; None: nothing.
_Layout: TypeAlias = "Iterator[tuple[Any, FromTorch | None]]"


def from_torch(model: keras.layers.Layer | Iterable[keras.layers.Layer]) -> dict[str, Adapter]:
    """The adapters that bring PyTorch's tensors into the layout of Keras's layers.

    It is about layouts, not names: rename rules say which key is for which variable. Other rules
    for the same variables win, wherever they stand, as in `{**from_torch(model), "head": ...}`.

    * `Dense`, of `Linear`: the weight is transposed. Where its inputs are the flattened features of
      a convolution they are reordered as well, as channels are flattened first there, and last
      here; so are those of a `BatchNormalization` there.
    * `Conv1D` to `Conv3D` and `Conv1DTranspose` to `Conv3DTranspose`: the kernel's axes are put in
      the order space, then the two of channels.
    * `DepthwiseConv1D`, `2D`, of a convolution with a group for each channel: (channels ·
      multiplier, 1, space) becomes (space, channels, multiplier). `SeparableConv1D`, `2D`: the
      same, and the kernel of the second convolution as above.
    * `LSTM`, `SimpleRNN` and their cells: weights are transposed, `bias_ih` and `bias_hh` are
      added.
    * `GRU`, `GRUCell`: weights are transposed, `bias_ih` and `bias_hh` stacked in this order, and
      gates reordered.
    * `EinsumDense`, of `Linear`: transposed and divided into the axes of its equation.
    * `MultiHeadAttention`: the same for query, key, value and output. `in_proj_weight` and
      `in_proj_bias` are split before.
    * Normalizations elsewhere and `Embedding` are the same but for the names.

    Two keys lead to the bias of a recurrent layer; their names tell which is which, the order of
    the rename rules does not matter. One key, with a list of paths, leads to query, key and value
    where they are fused. Fused tensors of other names than `torch.nn.MultiheadAttention` gives them
    are refused, as libraries differ in the order of what is in them; so are square tensors of
    GPT-2's `Conv1D`, and tensors for layers that are not listed here, of which two axes could be
    exchanged: an entry of your own says what they are.

    Which layers stand behind a convolution and `Flatten`, with pooling, activations and dropout
    between, is told in functional and sequential models only; elsewhere, and where images are
    flattened as they come in, add `channels_first_flatten`. Nothing is said of what layers compute
    with: epsilons, paddings and activations must agree.

    Args:
        model: A built model or layer, or several layers.

    Returns:
        From a pattern that is a variable's whole path, to its adapter, for `adapt=`.

    Raises:
        ValueError: If there is something else than layers, or one without variables yet, or a GRU
            with `reset_after=False`, which PyTorch does not have.

    Example:
        >>> import keras, keras_trainops as kt
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="head")])
        >>> list(kt.adapt.from_torch(model).values())
        [Transpose()]

    References: the documentation of `torch.nn`.
    """
    roots = [model] if isinstance(model, keras.layers.Layer) else list(model)
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
                adapters[f"^{re.escape(path)}$"] = adapter_of[id(variable)]
    return adapters


def torch_layouts(root: keras.layers.Layer) -> dict[int, FromTorch]:
    """The adapters for the variables of a layer and of all in it, by `id(variable)`.

    Raises:
        ValueError: If there is a layer that PyTorch does not have.
    """
    found: dict[int, FromTorch | None] = {}
    owner_of: dict[int, str] = {}
    every = [layer for layer in keras_private.all_layers(root) if layer.built]
    for kinds, layout in _LAYOUTS:  # those of several layers before those of one
        for layer in every:
            if isinstance(layer, kinds):
                for variable, adapter in layout(layer):
                    found.setdefault(id(variable), adapter)
    for layer in every:  # the innermost is the last
        name = f"{layer.name!r} ({type(layer).__name__})"
        owner_of |= dict.fromkeys(map(id, layer.weights), name)
    for variable in root.weights:
        if id(variable) not in found and may_be_exchanged(variable.shape):
            found[id(variable)] = Unknown(owner_of.get(id(variable), repr(root.name)))
    return {key: adapter for key, adapter in found.items() if adapter is not None}


def may_be_exchanged(shape: Sequence[int]) -> bool:
    """Whether two axes have one length, so that a tensor fits in more than one order of them."""
    lengths = [length for length in shape if length != 1]
    return len(set(lengths)) < len(lengths)


def _dense(layer: Any) -> _Layout:
    yield keras_private.kernel_of(layer), Kernel(Transpose(), *_reordering(layer))


def _batch_norm(layer: Any) -> _Layout:
    reordering = _reordering(layer)
    if reordering:
        for variable in layer.weights:
            yield variable, FromTorch(*reordering, Reshape())


def _reordering(layer: keras.layers.Layer) -> list[Adapter]:
    """What reorders the inputs of a layer if they are the flattened features of a convolution."""
    flatten = _first_but(_ONE_BY_ONE, layer)
    if not isinstance(flatten, layers.Flatten) and not (
        isinstance(flatten, layers.Reshape) and len(flatten.output.shape) == 2
    ):
        return []
    convolution = _first_but(_IN_PLACE, flatten)
    if not isinstance(convolution, _CONVOLUTIONS):
        return []
    features = flatten.input.shape[1:]
    if convolution.data_format == "channels_first":
        if getattr(flatten, "data_format", "") != "channels_first":
            return []  # they are flattened as in PyTorch
        features = (*features[1:], features[0])
    return [channels_first_flatten(features)]


def _first_but(kinds: tuple[type, ...], layer: Any) -> Any:
    """The first operation before a layer that is of none of these kinds."""
    before = keras_private.operation_before(layer)
    while isinstance(before, kinds):
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
    theirs = [channels * multiplier, 1, *space]
    return FromTorch(Refold(theirs, [channels, multiplier, *space]), Transpose(order))


def _space_first(rank: int) -> Transpose:
    return Transpose([*range(2, rank), 1, 0])


def _summed_biases(cell: Any) -> _Layout:
    yield cell.kernel, FromTorch(Transpose())
    yield cell.recurrent_kernel, FromTorch(Transpose())
    yield cell.bias, Biases(Sum(), ordered=False)


def _gru(cell: Any) -> _Layout:
    if not cell.reset_after:
        raise ValueError(
            f"{cell.name!r} has reset_after=False, and PyTorch's GRU resets after the product: "
            "its weights mean something else. Build the layer with reset_after=True"
        )
    gates = Gates([1, 0, 2])  # reset, update, new -> update, reset, new
    yield cell.kernel, FromTorch(Transpose(), gates)
    yield cell.recurrent_kernel, FromTorch(Transpose(), gates)
    yield cell.bias, Biases(Stack(), gates, ordered=True)


def _attention(layer: Any) -> _Layout:
    for index, projection in enumerate([layer.query_dense, layer.key_dense, layer.value_dense]):
        yield from _einsum(projection, index)


def _einsum(layer: Any, index: int | None = None) -> _Layout:
    """Of an equation that is a `Linear`: what is left of the inputs' axes is not in the kernel."""
    terms, result = layer.equation.replace(" ", "").split("->")
    given, axes = terms.split(",")
    kernel = keras_private.kernel_of(layer)
    length = dict(zip(axes, kernel.shape, strict=True))
    inputs = [axis for axis in given if axis in length and axis not in result]
    outputs = [axis for axis in result if axis in length and axis not in given]
    if {*inputs, *outputs} != {*axes} or not inputs or not outputs:
        return
    place = {axis: i for i, axis in enumerate([*inputs, *outputs])}
    lengths, heads = (tuple(length[axis] for axis in side) for side in (inputs, outputs))
    yield kernel, Projection(lengths, heads, [place[axis] for axis in axes], index)
    if layer.bias is not None:
        bias = tuple(layer.bias.shape)
        is_whole = bias == heads and len(bias) > 1
        yield layer.bias, Projection((), bias, range(len(bias)), index) if is_whole else None


def _embedding(layer: Any) -> _Layout:
    for variable in layer.weights:
        if variable.name == "embeddings":  # not what LoRA or a reverse has besides
            yield variable, None


# Layers that do to each input what they do to it alone, so that its place does not matter.
_ONE_BY_ONE: tuple[type, ...] = (
    *(layers.Activation, layers.ReLU, layers.LeakyReLU, layers.ELU, layers.Identity),
    *(layers.Dropout, layers.AlphaDropout, layers.GaussianDropout, layers.GaussianNoise),
    *(layers.ActivityRegularization, layers.BatchNormalization),
)
# Layers after which channels are where they were before.
_IN_PLACE: tuple[type, ...] = (
    *_ONE_BY_ONE,
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
