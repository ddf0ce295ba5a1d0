from __future__ import annotations

import keras
import numpy as np

import keras_trainops as kt


def test_keys_of_one_rule_are_in_numerical_order() -> None:
    """safetensors files sort keys as text."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(12, name="head")])
    numbers = sorted(range(12), key=str)
    arrays = {f"experts.{i}.w": np.full((2, 1), i) for i in numbers}
    rename, adapt = {r"experts\.\d+\.w": "head/kernel"}, {"head/kernel": kt.adapt.Concat(axis=1)}
    kt.restore(model, arrays, rename=rename, adapt=adapt)
    np.testing.assert_array_equal(model.get_weights()[0], [range(12)] * 2)
