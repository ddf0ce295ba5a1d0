"""Gradient transforms: what happens to gradients between the backward pass and the optimizer."""

from keras_trainops.transforms.base import Chain, GradientTransform
from keras_trainops.transforms.clipping import ClipByGlobalNorm, ClipByNorm, ClipByValue
from keras_trainops.transforms.functions import FromFunction, FromPairs
from keras_trainops.transforms.scaling import Scale

__all__ = [
    "Chain",
    "ClipByGlobalNorm",
    "ClipByNorm",
    "ClipByValue",
    "FromFunction",
    "FromPairs",
    "GradientTransform",
    "Scale",
]
