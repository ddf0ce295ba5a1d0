"""Sessions on two replicas, as a program: a process can set up logical devices only once.

    python replica_runs.py OUT KIND

Writes the final weights of all runs to an archive of arrays `run/path`.
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

L = keras.layers
rng = np.random.default_rng(0)
X = rng.normal(2.0, 3.0, size=(64, 4)).astype("float32")
Y = rng.normal(size=(64, 2)).astype("float32")
arrays: dict[str, np.ndarray] = {}


def scope(replicas: int) -> Any:
    if replicas == 1:
        return contextlib.nullcontext()
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope()


def run(name: str, replicas: int, logdir: str, kind: str, **options: Any) -> None:
    """Train eight batches, or resume; a stop at step 6 is within an accumulation."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(1)
    with scope(replicas):
        inputs = keras.Input((4,))
        x = L.Dense(4, activation="tanh", name="trunk")(inputs)
        if kind == "plain":
            x = L.BatchNormalization(name="norm", momentum=0.5)(x)
            model = keras.Model(inputs, L.Dense(2, name="head")(x), name="net")
            model.compile(keras.optimizers.SGD(0.01), "mse")
        else:
            model = kt.TrainOpsModel(inputs, L.Dense(2, name="head")(x), name="net")
            optimizer = keras.optimizers.Adam(0.05, gradient_accumulation_steps=4)
            clip = [kt.transforms.ClipByGlobalNorm(0.5)] if kind == "clipped" else []
            model.compile(optimizer, "mse", metrics=["mae"], gradient_transforms=clip)
    session = kt.TrainingSession(
        logdir, save_seconds=None, summary_steps=None, verbose=0, **options
    )
    epochs = 2 if kind == "plain" else 1
    model.fit(X, Y, batch_size=8, epochs=epochs, shuffle=False, verbose=0, callbacks=[session])
    for variable in model.weights:
        parts = getattr(variable.value, "values", [variable.value])
        for i, part in enumerate(parts):
            arrays[f"{name}/{variable.path}/{i}"] = part.numpy()


out, kind = sys.argv[1:]
run("two", 2, "two", kind)
if kind == "plain":
    pairs, stop = [(2, 2)], 8
    run("2 then 1", 1, "two", kind)  # nothing is left to train
else:
    pairs, stop = [(2, 2), (2, 1), (1, 2)], 6
    run("one", 1, "one", kind)
for before, after in pairs:
    where = f"{before}-{after}"
    run("until", before, where, kind, stop_at_step=stop)
    run(f"{before} then {after}", after, where, kind)
np.savez(out, **arrays)
