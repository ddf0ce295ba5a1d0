"""What a save holds training up: `TrainingSession` beside Keras's callbacks, for a 500 MB model.

A small head is trained on 500 MB of weights that stay: steps are cheap, and the saving shows. Each
round trains every variant once, one after the other in one process, the next round in the
opposite order; the first round is dropped. A variant saves at the end of each epoch. Two numbers a
save: *held up*, the time within the callback; and *in all*, by how much longer the epochs took than
those of the variant that saves nothing, so that writing in the background counts where it slows the
steps down that go on meanwhile. Printed are medians of the rounds, with their quartiles.

    python tests/benchmarks/saving.py [--megabytes 500] [--rounds 5] [--epochs 4] [--steps 300]
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
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from tqdm import tqdm

import keras_trainops as kt

NOTHING, OURS = "no saving", "TrainingSession"


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


class Epochs(keras.callbacks.Callback):
    """How long the epochs took, from one beginning to the next: the first is left out."""

    def on_train_begin(self, logs: Any = None) -> None:
        self.begins: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.begins.append(time.perf_counter())

    def seconds(self) -> float:
        return self.begins[-1] - self.begins[1]


def net(megabytes: int) -> Any:
    inputs = keras.Input((256,))
    x = Frozen(megabytes)(inputs)
    x = keras.layers.Dense(256, activation="relu", name="trunk")(x)
    model = kt.TrainOpsModel(inputs, keras.layers.Dense(10, name="head")(x))
    model.compile("adam", "mse")
    return model


def savers(folder: Path, steps: int) -> dict[str, Callable[[], Any]]:
    """What is compared, made anew for each run."""
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


def timed(callback: Any) -> list[float]:
    """Has a callback note how long it takes at the end of each epoch."""
    seconds: list[float] = []
    hook = callback.on_epoch_end

    @functools.wraps(hook)
    def on_epoch_end(*args: Any, **kwargs: Any) -> None:
        start = time.perf_counter()
        hook(*args, **kwargs)
        seconds.append(time.perf_counter() - start)

    callback.on_epoch_end = on_epoch_end
    return seconds


def once(model: Any, callback: Any, data: Any, epochs: int) -> tuple[float, float]:
    """Seconds in the callback a save, and seconds an epoch; without the first of each."""
    clock, held = Epochs(), timed(callback)
    callbacks = [clock, callback]
    model.fit(*data, batch_size=64, epochs=epochs + 1, verbose=0, callbacks=callbacks)
    return statistics.mean(held[1:-1]), clock.seconds() / (epochs - 1)


def shown(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.3f} s ({low:.3f} to {high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    count = 64 * arguments.steps
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
            shutil.rmtree(folder)
            if i:
                held[name].append(stall)
        if i:
            for name in names:
                more[name].append(epochs[name] - epochs[NOTHING])
    print(f"Keras {keras.__version__} on {keras.backend.backend()}, {arguments.megabytes} MB")
    print("| | held up, a save | in all, a save |\n|---|---|---|")
    for name in names[1:]:
        print(f"| `{name}` | {shown(held[name])} | {shown(more[name])} |")
    ours = statistics.median(held[OURS]), statistics.median(more[OURS])
    others = [(statistics.median(held[n]), statistics.median(more[n])) for n in names[2:]]
    assert all(ours[0] < other[0] for other in others), "a save holds training up for longer"
    assert all(ours[1] < other[1] for other in others), "a save costs training more in all"


if __name__ == "__main__":
    main()
