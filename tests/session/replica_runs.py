"""Sessions on two replicas, stopped and resumed on as many or on one."""

from __future__ import annotations

import contextlib
from typing import Any

import keras
import numpy as np

import keras_trainops as kt
from tests.helpers import two_replicas

L = keras.layers
rng = np.random.default_rng(0)
X = rng.normal(2.0, 3.0, size=(64, 4)).astype("float32")
Y = rng.normal(size=(64, 2)).astype("float32")


def scope(replicas: int) -> Any:
    if replicas == 1:
        return contextlib.nullcontext()
    return two_replicas().scope()


def run(replicas: int, logdir: str, kind: str, **options: Any) -> dict[str, np.ndarray]:
    """Train eight batches, or resume; a stop at step 6 is within an accumulation.

    Returns:
        The final weights on each replica, as `path/replica`.
    """
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
    found = {}
    for variable in model.weights:
        for i, part in enumerate(getattr(variable.value, "values", [variable.value])):
            found[f"{variable.path}/{i}"] = part.numpy()
    return found


def runs_of(kind: str) -> dict[str, dict[str, np.ndarray]]:
    """The final weights of whole and of resumed runs, by name of the run."""
    runs = {"two": run(2, "two", kind)}
    if kind == "plain":
        pairs, stop = [(2, 2)], 8
        runs["2 then 1"] = run(1, "two", kind)  # nothing is left to train
    else:
        pairs, stop = [(2, 2), (2, 1), (1, 2)], 6
        runs["one"] = run(1, "one", kind)
    for before, after in pairs:
        where = f"{before}-{after}"
        run(before, where, kind, stop_at_step=stop)
        runs[f"{before} then {after}"] = run(after, where, kind)
    return runs
