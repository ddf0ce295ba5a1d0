from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import keras_trainops as kt
from keras_trainops.checkpoints.formats import safetensors as safetensors_format
from keras_trainops.checkpoints.formats.arrays import ArraysCheckpoint
from keras_trainops.checkpoints.storage.writing import UnwritableError

pytestmark = pytest.mark.once


@pytest.mark.parametrize("dtype", safetensors_format.DTYPES.values(), ids=str)
def test_keeps_every_dtype(dtype: np.dtype) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    path = Path("w.safetensors")
    safetensors_format.write(path, ArraysCheckpoint({"x": array}), {"renamed": "x"})
    with kt.open_checkpoint(path) as checkpoint:
        assert checkpoint.dtype("renamed") == dtype
        np.testing.assert_array_equal(checkpoint["renamed"], array)


def test_every_tensor_is_aligned() -> None:
    arrays = {"byte": np.ones(3, "u1"), "half": np.ones(3, ml_dtypes.bfloat16), "d": np.ones(3)}
    source = ArraysCheckpoint(arrays)
    counts: list[int] = []
    path = Path("w.safetensors")
    safetensors_format.write(path, source, {key: key for key in arrays}, counts.append)
    assert sum(counts) == 3 + 6 + 24
    with kt.open_checkpoint(path) as checkpoint:
        for key, array in arrays.items():
            assert checkpoint._extent(key).offset % array.itemsize == 0
    assert safetensors.numpy.load_file(path).keys() == arrays.keys()


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [("x", np.array(["text"]), "no dtype for 'x'"), ("__metadata__", np.ones(1), "cannot store")],
)
def test_refuses_what_the_format_cannot_hold(name: str, array: np.ndarray, message: str) -> None:
    path = Path("w.safetensors")
    with pytest.raises(UnwritableError, match=message):
        safetensors_format.write(path, ArraysCheckpoint({"a": array}), {name: "a"})
    assert not path.exists()
