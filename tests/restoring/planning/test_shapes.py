from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import refused, values
from tests.restoring.helpers import arrays

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.full((3, 2), "a"), "<U1"),
        (np.full((3, 2), None), "object"),
        (np.ones((3, 2), "complex64"), "complex64"),
        (np.full((3, 2), "2020-01-01", "datetime64[D]"), "datetime64"),
    ],
)
def test_arrays_that_are_not_numeric_are_refused(
    model: keras.Model, array: np.ndarray, dtype: str
) -> None:
    with refused(model, f"! head/kernel: float32 in the model, {dtype}.* under key 'head/kernel'"):
        kt.restore(model, {**arrays(), "head/kernel": array})


def test_floats_do_not_become_integers() -> None:
    class Table(keras.layers.Layer):
        def build(self, input_shape: Any) -> None:
            self.rows = self.add_weight(shape=(2,), dtype="int32", trainable=False, name="rows")

        def call(self, x: Any) -> Any:
            return x + keras.ops.cast(self.rows, "float32")

    inputs = keras.Input((2,))
    model = keras.Model(inputs, Table(name="table")(inputs))
    with refused(model, "! table/rows: int32 in the model, float64 under key"):
        kt.restore(model, {"table/rows": [0.5, 1.0]})
    kt.restore(model, {"table/rows": [3, 4]})
    assert values(model)[0].tolist() == [3, 4]
