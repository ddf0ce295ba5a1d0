"""What the processes of `test_jax_processes.py` do: the same training on one device or several."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

import keras_trainops as kt
from keras_trainops.backends.jax_parts import host_part, parts_here
from tests.processes.member import Place

L, T, U = keras.layers, kt.transforms, kt.updates
BATCH, BATCHES = 8, 4
SHARDED = {"a/kernel": (None, "model"), "b/kernel": ("model", None), "b/bias": ("model",)}


def train(place: Place) -> dict[str, Any]:
    """Train by each distribution, and return the shards that this process has at the end.

    `place.arguments["runs"]` lists pairs of a distribution, "one", "data" or the shape of a mesh,
    and the name of a function below.
    """
    results: dict[str, Any] = {}
    for number, (distribution, name) in enumerate(place.arguments["runs"]):
        keras.utils.clear_session()
        keras.utils.set_random_seed(3)
        keras.distribution.set_distribution(made(distribution))
        run: Callable[[Part], dict[str, Any]] = globals()[name]
        found = run(part_of(place, distribution))
        results.update({f"{number} {name} {key}": value for key, value in found.items()})
    return results


def made(distribution: Any) -> Any:
    devices = keras.distribution.list_devices()
    if distribution == "one":
        return None
    if distribution == "data":
        return keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False)
    mesh = keras.distribution.DeviceMesh(tuple(distribution), ("batch", "model"), devices)
    layout = keras.distribution.LayoutMap(mesh)
    for path, axes in SHARDED.items():
        layout[f"^{path}"] = axes
    return keras.distribution.ModelParallel(
        layout_map=layout, batch_dim_name="batch", auto_shard_dataset=False
    )


class Part(NamedTuple):
    """The data that a process feeds.

    Attributes:
        x: Inputs, of the numbers -1, 0 and 1.
        y: Targets, of the same numbers.
        bad: The targets with a NaN in the second of all batches, in the last part alone.
        size: The batch size.
    """

    x: np.ndarray
    y: np.ndarray
    bad: np.ndarray
    size: int


def part_of(place: Place, distribution: Any) -> Part:
    rng = np.random.default_rng(0)
    x, y = (rng.integers(-1, 2, (BATCHES, BATCH, 4)).astype("float32") for _ in range(2))
    bad = y.copy()
    bad[1, -1, 0] = np.nan
    replicas = place.count if distribution == "data" else 1
    if isinstance(distribution, list):
        replicas = min(place.count, distribution[0])
    size, replica = BATCH // replicas, place.index * replicas // place.count
    mine = slice(replica * size, (replica + 1) * size)
    x, y, bad = (each[:, mine].reshape(-1, 4) for each in (x, y, bad))
    return Part(x, y, bad, size)


def shards(variables: Iterable[keras.Variable]) -> dict[str, np.ndarray]:
    """Return the shards of variables that this process has, by name and place."""
    found = {}
    for number, variable in enumerate(variables):
        value = variable.value
        for part in parts_here(value) or [tuple(slice(0, size) for size in value.shape)]:
            place = tuple((each.start, each.stop) for each in part)
            found[f"{number} {variable.path} {place}"] = np.array(host_part(value, part))
    return found


def state(model: Any) -> dict[str, np.ndarray]:
    policy = model.train_ops.policy
    return shards([*model.variables, *model.optimizer.variables, *policy.variables])


def network(cls: type = kt.TrainOpsModel, normalized: bool = True, dtype: Any = None) -> Any:
    inputs = keras.Input((4,))
    x = L.Dense(16, use_bias=False, name="a", dtype=dtype)(inputs)
    if normalized:
        x = L.Activation("tanh")(L.BatchNormalization(name="norm")(x))
    return cls(inputs, L.Dense(4, name="b", dtype=dtype)(x), name="net")


def fit(model: Any, x: np.ndarray, y: np.ndarray, part: Part, **options: Any) -> Any:
    return model.fit(x, y, part.size, shuffle=False, verbose=0, **options)


def chain(part: Part) -> dict[str, Any]:
    """Clip, noise, accumulation, batch norm, and averages."""
    import optax

    model = network()
    debiased, swa = U.MovingAverage(0.9, debias=True), U.StochasticWeightAverage(start=1)
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.5, gradient_accumulation_steps=2, use_ema=True),
        "mse",
        updates=[
            U.LayerUpdates(),
            *(U.Lookahead(2), U.MovingAverage(0.9, statistics=True), debiased, swa),
            U.Project("a/kernel", U.SpectralNorm(0.9)),
            U.Project("b/kernel", U.FixedMask(0.3)),
        ],
        gradient_transforms=[
            *(T.Momentum(0.9), T.Centralize(), T.AdaptiveClip(0.1)),
            *(T.FromOptax(optax.trace(0.5)), T.Noise(0.01, seed=1)),
            *(T.ClipByGlobalNorm(0.5), T.Monitor(["b"], histogram=True)),
        ],
    )
    history = fit(model, part.x, part.y, part).history
    result = {f"history {key}": np.array(values) for key, values in history.items()}
    result.update({f"trained {key}": value for key, value in state(model).items()})
    with swa.swapped():
        result.update({f"swapped {k}": v for k, v in shards(model.variables).items()})
        model.get_layer("a").kernel.assign(ops.ones((4, 16)))
    result.update({f"back {key}": value for key, value in state(model).items()})
    debiased.finalize()
    result.update({f"final {key}": value for key, value in state(model).items()})
    return result


def kept(part: Part) -> dict[str, Any]:
    """Leave a swap after another callback has assigned a value that equals some shards."""
    model = network()
    average = U.MovingAverage(0.9)
    model.compile("sgd", "mse", updates=[U.LayerUpdates(), average])

    class Assigns(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            bias = self.model.get_layer("b").bias
            changed = ops.where(ops.arange(4) < 3, ops.convert_to_tensor(bias), 7.0)
            bias.assign(changed)  # only the last shard differs

    fit(model, part.x, part.y, part, callbacks=[kt.UseAverage(), Assigns()])
    return state(model)


class Own(kt.TrainOpsModel):
    def training_step(self, step: Any, data: Any) -> dict[str, Any]:
        x, y, _ = step.unpack(data)

        def loss() -> Any:
            return ops.mean(ops.square(ops.cast(step.forward(x), "float32") - y))

        return {"loss": step.minimize(loss)}


def mixed(part: Part) -> dict[str, Any]:
    """A step of one's own in half precision; the second batch overflows on the last process."""
    model = network(Own, normalized=False, dtype="mixed_float16")
    for i, variable in enumerate(model.trainable_variables):
        start = np.random.default_rng(i).integers(-1, 2, variable.shape)
        variable.assign(start.astype("float32"))  # sums of integers are exact
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(2.0**-6), initial_scale=8.0, dynamic_growth_steps=2
    )
    model.compile(optimizer, gradient_transforms=[T.ClipByGlobalNorm(1e3), T.Monitor()])
    two = 2 * part.size  # later sums are not exact
    history = fit(model, part.x[:two], part.bad[:two], part).history
    return {"norms": history["gradient_norm"], **state(model)}


def skipped(part: Part) -> dict[str, Any]:
    """A NaN in the second batch of the last process alone: all of them skip the update."""
    model = network()
    skip = T.SkipNonFinite()
    model.compile(keras.optimizers.Adam(0.01), "mse", gradient_transforms=[skip, T.Momentum(0.9)])
    fit(model, part.x, part.bad, part)
    return {"skips": int(ops.convert_to_numpy(skip.skipped)), **state(model)}


def checked(part: Part) -> dict[str, Any]:
    """The same NaN: all of them raise."""
    model = network()
    model.compile("sgd", "mse", check_numerics=True)
    try:
        fit(model, part.x, part.bad, part)
    except kt.NonFiniteLossError as error:
        return {"error": re.sub(r"\s+", " ", str(error)), **state(model)}
    return {"error": "none"}
