"""Updates: the non-gradient changes of state in a training step."""

from keras_trainops.updates.base import Update
from keras_trainops.updates.functions import Function
from keras_trainops.updates.layer_updates import LayerUpdates

__all__ = ["Function", "LayerUpdates", "Update"]
