from __future__ import annotations

import keras
import pytest

from keras_trainops.restoring.planning.assignment import variable_bytes

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [((3, 2), "float32", 24), ((3, 2), "float16", 12), ((), "int64", 8), ((0, 4), "float32", 0)],
)
def test_variable_bytes_depend_on_shape_and_dtype(
    shape: tuple[int, ...], dtype: str, expected: int
) -> None:
    variable = keras.Variable(keras.ops.zeros(shape, dtype), dtype=dtype)
    assert variable_bytes(variable) == expected
