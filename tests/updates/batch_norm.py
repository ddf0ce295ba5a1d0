"""A model with two batch norms, and its statistics."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np

import keras_trainops as kt
from tests.helpers import value

RNG = np.random.default_rng(0)
X = RNG.normal(2.0, 3.0, size=(40, 6)).astype("float32")
Y = RNG.normal(size=(40, 2)).astype("float32")


def net(model_class: type[keras.Model] = kt.TrainOpsModel, momentum: float = 0.9) -> Any:
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6,))
    x = keras.layers.BatchNormalization(name="first", momentum=momentum)(inputs)
    x = keras.layers.Dense(5, name="dense")(x)
    x = keras.layers.BatchNormalization(name="second")(x)
    return model_class(inputs, keras.layers.Dense(2, name="head")(x))


def fit(model: keras.Model, epochs: int = 2, **compile_options: Any) -> keras.Model:
    options = {"optimizer": keras.optimizers.SGD(0.01), "loss": "mse", **compile_options}
    model.compile(**options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what a list leaves out; it has its own tests
        model.fit(X, Y, batch_size=20, epochs=epochs, shuffle=False, verbose=0)
    return model


def statistics(model: keras.Model, name: str) -> list[np.ndarray]:
    layer = model.get_layer(name)
    return [value(layer.moving_mean), value(layer.moving_variance)]
