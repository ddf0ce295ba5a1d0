"""Custom steps on two replicas of TensorFlow, on four devices of JAX, or on one device."""

from __future__ import annotations

import contextlib
from typing import Any

import keras
import numpy as np
from keras import ops

import keras_trainops as kt
from tests.helpers import two_replicas, value

RNG = np.random.default_rng(0)
X = RNG.normal(size=(48, 6)).astype("float32")
Y = RNG.normal(size=(48, 2)).astype("float32")


class Mixed(kt.TrainOpsMixin, keras.Model):
    """Sums a loss of Keras, one of `ops`, and a penalty on a gradient."""

    def training_step(self, step: kt.Step, data: Any) -> dict[str, Any]:
        x, y, _ = step.unpack(data)

        def loss() -> Any:
            y_pred = self(x, training=True)
            _, slope = step.gradients(lambda x: ops.sum(self(x) ** 2), x)
            penalty = ops.mean(ops.sum(slope**2, axis=1))
            total = keras.losses.MeanSquaredError()(y, y_pred) + ops.mean(ops.abs(y - y_pred))
            return total + 0.01 * penalty, y_pred

        variables = self.trainable_variables
        (total, y_pred), gradients = step.gradients(loss, variables, aux=True)
        norm = ops.sqrt(sum(ops.sum(g**2) for g in gradients))
        step.apply(gradients, variables)
        step.update_metrics(y, y_pred)
        return {"loss": total, "norm": norm}


OPTIMIZERS: dict[str, Any] = {
    "adam": lambda: keras.optimizers.Adam(0.01),
    "scaled": lambda: keras.optimizers.SGD(0.1, 0.9, loss_scale_factor=1024.0),
    "dynamic": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1, 0.9)),
}


def run(devices: int) -> dict[str, np.ndarray]:
    """Return the weights, the optimizers' variables and the logs after training."""
    scope: Any = contextlib.nullcontext
    if devices > 1 and keras.backend.backend() == "tensorflow":
        scope = two_replicas().scope
    arrays: dict[str, np.ndarray] = {}
    for name, optimizer in OPTIMIZERS.items():
        with scope():
            keras.utils.set_random_seed(3)
            x = inputs = keras.Input((6,))
            x = keras.layers.Dense(4, activation="tanh", name="a")(x)
            model: Any = Mixed(inputs, keras.layers.Dense(2, name="b")(x))
            model.compile(
                optimizer(),
                metrics=["mae"],
                gradient_transforms=kt.transforms.ClipByGlobalNorm(1.0),
                updates=[kt.updates.MovingAverage(0.9)],
                check_numerics=True,
            )
        logs = model.fit(X, Y, batch_size=12, epochs=2, shuffle=False, verbose=0).history
        for i, variable in enumerate([*model.variables, *model.optimizer.variables]):
            arrays[f"{name}/{i}/{variable.name}"] = value(variable)
        arrays |= {f"{name}/{log}": np.array(logs[log]) for log in ("loss", "mae")}
    return arrays
