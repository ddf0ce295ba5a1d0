"""How PyTorch's layers keep their tensors, for the Keras layers that do the same."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import keras
from keras import layers

from keras_trainops import _keras
from keras_trainops.adapt.base import Adapter, Chain
from keras_trainops.adapt.combination import Split, Stack, Sum
from keras_trainops.adapt.layout import (
    Gates,
    Reshape,
    Transpose,
    channels_first_flatten,
)
from keras_trainops.naming import model_weights

_Layout: TypeAlias = "Iterator[tuple[Any, list[Adapter]]]"  # variables and the steps to each


class FromTorch(Chain):
    """An adapter of `from_torch`, which gives way to the user's own."""

    gives_way = True

    def __repr__(self) -> str:
        return repr(self.adapters[0]) if len(self.adapters) == 1 else super().__repr__()


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
    * `LSTM`, `LSTMCell`: weights are transposed, `bias_ih` and `bias_hh` are added.
    * `GRU`, `GRUCell`: weights are transposed, `bias_ih` and `bias_hh` stacked in this order, and
      gates reordered.
    * `MultiHeadAttention`: `in_proj_weight` and `in_proj_bias` are split for query, key and value,
      and all are divided into heads.
    * Normalizations elsewhere and `Embedding` are the same but for the names.

    Two keys lead to the bias of a recurrent layer, with a rename rule for each, that for `bias_ih`
    first; one key, with a list of paths, to query, key and value. Attention whose query, key and
    value differ in width has `q_proj_weight`, `k_proj_weight` and `v_proj_weight` in PyTorch, which
    are expected then. `EinsumDense` is left alone: its equation does not tell what `Linear` it was.
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
        path_of = {id(variable): path for path, variable in model_weights(root)}
        for layer in _keras.all_layers(root):
            for variable, steps in _layout(layer):
                if id(variable) in path_of:
                    adapters[f"^{re.escape(path_of[id(variable)])}$"] = FromTorch(*steps)
    return adapters


def _layout(layer: keras.layers.Layer) -> _Layout:
    for kinds, layout in _LAYOUTS:
        if isinstance(layer, kinds) and layer.built:
            yield from layout(layer)


def _dense(layer: Any) -> _Layout:
    yield _keras.kernel_of(layer), [Transpose(), *_reordering(layer)]


def _batch_norm(layer: Any) -> _Layout:
    reordering = _reordering(layer)
    if reordering:
        for variable in layer.weights:
            yield variable, [*reordering, Reshape()]


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
    before = _keras.operation_before(layer)
    while isinstance(before, kinds):
        before = _keras.operation_before(before)
    return before


def _convolution(layer: Any) -> _Layout:
    kernel = _keras.kernel_of(layer)
    yield kernel, [_space_first(len(kernel.shape))]


def _depthwise(layer: Any) -> _Layout:
    yield layer.kernel, _by_channel(layer.kernel)


def _separable(layer: Any) -> _Layout:
    yield layer.depthwise_kernel, _by_channel(layer.depthwise_kernel)
    yield layer.pointwise_kernel, [_space_first(len(layer.pointwise_kernel.shape))]


def _by_channel(kernel: Any) -> list[Adapter]:
    *space, channels, multiplier = kernel.shape
    order = [*range(2, 2 + len(space)), 0, 1]
    return [Reshape([channels, multiplier, *space]), Transpose(order)]


def _space_first(rank: int) -> Transpose:
    return Transpose([*range(2, rank), 1, 0])


def _lstm(cell: Any) -> _Layout:
    yield cell.kernel, [Transpose()]
    yield cell.recurrent_kernel, [Transpose()]
    yield cell.bias, [Sum()]


def _gru(cell: Any) -> _Layout:
    if not cell.reset_after:
        raise ValueError(
            f"{cell.name!r} has reset_after=False, and PyTorch's GRU resets after the product: "
            "its weights mean something else. Build the layer with reset_after=True"
        )
    gates = Gates([1, 0, 2])  # reset, update, new -> update, reset, new
    yield cell.kernel, [Transpose(), gates]
    yield cell.recurrent_kernel, [Transpose(), gates]
    yield cell.bias, [Stack(), gates]


def _attention(layer: Any) -> _Layout:
    projections = [layer.query_dense, layer.key_dense, layer.value_dense]
    fused = len({projection.kernel.shape[0] for projection in projections}) == 1
    for index, projection in enumerate(projections):
        part = Split(index, 3)
        yield _keras.kernel_of(projection), [*([part] if fused else []), Transpose(), Reshape()]
        yield projection.bias, [part, Reshape()]
    yield _keras.kernel_of(layer.output_dense), [Transpose(), Reshape()]


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
    (layers.LSTMCell, _lstm),
    (layers.GRUCell, _gru),
    (layers.MultiHeadAttention, _attention),
)
