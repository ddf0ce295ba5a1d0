"""Sources of gradients: how a training step computes the gradients of its loss."""

from keras_trainops.gradients.base import Found, GradientSource, Losses, Objective
from keras_trainops.gradients.conflicts import ProjectConflicts
from keras_trainops.gradients.examples import PerExampleClip
from keras_trainops.gradients.sharpness import SharpnessAware

__all__ = [
    "Found",
    "GradientSource",
    "Losses",
    "Objective",
    "PerExampleClip",
    "ProjectConflicts",
    "SharpnessAware",
]
