"""What the training step costs beside stock Keras: `ClipByGlobalNorm` against `global_clipnorm`.

Paired and interleaved: each round times one epoch of either, between `on_epoch_begin` and
`on_epoch_end`, in one process; the medians of the rounds' ratios are printed.
"""

from __future__ import annotations

import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from tqdm import tqdm

import keras_trainops as kt

ROUNDS = 15


class EpochSeconds(keras.callbacks.Callback):
    """Seconds of the last epoch."""

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        self._started = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        self.seconds = time.perf_counter() - self._started


def mlp(model_class: type[keras.Model]) -> keras.Model:
    """A small MLP, in which the step's own cost is not hidden by arithmetic."""
    keras.utils.set_random_seed(1)
    x = inputs = keras.Input((64,))
    for i in range(4):
        x = keras.layers.Dense(64, activation="relu", name=f"dense{i}")(x)
    return model_class(inputs, keras.layers.Dense(10, name="head")(x))


def main() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6400, 64)).astype("float32")
    y = rng.normal(size=(6400, 10)).astype("float32")
    clip = kt.transforms.ClipByGlobalNorm(1.0)
    stock, plain_mixin = mlp(keras.Model), mlp(kt.TrainOpsModel)
    ours, with_policy = mlp(kt.TrainOpsModel), mlp(kt.TrainOpsModel)
    stock.compile(keras.optimizers.Adam(global_clipnorm=1.0), "mse")
    plain_mixin.compile(keras.optimizers.Adam(global_clipnorm=1.0), "mse")
    ours.compile(keras.optimizers.Adam(), "mse", gradient_transforms=clip)
    with_policy.compile(
        keras.optimizers.Adam(),
        "mse",
        gradient_transforms=kt.transforms.ClipByGlobalNorm(1.0),
        updates=[kt.updates.LayerUpdates()],
    )
    models = {
        "stock global_clipnorm": stock,
        "mixin, stock clip": plain_mixin,
        "ClipByGlobalNorm": ours,
        "and LayerUpdates()": with_policy,
    }

    def epoch(model: keras.Model) -> float:
        timer = EpochSeconds()
        model.fit(x, y, batch_size=16, verbose=0, callbacks=[timer])
        return timer.seconds

    seconds: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        epoch(model)  # traces
    for _ in tqdm(range(ROUNDS), desc="rounds"):
        for name, model in models.items():
            seconds[name].append(epoch(model))
    print(f"MLP, batch 16, {len(x) // 16} steps an epoch, {ROUNDS} interleaved rounds")
    for name, times in seconds.items():
        ratios = [t / s for t, s in zip(times, seconds["stock global_clipnorm"], strict=True)]
        per_step = 1e6 * statistics.median(times) / (len(x) // 16)
        print(f"  {name:24s} {per_step:7.0f} µs a step   ratio {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
