"""A small model that trains 10 steps per epoch in a session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras

import keras_trainops as kt
from tests.helpers import two_layers
from tests.session.runs import X, Y

SMALL_X, SMALL_Y = X[:, :4], Y


def fit(
    logdir: str, model: keras.Model | None = None, epochs: int = 2, **options: Any
) -> keras.Model:
    """Train a small model, by default a new one, in a session on `logdir`."""
    if model is None:
        keras.backend.clear_session()
        model = kt.with_train_ops(two_layers(1, name="small"))
        model.compile(keras.optimizers.Adam(0.01), "mse")
    defaults = {"save_seconds": None, "summary_steps": None, "verbose": 0}
    session = kt.TrainingSession(logdir, **{**defaults, **options})
    callbacks = [session]
    data = {"batch_size": 4, "shuffle": False, "verbose": 0}
    model.fit(SMALL_X, SMALL_Y, epochs=epochs, callbacks=callbacks, **data)
    return model


def model(rate: Any = 0.01, kind: Any = kt.with_train_ops) -> Any:
    keras.backend.clear_session()
    made = kind(two_layers(1, name="small"))
    made.compile(keras.optimizers.Adam(rate), "mse")
    return made


def run(made: Any, *more: Any, epochs: int = 2, batch_size: int = 4, **options: Any) -> Any:
    defaults = {"save_seconds": None, "summary_steps": None, "verbose": 0}
    session = kt.TrainingSession("run", **{**defaults, **options})
    data = {"x": SMALL_X, "y": SMALL_Y, "shuffle": False, "batch_size": batch_size}
    made.fit(**data, epochs=epochs, verbose=0, callbacks=[session, *more])
    return made


def steps(logdir: str) -> list[int]:
    return sorted(int(path.name[5:]) for path in Path(logdir, "checkpoints").glob("step-*"))


def log(logdir: str) -> str:
    return Path(logdir, "session.log").read_text(encoding="utf-8")


class At(keras.callbacks.Callback):
    """Act before a batch."""

    def __init__(self, batch: int, act: Any) -> None:
        super().__init__()
        self._batch, self._act = batch, act

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if batch == self._batch:
            self._act()
