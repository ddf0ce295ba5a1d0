"""One training run by different routes: backends, devices, accumulation, saved files.

    python -m tests.training.routes OPTIONS.json

The program reads the fields of `Route` as JSON. It runs what needs a process of its own: another
backend, or a saved file that another process wrote.
"""

from __future__ import annotations

import contextlib
import json
import sys
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

import keras_trainops as kt
from tests.helpers import two_replicas

L, T = keras.layers, kt.transforms


@dataclass(frozen=True)
class Route:
    """How to train.

    Attributes:
        devices: "one"; "mirrored", two replicas on TensorFlow; "data", four devices on JAX.
        accumulate: Batches per weight update.
        epochs: Epochs of four weight updates.
        seeded: Whether the model and the chain draw random numbers.
        policy: Dtype policy of the convolutions.
        bad: "loss" or "skip": a NaN in the second batch, found by the check or by a transform.
        unknown: Whether the length of the data is unknown.
        start: Archive of the initial weights.
        save: `.keras` file to write after the epochs.
        load: `.keras` file to continue from.
        end: Archive to write the result to.
    """

    devices: str = "one"
    accumulate: int | None = None
    epochs: int = 5
    seeded: bool = False
    policy: str = "float32"
    bad: str | None = None
    unknown: bool = False
    start: str | None = None
    save: str | None = None
    load: str | None = None
    end: str | None = None

    def as_program(self) -> list[str]:
        """The command line that takes this route in a process of its own."""
        return [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "tests.training.routes",
            json.dumps(asdict(self)),
        ]


def take(route: Route) -> dict[str, Any]:
    """Train, and return the final weights, the iterations, norms and the error, if any."""
    with scope(route.devices):
        net = keras.saving.load_model(route.load) if route.load else compiled(route)
        if route.start:
            with np.load(route.start) as archive:
                net.set_weights([archive[f"w{i}"] for i in range(len(net.weights))])
        history, error = fit(net, route)
    if route.save:
        net.save(route.save)
    iterations = keras.ops.convert_to_tensor(net.optimizer.iterations)
    result = {
        "iterations": np.array(keras.ops.convert_to_numpy(iterations)),
        "norms": np.array(history.get("gradient_norm", [])),
        "error": np.array(error),
        **{f"w{i}": w for i, w in enumerate(net.get_weights())},
    }
    if route.end:
        np.savez(route.end, **result)
    return result


def fit(net: Any, route: Route) -> tuple[dict[str, Any], str]:
    """The history, and the error of a loss that is not finite."""
    try:
        options: Any = {"epochs": route.epochs, "shuffle": False, "verbose": 0}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # data of unknown length "ran out of data"
            return net.fit(**data(route), **options).history, ""
    except kt.NonFiniteLossError as error:
        return {}, str(error)


def initial_weights() -> dict[str, np.ndarray]:
    return {f"w{i}": w for i, w in enumerate(model(Route()).get_weights())}


def compiled(route: Route) -> Any:
    net = model(route)
    net.compile(
        keras.optimizers.Adam(0.01, gradient_accumulation_steps=route.accumulate),
        "mse",
        gradient_transforms=chain(route),
        check_numerics=route.bad == "loss",
    )
    return net


def model(route: Route) -> Any:
    """Convolutions, an embedding with rows that repeat, attention."""
    keras.utils.set_random_seed(3)
    images, words = keras.Input((6, 6, 2), name="images"), keras.Input((3,), dtype="int32")
    x = L.Conv2D(4, 3, activation="tanh", name="conv", dtype=route.policy)(images)
    x = L.Conv2DTranspose(3, 2, activation="tanh", name="up", dtype=route.policy)(x)
    x = L.Flatten()(x)
    w = L.Embedding(7, 4, name="words")(words)
    # Without biases: the gradient of a key's bias is 0 but for rounding, which Adam enlarges.
    w = L.MultiHeadAttention(2, 3, use_bias=False, name="attention")(w, w)
    x = L.Concatenate()([x, L.Flatten()(w)])
    if route.seeded:
        x = L.Dropout(0.2, seed=7)(x)
    made = kt.TrainOpsModel([images, words], L.Dense(2, name="head", dtype="float32")(x))
    made.dtype_policy = route.policy
    return made


def chain(route: Route) -> list[Any]:
    noise = [T.Noise(0.01, seed=1)] if route.seeded else []
    skip = [T.SkipNonFinite()] if route.bad == "skip" else []
    return [
        *skip,
        T.Centralize(),
        T.AdaptiveClip(0.05),
        T.AdaptiveNormClip(),
        *noise,
        T.ClipByGlobalNorm(0.5),
        T.ScaleStep({"conv": 0.5}),
        T.Monitor(["head"]),
    ]


def data(route: Route) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(32, 6, 6, 2)).astype("float32")
    words = rng.integers(0, 7, size=(32, 3)).astype("int32")
    y = rng.normal(size=(32, 2)).astype("float32") * 10
    if route.bad:
        y[14] = np.nan  # in the second batch, and there on the second of two replicas
    batch = 8 // (route.accumulate or 1)
    if not route.unknown:
        return {"x": [images, words], "y": y, "batch_size": batch}
    import tensorflow as tf

    slices = tf.data.Dataset.from_tensor_slices(((images, words), y))
    return {"x": slices.batch(batch).filter(lambda x, y: True)}


@contextlib.contextmanager
def scope(devices: str) -> Iterator[None]:
    if devices == "mirrored":
        with two_replicas().scope():
            yield
    elif devices == "data":
        keras.distribution.set_distribution(keras.distribution.DataParallel())
        try:
            yield
        finally:
            keras.distribution.set_distribution(None)
    else:
        yield


if __name__ == "__main__":
    take(Route(**json.loads(sys.argv[1])))
    Path("done").touch()
