from __future__ import annotations

import keras
import numpy as np

import keras_trainops as kt
from tests.helpers import value


def test_arrays_in_memory_are_not_touched_by_training() -> None:
    kernel = np.ones((64, 64), "float32")
    inputs = keras.Input((64,))
    model = keras.Model(inputs, keras.layers.Dense(64, name="d", use_bias=False)(inputs))
    kt.restore(model, {"d/kernel": kernel})
    model.compile("sgd", "mse")
    model.train_on_batch(np.ones((2, 64)), np.zeros((2, 64)))
    assert (kernel == 1).all()
    assert not (value(model.weights[0]) == 1).all()
