"""Updates on two replicas, or on one device."""

from __future__ import annotations

import contextlib
from typing import Any

import keras
import numpy as np

import keras_trainops as kt
from tests.helpers import two_replicas, value

rng = np.random.default_rng(0)
X = rng.normal(2.0, 3.0, size=(32, 6)).astype("float32")
Y = rng.normal(size=(32, 2)).astype("float32")


def net(norm: bool) -> Any:
    keras.utils.set_random_seed(3)
    x = inputs = keras.Input((6,))
    if norm:
        x = keras.layers.BatchNormalization(name="norm", momentum=0.5)(x)
    return kt.TrainOpsModel(inputs, keras.layers.Dense(2, name="head")(x))


def fit(model: Any, **options: Any) -> None:
    model.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0, **options)


def run(devices: int) -> dict[str, np.ndarray]:
    """Return the weights and the state of updates after training on one or two devices."""
    arrays: dict[str, np.ndarray] = {}
    scope: Any = two_replicas().scope() if devices == 2 else contextlib.nullcontext()
    with scope:
        for policy in ("default", "chosen"):  # batch statistics, of Keras's step and of a policy's
            arrays |= statistics(policy)
        arrays |= updates()
    return arrays


def statistics(policy: str) -> dict[str, np.ndarray]:
    """Batch-norm statistics on each replica."""
    model = net(norm=True)
    updates = None if policy == "default" else [kt.updates.LayerUpdates()]
    model.compile(keras.optimizers.SGD(0.0), "mse", updates=updates)
    fit(model)
    found = {}
    for variable in model.get_layer("norm").non_trainable_variables:
        for i, part in enumerate(getattr(variable.value, "values", [variable.value])):
            found[f"{policy}/{variable.name}/{i}"] = np.array(part)
    return found


def updates() -> dict[str, np.ndarray]:
    """Averages, projected weights and the sum of losses."""
    model = net(norm=False)
    # The loss of the step is that of the whole batch: on the first replica, too.
    total = keras.Variable(0.0, trainable=False, aggregation="only_first_replica", name="total")
    average = kt.updates.MovingAverage(0.9)
    model.compile(
        keras.optimizers.Adam(0.05),
        "mse",
        updates=[
            kt.updates.Lookahead(3),
            average,
            kt.updates.Project("head/kernel", keras.constraints.UnitNorm(0), every=2),
            kt.updates.Project("head/kernel", kt.updates.SpectralNorm(0.9), every=3, on="batch"),
            kt.updates.Function(lambda model, loss: total.assign(total + loss), [total]),
        ],
    )
    fit(model, callbacks=[kt.UseAverage(average)], validation_data=(X, Y))
    found = {f"average/{i}": array for i, (_, array) in enumerate(average.averages())}
    found |= {f"weights/{variable.path}": value(variable) for variable in model.weights}
    return {**found, "total": value(total)}
