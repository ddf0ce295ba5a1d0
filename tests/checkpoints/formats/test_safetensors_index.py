from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import keras_trainops as kt
from tests.helpers import two_layers, weights

pytestmark = pytest.mark.once


def save_index(path: str = "model.safetensors.index.json") -> dict[str, np.ndarray]:
    """Save three tensors to two files, as transformers does."""
    rng = np.random.default_rng(0)
    arrays = {
        "trunk.kernel": rng.normal(size=(4, 3)).astype(ml_dtypes.bfloat16),
        "trunk.bias": rng.normal(size=3).astype("float32"),
        "head.kernel": rng.normal(size=(3, 2)),
    }
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    names = list(arrays)
    safetensors.numpy.save_file({k: arrays[k] for k in names[:2]}, files[0])
    safetensors.numpy.save_file({k: arrays[k] for k in names[2:]}, files[1])
    weight_map = dict(zip(names, [files[0], files[0], files[1]], strict=True))
    Path(path).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))
    return arrays


def test_index_is_one_checkpoint() -> None:
    expected = save_index()
    with kt.open_checkpoint("model.safetensors.index.json") as checkpoint:
        assert list(checkpoint) == list(expected)
        for key, array in expected.items():
            assert (checkpoint.shape(key), checkpoint.dtype(key)) == (array.shape, array.dtype)
            np.testing.assert_array_equal(checkpoint[key], array)
    model = two_layers()
    kt.restore(model, "model.safetensors.index.json", rename={r"(\w+)\.(\w+)": r"\1/\2"},
               exclude=["head/bias"])  # fmt: skip
    np.testing.assert_array_equal(weights(model)[1], expected["trunk.bias"])


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("head.kernel", "model-00001-of-00002.safetensors", "which lacks it"),
        ("head.kernel", "../model-00002-of-00002.safetensors", "not in the same directory"),
        ("head.kernel", "gone.safetensors", "which does not exist"),
        ("head.kernel", ["model-00001-of-00002.safetensors"] * 2, "not in one file"),
        ("head.kernel", None, "is not iterable"),
    ],
)
def test_refuses_a_wrong_index(name: str, file: object, message: str) -> None:
    save_index()
    path = Path("model.safetensors.index.json")
    content = json.loads(path.read_text())
    content["weight_map"][name] = file
    path.write_text(json.dumps(content))
    with pytest.raises(kt.RestoreError, match=message):
        kt.open_checkpoint(path)
