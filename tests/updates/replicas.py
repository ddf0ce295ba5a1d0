"""Updates on two replicas, as a program: TensorFlow sets logical devices up once in a process.

    python replicas.py OUT DEVICES

Writes what two devices, or one, leave in weights and updates, as an archive of arrays.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

import keras
import numpy as np

import keras_trainops as kt

out, devices = sys.argv[1:]
rng = np.random.default_rng(0)
X = rng.normal(2.0, 3.0, size=(32, 6)).astype("float32")
Y = rng.normal(size=(32, 2)).astype("float32")
scope: Any = contextlib.nullcontext()
if devices == "2":
    scope = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope()
arrays: dict[str, np.ndarray] = {}


def array(variable: Any) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(variable)))


def keep(name: str, variable: keras.Variable) -> None:
    """The value on each replica."""
    values = getattr(variable.value, "values", [variable.value])
    for i, value in enumerate(values):
        arrays[f"{name}/{i}"] = np.array(value)


def net(norm: bool) -> Any:
    keras.utils.set_random_seed(3)
    x = inputs = keras.Input((6,))
    if norm:
        x = keras.layers.BatchNormalization(name="norm", momentum=0.5)(x)
    return kt.TrainOpsModel(inputs, keras.layers.Dense(2, name="head")(x))


def fit(model: Any, **options: Any) -> None:
    model.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0, **options)


with scope:
    for policy in ("default", "chosen"):  # batch statistics, of Keras's step and of a policy's
        model = net(norm=True)
        updates = None if policy == "default" else [kt.updates.LayerUpdates()]
        model.compile(keras.optimizers.SGD(0.0), "mse", updates=updates)
        fit(model)
        for variable in model.get_layer("norm").non_trainable_variables:
            keep(f"{policy}/{variable.name}", variable)
    model = net(norm=False)
    # The loss of the step is that of the whole batch: on the first replica, too.
    total = keras.Variable(0.0, trainable=False, aggregation="only_first_replica", name="total")
    average = kt.updates.MovingAverage(0.9)
    model.compile(
        keras.optimizers.Adam(0.05),
        "mse",
        updates=[
            average,
            kt.updates.Project("head/kernel", keras.constraints.UnitNorm(0), every=2),
            kt.updates.Project("head/kernel", kt.updates.SpectralNorm(0.9), every=3, on="batch"),
            kt.updates.Function(lambda model, loss: total.assign(total + loss), [total]),
        ],
    )
    fit(model, callbacks=[kt.UseAverage()], validation_data=(X, Y))
    for i, (_, value) in enumerate(average.averages()):
        arrays[f"average/{i}"] = value
    for variable in model.weights:
        arrays[f"weights/{variable.path}"] = array(variable)
    arrays["total"] = array(total)
np.savez(out, **arrays)
