from __future__ import annotations

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import assert_same, weights

pytestmark = pytest.mark.once


def test_a_model_restores_from_itself_with_swapped_names() -> None:
    inputs = keras.Input((3,))
    x = keras.layers.Dense(3, name="a")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3, name="b")(x))
    before = [np.array(w) for w in model.get_weights()]
    kt.restore(model, model, rename={r"a/(\w+)": r"b/\1", r"b/(\w+)": r"a/\1"})
    assert_same(weights(model), [*before[2:], *before[:2]])
