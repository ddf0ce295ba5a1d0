"""Cost of a save: `TrainingSession` compared with Keras's callbacks, for a 500 MB model.

A small head is trained on 500 MB of weights that stay: steps are cheap, and the saving shows. Each
round trains every variant once, one after the other in one process, the next round in the
opposite order; the first round is dropped. A variant saves once an epoch. Two numbers a save:
*in the callback*, the time that the steps wait; and *in all*, by how much longer the epochs took
than those of the variant that saves nothing, which includes the steps that writing in the
background slows down. Printed are medians of the rounds, with their quartiles.

    python tests/benchmarks/saving.py [--megabytes 500] [--rounds 5] [--epochs 2] [--steps 400]
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from tqdm import tqdm

import keras_trainops as kt

NOTHING, OURS = "no saving", "TrainingSession"
BATCH = 256


class Frozen(keras.layers.Layer):
    """Weights that are saved, and cost a step nothing."""

    def __init__(self, megabytes: int) -> None:
        super().__init__(name="frozen")
        self._megabytes = megabytes

    def build(self, shape: Any) -> None:
        for i in range(self._megabytes // 10):
            self.add_weight(shape=(2500, 1000), name=f"w{i}", trainable=False)

    def call(self, x: Any) -> Any:
        return x


def net(megabytes: int) -> Any:
    inputs = keras.Input((256,))
    x = Frozen(megabytes)(inputs)
    x = keras.layers.Dense(2048, activation="relu", name="trunk")(x)
    model = kt.TrainOpsModel(inputs, keras.layers.Dense(10, name="head")(x))
    model.compile("adam", "mse")
    return model


def savers(folder: Path, steps: int) -> dict[str, Callable[[], Any]]:
    """Create the variants to compare; each run needs new ones."""
    options = {"save_seconds": None, "save_steps": steps, "summary_steps": None, "verbose": 0}
    keras_callbacks = keras.callbacks
    return {
        NOTHING: keras_callbacks.Callback,
        OURS: lambda: kt.TrainingSession(folder / "session", keep=2, **options),
        "BackupAndRestore": lambda: keras_callbacks.BackupAndRestore(str(folder / "backup")),
        "ModelCheckpoint": lambda: keras_callbacks.ModelCheckpoint(str(folder / "model.keras")),
        "ModelCheckpoint, weights": lambda: keras_callbacks.ModelCheckpoint(
            str(folder / "model.weights.h5"), save_weights_only=True
        ),
    }


def timed(callback: Any, seconds: list[float]) -> None:
    """Has a callback note how long it takes between steps and at the end of each epoch."""
    for name in ("on_train_batch_begin", "on_epoch_end"):
        hook = getattr(callback, name)

        def timed_hook(*args: Any, hook: Any = hook, **kwargs: Any) -> None:
            start = time.perf_counter()
            hook(*args, **kwargs)
            seconds[-1] += time.perf_counter() - start

        setattr(callback, name, functools.wraps(hook)(timed_hook))


def once(model: Any, callback: Any, data: Any, epochs: int) -> tuple[float, float]:
    """Seconds in the callback, and seconds in all, of an epoch; without the first and the last."""
    held: list[float] = []

    class Epochs(keras.callbacks.Callback):
        begins: ClassVar[list[float]] = []

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.begins.append(time.perf_counter())
            held.append(0.0)

    timed(callback, held)
    if isinstance(callback, kt.TrainingSession):
        timed(callback._first_half, held)  # the half of it that works between steps
    callbacks = [Epochs(), callback]
    model.fit(*data, batch_size=BATCH, epochs=epochs + 2, verbose=0, callbacks=callbacks)
    seconds = Epochs.begins[-1] - Epochs.begins[1]
    return statistics.mean(held[1:-1]), seconds / epochs


def argument_repr(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.3f} s ({low:.3f} to {high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    count = BATCH * arguments.steps
    data = [rng.normal(size=(count, n)).astype("float32") for n in (256, 10)]
    model = net(arguments.megabytes)
    names = list(savers(Path(), 1))
    held: dict[str, list[float]] = {name: [] for name in names}
    more: dict[str, list[float]] = {name: [] for name in names}
    for i in tqdm(range(arguments.rounds + 1)):
        epochs: dict[str, float] = {}
        for name in names if i % 2 else reversed(names):
            folder = Path(tempfile.mkdtemp())
            make = savers(folder, arguments.steps)[name]
            stall, epochs[name] = once(model, make(), data, arguments.epochs)
            log = folder / "session" / "session.log"
            if log.exists():  # a session leaves a save out while the last one is being written
                saves = log.read_text(encoding="utf-8").count("saved step")
                assert saves == arguments.epochs + 2, "an epoch is too short: use more --steps"
            shutil.rmtree(folder)
            if i:
                held[name].append(stall)
        if i:
            for name in names:
                more[name].append(epochs[name] - epochs[NOTHING])
    print(f"Keras {keras.__version__} on {keras.backend.backend()}, {arguments.megabytes} MB")
    print("| | in the callback, a save | in all, a save |\n|---|---|---|")
    for name in names[1:]:
        print(f"| `{name}` | {argument_repr(held[name])} | {argument_repr(more[name])} |")
    ours, *others = [statistics.median(held[name]) for name in names[1:]]
    assert ours < min(others), "a save holds training up for longer than one of Keras's"


if __name__ == "__main__":
    main()
