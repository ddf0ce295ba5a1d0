from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from keras_trainops.checkpoints.dtypes import is_real, nbytes

pytestmark = pytest.mark.once


def test_sizes_do_not_overflow() -> None:
    assert nbytes((), np.dtype("float64")) == 8
    assert nbytes((3, 0), np.dtype("int8")) == 0
    assert nbytes(np.array([2**40, 2**40]), np.dtype("float32")) == 2**82


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint64", "float16", ml_dtypes.bfloat16])
def test_real_dtypes(dtype: str) -> None:
    assert is_real(np.dtype(dtype))


@pytest.mark.parametrize("dtype", ["complex64", "U3", "O", "datetime64[D]"])
def test_other_dtypes_are_not_real(dtype: str) -> None:
    assert not is_real(np.dtype(dtype))
