"""Optimizers of every kind that users compile a model with, and a model to train with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import two_layers

T = kt.transforms
O = keras.optimizers  # noqa: E741
RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 4)).astype("float32")
Y = RNG.normal(size=(24, 2)).astype("float32")
MULTI = pytest.mark.skipif(
    not hasattr(O, "MultiOptimizer"), reason="keras.optimizers.MultiOptimizer needs a newer Keras"
)


def several(first: Any, second: Any, **options: Any) -> Any:
    return O.MultiOptimizer(O.OptimizerMap(first, {"head/.*": second}), **options)


def net() -> Any:
    return kt.with_train_ops(two_layers())


def fit(model: Any, epochs: int = 1) -> None:
    model.fit(X, Y, batch_size=8, epochs=epochs, shuffle=False, verbose=0)


def scaled() -> Any:
    return O.LossScaleOptimizer(O.SGD(0.1, momentum=0.9), initial_scale=8.0)


def multi() -> Any:
    return several(O.SGD(0.1, momentum=0.9), O.Adam(0.01, loss_scale_factor=2.0))


KINDS: dict[str, Callable[[], Any]] = {
    "plain": lambda: O.SGD(0.1, momentum=0.9, loss_scale_factor=4.0),
    "loss scale": scaled,
    "multi": multi,
    "transformed": lambda: kt.TransformedOptimizer(O.SGD(0.1), T.ClipByNorm(1.0)),
    "both": lambda: O.LossScaleOptimizer(kt.TransformedOptimizer(O.SGD(0.1), T.ClipByNorm(1.0))),
}


def attributes(thing: Any) -> dict[str, Any]:
    """Return the attributes, by identity, of an object and of those inside it."""
    found = {name: id(each) for name, each in vars(thing).items()}
    inner = [vars(thing).get("inner_optimizer"), *getattr(thing, "_inner_optimizers", ())]
    tracked = {
        name: str(each) for name, each in vars(thing).items() if name.startswith("_self_uncond")
    }
    return {"own": found, "tracked": tracked, "inside": [attributes(i) for i in inner if i]}
