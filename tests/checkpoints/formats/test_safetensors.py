from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def save_with_numpy(path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "none": np.ones((0, 3), "float32"),
        "scalar": np.array(2, "float16"),
        "wide": rng.normal(size=(300, 1000)),  # more than one piece
        "odd": np.arange(3, dtype="int8"),
        "größe": rng.normal(size=3).astype(ml_dtypes.bfloat16),
        "tiny": rng.normal(size=3).astype(ml_dtypes.float8_e4m3fn),
        "flag": np.array([True]),
        "complex": np.ones(2, "complex64"),
    }
    safetensors.numpy.save_file(arrays, path)


def save_with_torch(path: Path, metadata: dict[str, str] | None = None) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed (the extra `torch`)")
    import safetensors.torch

    names = {"z": torch.float32, "A": torch.bfloat16, "a": torch.float32, "b": torch.float8_e5m2}
    tensors = {name: torch.arange(3).to(dtype) for name, dtype in names.items()}
    metadata = {"format": "pt"} if metadata is None else metadata
    safetensors.torch.save_file(tensors, path, metadata=metadata)


@pytest.mark.parametrize(
    "save",
    [
        save_with_numpy,
        save_with_torch,
        lambda path: save_with_torch(path, {"größe": 'two\nlines, "quoted"\x01', "a": ""}),
        lambda path: save_with_torch(path, {}),
    ],
    ids=["numpy", "torch", "escapes", "empty metadata"],
)
def test_writes_the_file_of_its_source(save: Callable[[Path], None]) -> None:
    save(Path("like.safetensors"))
    out = Path("out.safetensors")
    with kt.open_checkpoint("like.safetensors") as like:
        safetensors_format.write(out, like, {key: key for key in like})
        assert json.loads(json.dumps(like.structure())) == like.structure()
    assert out.read_bytes() == Path("like.safetensors").read_bytes()


def test_keys_have_the_order_of_the_file() -> None:
    arrays = {"b": np.ones(2), "a": np.ones(3), "c": np.ones(1, "int8"), "d": np.ones(0, "int8")}
    path = Path("w.safetensors")
    safetensors_format.write(path, ArraysCheckpoint(arrays), {key: key for key in arrays})
    with kt.open_checkpoint(path) as checkpoint:
        assert list(checkpoint) == list(arrays)


def test_metadata_comes_only_from_the_same_format() -> None:
    np.savez("w.npz", format=np.ones(2))
    with kt.open_checkpoint("w.npz") as source:
        safetensors_format.write(Path("w.safetensors"), source, {"x": "format"})
    with safetensors.safe_open("w.safetensors", "numpy") as file:
        assert file.metadata() is None


def test_refuses_metadata_other_than_texts() -> None:
    class Edited(ArraysCheckpoint):
        def _structure(self) -> dict[str, Any]:
            return {"safetensors": {"metadata": {"format": [1]}}}

    with pytest.raises(UnwritableError, match="stores only texts as metadata"):
        safetensors_format.write(Path("w"), Edited({"x": np.ones(1)}), {"x": "x"})
    assert not Path("w").exists()
