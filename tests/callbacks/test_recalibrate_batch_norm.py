from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import value

X = np.random.default_rng(0).normal(3.0, 2.0, size=(24, 4)).astype("float32")
Y = np.zeros((24, 1), "float32")


@pytest.mark.parametrize("steps", [None, 2])
def test_replaces_the_statistics_after_training(steps: int | None) -> None:
    inputs = keras.Input((4,))
    outputs = keras.layers.Dense(1)(keras.layers.BatchNormalization(name="norm")(inputs))
    model = keras.Model(inputs, outputs)
    model.compile("sgd", "mse")
    precise = kt.RecalibrateBatchNorm(X, steps, batch_size=8)
    model.fit(X, Y, batch_size=8, shuffle=False, verbose=0, callbacks=[precise])
    used = X if steps is None else X[: 8 * steps]
    norm = model.get_layer("norm")
    np.testing.assert_allclose(value(norm.moving_mean), used.mean(0), rtol=1e-5)
    np.testing.assert_allclose(value(norm.moving_variance), used.var(0), rtol=1e-5)


@pytest.mark.parametrize("steps", [0, -1, True, 1.5])
def test_rejects_steps_that_are_no_positive_integer(steps: Any) -> None:
    message = rf"`steps` must be an integer >= 1, or None\. Received: steps={steps}"
    with pytest.raises(ValueError, match=message):
        kt.RecalibrateBatchNorm(X, steps)
