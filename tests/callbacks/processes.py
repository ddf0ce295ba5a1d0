"""Callbacks in several processes: what each of them sees, and what is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np

import keras_trainops as kt
from tests.processes.member import Place

EPOCHS, BATCH = 3, 8
RANDOM = np.random.default_rng(2)
X = RANDOM.normal(size=(32, 4)).astype("float32")
Y = RANDOM.normal(size=(32, 2)).astype("float32")


class Seen(keras.callbacks.Callback):
    """Keeps the logs and weights that the others see as an epoch ends."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Any] = {}

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.found.update({f"{name} {epoch}": float(log) for name, log in (logs or {}).items()})
        self.found[f"weights {epoch}"] = _flat(self.model.weights)


def _flat(variables: list[keras.Variable]) -> np.ndarray:
    return np.concatenate([np.array(keras.ops.convert_to_numpy(v)).ravel() for v in variables])


def trained(place: Place) -> dict[str, Any]:
    """Train with averages that validations use, an early stop, boards and summaries."""
    keras.utils.set_random_seed(4)
    parts = place.count
    if keras.backend.backend() == "jax" and parts > 1:
        keras.distribution.set_distribution(
            keras.distribution.DataParallel(auto_shard_dataset=False)
        )
    if keras.backend.backend() == "tensorflow":
        parts = 1  # the strategy divides each batch
    mine, size = slice(place.index % parts, None, parts), BATCH // parts
    with place.scope():
        inputs = keras.Input((4,))
        x = keras.layers.Dense(5, "tanh", name="body")(inputs)
        model = kt.TrainOpsModel(inputs, keras.layers.Dense(2, name="head")(x), name="net")
        model.compile(
            keras.optimizers.SGD(0.1),
            "mse",
            gradient_transforms=kt.transforms.Monitor(),
            updates=[kt.updates.MovingAverage(0.5)],
        )
    seen = Seen()
    stop = keras.callbacks.EarlyStopping(patience=1, restore_best_weights=True)
    callbacks = [
        kt.UseAverage(),
        seen,
        stop,
        kt.MonitorBoard(place.directory / "board"),
        kt.TrainingSession(place.directory / "log", summary_steps=2, verbose=1),
    ]
    model.fit(
        X[mine],
        Y[mine],
        batch_size=size,
        epochs=EPOCHS,
        shuffle=False,
        validation_data=(X[mine], Y[mine]),
        validation_batch_size=size,
        callbacks=callbacks,
        verbose=0,
    )
    return {**seen.found, "at the end": _flat(model.weights), "files": _files(place.directory)}


def _files(directory: Path) -> list[str]:
    """Return the names of event files, up to what differs from run to run."""
    return [path.parent.name for path in directory.rglob("events*") if path.is_file()]
