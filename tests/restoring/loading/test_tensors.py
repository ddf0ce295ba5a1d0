from __future__ import annotations

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import value


@pytest.mark.parametrize("units", [64, 1024], ids=["small", "large"])  # large: read piece by piece
def test_arrays_in_memory_are_not_touched_by_training(units: int) -> None:
    kernel = np.ones((512, units), "float32")
    inputs = keras.Input((512,))
    model = keras.Model(inputs, keras.layers.Dense(units, name="d", use_bias=False)(inputs))
    kt.restore(model, {"d/kernel": kernel})
    model.compile("sgd", "mse")
    model.train_on_batch(np.ones((2, 512)), np.zeros((2, units)))
    assert (kernel == 1).all()
    assert not (value(model.weights[0]) == 1).all()
