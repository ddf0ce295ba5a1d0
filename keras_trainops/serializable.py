"""Registers, when imported, every class of the package that a `.keras` file may name."""

from keras_trainops import transforms, updates
from keras_trainops.training.models import TrainOpsModel
from keras_trainops.training.optimizer import TransformedOptimizer

__all__ = ["TrainOpsModel", "TransformedOptimizer", "transforms", "updates"]
