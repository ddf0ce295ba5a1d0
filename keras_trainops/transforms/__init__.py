"""Gradient transforms: operations on gradients between the backward pass and the optimizer."""

from keras_trainops.transforms.adaptive import AdaptiveClip, AdaptiveNormClip
from keras_trainops.transforms.base import GradientTransform
from keras_trainops.transforms.chain import Chain
from keras_trainops.transforms.clipping import (
    ClipByBlockRMS,
    ClipByGlobalNorm,
    ClipByNorm,
    ClipByValue,
)
from keras_trainops.transforms.from_optax import FromOptax
from keras_trainops.transforms.functions import FromFunction, FromPairs
from keras_trainops.transforms.momentum import Ema, Momentum
from keras_trainops.transforms.monitoring import Monitor
from keras_trainops.transforms.noise import Noise
from keras_trainops.transforms.normalization import Centralize, Normalize, Trust
from keras_trainops.transforms.scaling import LayerwiseDecay, Scale, ScaleStep
from keras_trainops.transforms.scope import skip_update_if
from keras_trainops.transforms.selection import Only, When
from keras_trainops.transforms.skipping import SkipLarge, SkipNonFinite, ZeroNonFinite

__all__ = [
    "AdaptiveClip",
    "AdaptiveNormClip",
    "Centralize",
    "Chain",
    "ClipByBlockRMS",
    "ClipByGlobalNorm",
    "ClipByNorm",
    "ClipByValue",
    "Ema",
    "FromFunction",
    "FromOptax",
    "FromPairs",
    "GradientTransform",
    "LayerwiseDecay",
    "Momentum",
    "Monitor",
    "Noise",
    "Normalize",
    "Only",
    "Scale",
    "ScaleStep",
    "SkipLarge",
    "SkipNonFinite",
    "Trust",
    "When",
    "ZeroNonFinite",
    "skip_update_if",
]
