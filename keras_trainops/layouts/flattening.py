"""Find the features of a convolution that are flattened before a layer."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
from keras import layers

from keras_trainops import keras_private
from keras_trainops.adapt.base import Shape


class Flattened(NamedTuple):
    """Features of a convolution that a `Flatten` merges into one axis.

    Attributes:
        shape: Shape of the features, channels last.
        is_channels_first: True if Keras flattens the channels first, as PyTorch does.
    """

    shape: Shape
    is_channels_first: bool


def flattened_before(layer: keras.layers.Layer) -> Flattened | None:
    """Return the features that are flattened before a layer; None if there are none.

    Pooling, activations, normalizations and dropout may stand in between. Layers are followed in
    functional and sequential models only.
    """
    flatten = _operation_before(layer, skipped=_PER_FEATURE)
    if not _flattens(flatten):
        return None
    convolution = _operation_before(flatten, skipped=_KEEPING_CHANNELS)
    if not isinstance(convolution, _CONVOLUTIONS):
        return None
    features = flatten.input.shape[1:]
    if convolution.data_format != "channels_first":
        return Flattened(tuple(features), False)
    channels_last = (*features[1:], features[0])
    return Flattened(channels_last, getattr(flatten, "data_format", "") != "channels_first")


def _flattens(operation: Any) -> bool:
    is_flat = isinstance(operation, layers.Reshape) and len(operation.output.shape) == 2
    return is_flat or isinstance(operation, layers.Flatten)


def _operation_before(layer: Any, skipped: tuple[type, ...]) -> Any:
    """Return the closest operation before a layer that is not of the skipped kinds."""
    before = keras_private.operation_before(layer)
    while isinstance(before, skipped):
        before = keras_private.operation_before(before)
    return before


# Layers for which the order of features does not matter.
_PER_FEATURE: tuple[type, ...] = (
    *(layers.Activation, layers.ReLU, layers.LeakyReLU, layers.ELU, layers.Identity),
    *(layers.Dropout, layers.AlphaDropout, layers.GaussianDropout, layers.GaussianNoise),
    *(layers.ActivityRegularization, layers.BatchNormalization),
    *(layers.LayerNormalization, layers.RMSNormalization, layers.PReLU),
)
# Layers that keep the order of channels.
_KEEPING_CHANNELS: tuple[type, ...] = (
    *_PER_FEATURE,
    layers.GroupNormalization,
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
