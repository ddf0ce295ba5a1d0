"""The model saved in `data/`, in code that runs in Keras 3.3 and in today's."""

from __future__ import annotations

import keras
import numpy as np


def old_keras_model(offset: float = 0.0) -> keras.Model:
    """Return a model with layers of one class in unsorted order, and nested and recurrent ones.

    Args:
        offset: Added to every value, so that two models can differ in every weight.
    """
    layers = keras.layers
    inner = [keras.Input((4,)), layers.Dense(4, name="b"), layers.Dense(4, name="a")]
    inputs = keras.Input((4,))
    x = keras.Sequential(inner, name="inner")(inputs)
    x = layers.BatchNormalization(name="norm")(layers.Dense(4, name="a_head")(x))
    x = layers.Reshape((2, 2))(x)
    x = layers.Bidirectional(layers.LSTM(3, name="lstm"), name="both")(x)
    x = layers.TimeDistributed(layers.Dense(2, name="each"), name="spread")(
        layers.Reshape((3, 2))(x)
    )
    x = layers.GRU(2, name="gru")(x)
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    for number, variable in enumerate(model.weights):
        size = int(np.prod(variable.shape))
        variable.assign(offset + number + np.arange(size).reshape(variable.shape) / 100)
    return model
