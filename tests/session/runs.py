"""The run that tests interrupt: dropout, noise, averages, callbacks with state."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

import keras_trainops as kt
from tests.helpers import value

L, T, U = keras.layers, kt.transforms, kt.updates
RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 6)).astype("float32")
Y = RNG.normal(size=(40, 2)).astype("float32")
EPOCHS, BATCHES = 4, 10


class Interrupted(Exception):
    """The power fails."""


class Interrupt(keras.callbacks.Callback):
    """Raise before a batch, counted over all that this process trains."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self._at, self._count = at, 0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if self._count == self._at:
            raise Interrupted(f"before batch {batch}")
        self._count += 1


class InterruptEnd(keras.callbacks.Callback):
    """Raise as an epoch ends, after the checkpoint before its last batch is written."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self._at, self._epoch = epoch, 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if self._epoch == self._at and batch >= BATCHES - 1:
            time.sleep(0.3)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if epoch == self._at:
            raise Interrupted(f"as epoch {epoch} ends")


def net(model_class: Any = kt.TrainOpsModel, **options: Any) -> Any:
    """Make a small network with all kinds of state."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6,))
    x = L.Dense(8, activation="tanh", name="trunk")(inputs)
    x = L.BatchNormalization(name="norm")(x)
    x = L.Dropout(0.3, seed=5, name="drop")(x)
    model = model_class(inputs, L.Dense(2, name="head")(x), name="net")
    if model_class is kt.TrainOpsModel:
        options = {
            "gradient_transforms": [T.AdaptiveNormClip(), T.Noise(0.01, seed=1), T.Monitor()],
            "updates": [U.LayerUpdates(), U.MovingAverage(0.9)],
            **options,
        }
    model.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"], **options)
    return model


def callbacks() -> list[keras.callbacks.Callback]:
    """Make callbacks that keep state between epochs, and act on it."""
    return [
        keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=0.05),
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: float(rate * 0.99)),
        keras.callbacks.EarlyStopping("loss", patience=9, restore_best_weights=True),
    ]


def state(model: Any) -> list[np.ndarray]:
    """Return the values of all variables that a run leaves."""
    return [value(v) for v in [*model.variables, *model.optimizer.variables]]


def train(
    logdir: Path | str,
    *more: keras.callbacks.Callback,
    model: Any = None,
    data: dict[str, Any] | None = None,
    session: dict[str, Any] | None = None,
    epochs: int = EPOCHS,
    beside: Sequence[keras.callbacks.Callback] | None = None,
) -> Any:
    """Train in a session, by default a new model, as a restarted program does."""
    model = net() if model is None else model
    data = {"x": X, "y": Y, "shuffle": False} if data is None else data
    if not isinstance(data["x"], np.ndarray):
        data = {k: v for k, v in data.items() if k != "batch_size"}
    else:
        data = {"batch_size": 4, **data}
    options = {"save_seconds": None, "save_steps": 1, "summary_steps": None, "verbose": 0}
    session = {**options, **(session or {})}
    others = callbacks() if beside is None else list(beside)
    model.fit(
        **data,
        epochs=epochs,
        verbose=0,
        callbacks=[kt.TrainingSession(logdir, **session), *others, *more],
    )
    return model
