"""Small models and data that several files of tests train."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import weights

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 6)).astype("float32")
Y = RNG.normal(size=(32, 2)).astype("float32") * 10
TRACED = pytest.mark.backends("tensorflow", "jax")  # PyTorch has no such option in Keras


def net(model_class: type[keras.Model] = kt.TrainOpsModel, policy: str = "float32") -> Any:
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(8, activation="tanh", name="trunk", dtype=policy)(inputs)
    model = model_class(inputs, keras.layers.Dense(2, name="head", dtype="float32")(x))
    model.dtype_policy = policy
    return model


def with_batch_norm(
    model_class: type[keras.Model] = kt.TrainOpsModel, policy: str = "float32"
) -> Any:
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(8, activation="relu", name="trunk", dtype=policy)(inputs)
    x = keras.layers.BatchNormalization(name="norm", dtype=policy)(x)
    model = model_class(inputs, keras.layers.Dense(2, name="head", dtype="float32")(x))
    model.dtype_policy = policy
    return model


def functional(model_class: type[keras.Model] = keras.Model, rate: float = 0.2) -> keras.Model:
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(5, activation="relu", name="trunk")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Dropout(rate, name="drop")(x)
    return model_class(inputs, keras.layers.Dense(2, name="head")(x))


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = keras.layers.Dense(5, name="trunk")
        self.drop = keras.layers.Dropout(0.2)
        self.norm = keras.layers.BatchNormalization(name="norm")
        self.head = keras.layers.Dense(2, name="head")

    def call(self, x: Any, training: bool = False) -> Any:
        x = self.norm(self.trunk(x), training=training)
        return self.head(self.drop(x, training=training))


class Mixed(kt.TrainOpsMixin, Subclassed):
    pass


def lazy(model_class: type[keras.Model]) -> keras.Model:
    keras.utils.set_random_seed(3)
    return model_class()


def train(model: Any, optimizer: Any, y: Any = Y, x: Any = X, **options: Any) -> list[np.ndarray]:
    """Compile with `options`, fit, and return the weights."""
    epochs, batch = options.pop("epochs", 2), options.pop("batch_size", 8)
    model.compile(optimizer, "mse", **options)
    model.fit(x, y, batch_size=batch, epochs=epochs, shuffle=False, verbose=0)
    return weights(model)


def fit_small(model: Any, **options: Any) -> None:
    model.fit(X, Y, batch_size=8, shuffle=False, verbose=0, **options)
