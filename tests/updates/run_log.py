"""An update that records its runs, and small models to train with it."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

import keras_trainops as kt
from tests.helpers import two_layers, value

RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 4)).astype("float32")
Y = RNG.normal(size=(24, 2)).astype("float32")


@keras.saving.register_keras_serializable(package="tests")
class Log(kt.updates.Update):
    """Keeps the last iteration at which it ran, how often it did, and in which order."""

    def __init__(self, digit: int = 1, **when: Any) -> None:
        super().__init__(**when)
        self.digit = digit

    def build(self, model: keras.Model) -> None:
        if not self.variables:
            self.runs = self.add_variable("runs", dtype="int32")
            self.last = self.add_variable("last", dtype="int32")

    def __call__(self, model: keras.Model, loss: Any) -> None:
        self.runs.assign(self.runs + 1)
        self.last.assign(model.optimizer.iterations)

    def get_config(self) -> dict[str, Any]:
        return {"digit": self.digit, **super().get_config()}


def net(**options: Any) -> Any:
    model = kt.with_train_ops(two_layers())
    compiled = {"optimizer": keras.optimizers.SGD(0.01), "loss": "mse", **options}
    model.compile(**compiled)
    return model


def mixed() -> Any:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = kt.with_train_ops(two_layers())
    finally:
        keras.config.set_dtype_policy("float32")
    model.compile(keras.optimizers.SGD(1e-3), "mse")
    return model


def fit(model: Any, **options: Any) -> Any:
    given = {"x": X, "y": Y, "batch_size": 2, "shuffle": False, "verbose": 0, **options}
    return model.fit(**given)


def ran(log: Log) -> tuple[int, int]:
    return int(value(log.runs)), int(value(log.last))
