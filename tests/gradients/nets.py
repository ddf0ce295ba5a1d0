"""Small models and data, and losses by hand, for the sources of gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

import keras_trainops as kt

RNG = np.random.default_rng(0)
X = RNG.normal(size=(20, 6)).astype("float32")
Y = RNG.normal(size=(20, 2)).astype("float32")
W = RNG.uniform(0.5, 2.0, size=20).astype("float32")
BATCH = 8  # the last batch is smaller
START = {
    "trunk/kernel": RNG.normal(size=(6, 5)) / 2,
    "trunk/bias": RNG.normal(size=5) / 4,
    **{f"{name}/kernel": RNG.normal(size=(5, 2)) / 2 for name in ("head", "second", "third")},
    **{f"{name}/bias": RNG.normal(size=2) / 4 for name in ("head", "second", "third")},
}
Weights = dict[str, np.ndarray]


def net(
    heads: tuple[str, ...] = ("head",),
    model_class: type[keras.Model] = kt.TrainOpsModel,
    **options: Any,
) -> Any:
    """One hidden layer and a head for each name, with the same weights on every backend."""
    inputs = keras.Input((6,))
    x = keras.layers.Dense(5, activation="tanh", name="trunk", **options)(inputs)
    outputs = [keras.layers.Dense(2, name=name, dtype="float32")(x) for name in heads]
    model = model_class(inputs, outputs if len(outputs) > 1 else outputs[0])
    for variable in model.weights:
        variable.assign(START[variable.path])
    return model


def fit(model: Any, y: Any = Y, epochs: int = 2, **options: Any) -> dict[str, list[float]]:
    """Train without shuffling, and return the history."""
    options = {"batch_size": BATCH, **options}
    return model.fit(X, y, epochs=epochs, shuffle=False, verbose=0, **options).history


def batches(*arrays: np.ndarray, size: int = BATCH) -> list[tuple[np.ndarray, ...]]:
    return [tuple(a[i : i + size] for a in arrays) for i in range(0, len(arrays[0]), size)]


def value_of(model: Any) -> Weights:
    return {v.path: np.array(keras.ops.convert_to_numpy(v.value)) for v in model.weights}


def start(heads: tuple[str, ...] = ("head",)) -> Weights:
    return {
        path: value.astype("float32")
        for path, value in START.items()
        if path.split("/")[0] in ("trunk", *heads)
    }


def close(found: Weights, wanted: Weights, tolerance: float = 2e-6) -> None:
    assert found.keys() == wanted.keys()
    for path in found:
        np.testing.assert_allclose(
            found[path], np.asarray(wanted[path]), rtol=tolerance, atol=tolerance, err_msg=path
        )


def moved(found: Weights, heads: tuple[str, ...] = ("head",)) -> float:
    """The largest change since the start."""
    before = start(heads)
    return max(float(np.abs(found[path] - before[path]).max()) for path in found)


def predicted(weights: Any, x: Any, head: str = "head", tanh: Callable[..., Any] = np.tanh) -> Any:
    """The output of `net`, for arrays of NumPy or JAX."""
    hidden = tanh(x @ weights["trunk/kernel"] + weights["trunk/bias"])
    return hidden @ weights[f"{head}/kernel"] + weights[f"{head}/bias"]
