"""Updates: non-gradient changes of state in a training step."""

from keras_trainops.updates.averaging import MovingAverage, StochasticWeightAverage, WarmUp
from keras_trainops.updates.base import Update
from keras_trainops.updates.functions import Function
from keras_trainops.updates.layer_updates import LayerUpdates
from keras_trainops.updates.lookahead import Lookahead
from keras_trainops.updates.projection import FixedMask, Project, Projection, SpectralNorm
from keras_trainops.updates.recalibration import recalibrate_batch_norm
from keras_trainops.updates.targets import TargetNetwork

__all__ = [
    "FixedMask",
    "Function",
    "LayerUpdates",
    "Lookahead",
    "MovingAverage",
    "Project",
    "Projection",
    "SpectralNorm",
    "StochasticWeightAverage",
    "TargetNetwork",
    "Update",
    "WarmUp",
    "recalibrate_batch_norm",
]
