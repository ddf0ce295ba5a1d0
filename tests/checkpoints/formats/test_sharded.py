from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import keras_trainops as kt
from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.formats import sharded
from keras_trainops.checkpoints.formats.arrays import ArraysCheckpoint
from keras_trainops.checkpoints.forwarding import Restructured
from keras_trainops.checkpoints.storage.writing import UnwritableError
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
        assert list(checkpoint) == ["trunk.bias", "trunk.kernel", "head.kernel"]  # as in the files
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


INDEX = "model.safetensors.index.json"


def transformers_index(metadata: dict[str, Any]) -> list[str]:
    """Save three tensors as transformers does, with the metadata of PyTorch; return the files."""
    files = save_index()
    content = json.loads(Path(INDEX).read_text()) | {"metadata": metadata}
    Path(INDEX).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    shards = sorted(set(content["weight_map"].values()))
    for shard in shards:
        arrays = {k: files[k] for k, file in content["weight_map"].items() if file == shard}
        safetensors.numpy.save_file(arrays, shard, metadata={"format": "pt"})
    return [INDEX, *shards]


def same(checkpoint: Checkpoint) -> dict[str, str]:
    return {key: key for key in checkpoint}


def test_writes_the_files_of_its_source() -> None:
    files = transformers_index({"total_size": 24 + 12 + 48, "total_parameters": 21})
    Path("new").mkdir()
    counts: list[int] = []
    with kt.open_checkpoint(INDEX) as like:
        assert json.loads(json.dumps(like.structure())) == like.structure()
        sharded.write(Path("new", INDEX), like, same(like), counts.append)
    assert sum(counts) == 24 + 12 + 48
    assert sorted(path.name for path in Path("new").iterdir()) == sorted(files)
    for file in files:
        assert Path("new", file).read_bytes() == Path(file).read_bytes()


def test_a_shard_is_found_by_key_and_written_by_name() -> None:
    _, first, _ = transformers_index({"total_size": 84, "total_parameters": 21, "note": "kept"})
    Path("new").mkdir()
    with kt.open_checkpoint(INDEX) as like:
        sharded.write(Path("new", INDEX), like, {"w": "trunk.kernel", "b": "trunk.bias"})
    assert sorted(path.name for path in Path("new").iterdir()) == [first, INDEX]
    content = json.loads(Path("new", INDEX).read_text())
    assert content["weight_map"] == {"w": first, "b": first}
    assert content["metadata"] == {"total_size": 36, "note": "kept"}
    with kt.open_checkpoint(Path("new", INDEX)) as found:
        assert list(found) == ["w", "b"]


def test_keeps_an_index_without_a_size() -> None:
    transformers_index({})
    Path("new").mkdir()
    with kt.open_checkpoint(INDEX) as like:
        sharded.write(Path("new", INDEX), like, {"head.kernel": "head.kernel"})
    assert json.loads(Path("new", INDEX).read_text())["metadata"] == {}


def test_is_only_written_like_an_index() -> None:
    source = ArraysCheckpoint({"x": np.ones(2)})
    with pytest.raises(UnwritableError, match="can only be written like another index"):
        sharded.write(Path(INDEX), source, same(source))


@pytest.mark.parametrize(
    "file",
    [
        "../a.safetensors",
        "/a.safetensors",
        "",
        "..",
        "train.py",
        "a\\b.safetensors",
        None,
        3,
        INDEX,
    ],
)
def test_refuses_shards_of_a_plan_that_lead_elsewhere(file: object) -> None:
    transformers_index({})
    Path("new").mkdir()
    with kt.open_checkpoint(INDEX) as like:
        structure = {**like.structure()["sharded"], "files": dict.fromkeys(like, file)}
        edited = Restructured(like, {"sharded": structure})
        with pytest.raises(UnwritableError, match="A shard cannot be named"):
            sharded.write(Path("new", INDEX), edited, same(like))
    assert not list(Path("new").iterdir())


def test_forwards_everything_but_the_structure() -> None:
    transformers_index({})
    with kt.open_checkpoint(INDEX) as like, Restructured(like, {"a": 1}) as other:
        assert other.structure() == {"a": 1}
        assert (repr(other), list(other)) == (repr(like), list(like))
        for key, array in like.items():
            assert (other.shape(key), other.dtype(key)) == (array.shape, array.dtype)
            assert other.in_pieces(key)
            for read in (other[key], other.again(key)):
                np.testing.assert_array_equal(read, array)
            np.testing.assert_array_equal(next(other.pieces(key)), array.reshape(-1))
        other.require_unchanged()
        Path(INDEX).write_text("")
        with pytest.raises(kt.RestoreError, match="was changed while it was read"):
            other.require_unchanged()


def test_reads_an_index_of_pytorch_files() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed (the extra `torch`)")
    torch.save({"b": torch.ones(2), "a": torch.zeros(3)}, "1.bin")
    torch.save({"c": torch.ones(1).half()}, "2.bin")
    index = "pytorch_model.bin.index.json"
    content = {"metadata": {}, "weight_map": {"a": "1.bin", "b": "1.bin", "c": "2.bin"}}
    Path(index).write_text(json.dumps(content))
    with kt.open_checkpoint(index) as checkpoint:
        assert checkpoint.format == "sharded PyTorch state dict"
        assert {key: checkpoint.shape(key) for key in checkpoint} == {
            "b": (2,),
            "a": (3,),
            "c": (1,),
        }
