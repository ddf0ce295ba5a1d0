from __future__ import annotations

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import refused, value
from tests.restoring.helpers import saved


def test_seeds_are_left_unchanged() -> None:
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dropout(0.5)(keras.layers.Dense(2, name="d")(inputs)))
    seed = next(v for v in model.variables if "seed" in v.path)
    before = value(seed)
    report = kt.restore(model, saved({"d/kernel": np.ones((4, 2)), "d/bias": np.ones(2)}))
    assert report.missing == ()
    np.testing.assert_array_equal(value(seed), before)


@pytest.mark.once
def test_mismatches_alone_explain_an_empty_plan(model: keras.Model) -> None:
    with refused(model, r"(?s)^((?!No key).)*! head/bias: \(2,\) in the model, \(3,\) under key"):
        kt.restore(model, {"head/bias": np.ones(3)}, on_mismatch="ignore")
