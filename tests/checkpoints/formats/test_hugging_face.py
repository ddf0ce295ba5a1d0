"""Directories as `save_pretrained` and the cache of Hugging Face make them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import keras_trainops as kt
from keras_trainops.checkpoints.formats import hugging_face
from keras_trainops.checkpoints.formats.arrays import ArraysCheckpoint
from keras_trainops.checkpoints.forwarding import Restructured
from keras_trainops.checkpoints.storage.writing import UnwritableError, written_aside
from keras_trainops.restoring.configuration import config_beside
from tests.helpers import two_layers, value

pytestmark = pytest.mark.once

ARRAYS = {"head.weight": np.ones((2, 3), "float32"), "head.bias": np.arange(2, dtype="float32")}
INDEX = "model.safetensors.index.json"


def save_pretrained(directory: str, weights: str = "model.safetensors") -> Path:
    """Make the directory of a model with a tokenizer."""
    path = Path(directory)
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "bert"}, indent=2) + "\n")
    (path / "tokenizer.json").write_text('{"version": "1.0"}')
    (path / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    if weights == INDEX:
        shards = {f"model-0000{i}-of-00002.safetensors": key for i, key in enumerate(ARRAYS, 1)}
        for shard, key in shards.items():
            file = path / shard
            safetensors.numpy.save_file({key: ARRAYS[key]}, file, {"format": "pt"})
        files = {key: shard for shard, key in shards.items()}
        content = {"metadata": {"total_size": 32}, "weight_map": files}
        (path / INDEX).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    elif weights == "model.safetensors":
        safetensors.numpy.save_file(ARRAYS, path / weights, {"format": "pt"})
    else:
        torch = pytest.importorskip("torch", reason="torch is not installed (the extra `torch`)")
        tensors = {key: torch.from_numpy(array) for key, array in ARRAYS.items()}
        torch.save(tensors, path / weights)
    return path


def contents(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def rewritten(directory: str | Path, new: str = "new") -> list[str]:
    with kt.open_checkpoint(directory) as like, written_aside(Path(new)) as aside:
        stored = Restructured(like, json.loads(json.dumps(like.structure())))
        return hugging_face.write(aside, stored, {key: key for key in like})


@pytest.mark.parametrize("weights", ["model.safetensors", INDEX, "pytorch_model.bin"])
def test_opens_the_weights_of_a_directory(weights: str) -> None:
    save_pretrained("bert", weights)
    with kt.open_checkpoint("bert") as checkpoint:
        assert checkpoint.location == "bert"
        assert checkpoint.format.startswith("Hugging Face directory, ")
        assert config_beside(checkpoint.location) == {"model_type": "bert"}
        assert checkpoint.keys() == ARRAYS.keys()
        for key, array in ARRAYS.items():
            np.testing.assert_array_equal(checkpoint[key], array)
        checkpoint.require_unchanged()
        (Path("bert") / weights).write_bytes(b"")
        with pytest.raises(kt.RestoreError, match="was changed while it was read"):
            checkpoint.require_unchanged()


def test_prefers_the_files_that_transformers_prefers() -> None:
    path = save_pretrained("bert", INDEX)
    (path / "pytorch_model.bin").write_bytes(b"other")
    with kt.open_checkpoint("bert") as checkpoint:
        assert checkpoint.structure()["hugging face"]["file"] == INDEX
    safetensors.numpy.save_file({"other": np.ones(1)}, path / "model.safetensors")
    with kt.open_checkpoint("bert") as checkpoint:
        assert list(checkpoint) == ["other"]


def test_restores_a_model_from_a_directory() -> None:
    save_pretrained("bert")
    model = two_layers()
    rename = {r"head\.weight": "head/kernel", r"head\.bias": "head/bias"}
    arrays = {"head/kernel": kt.adapt.Transpose()}
    kt.restore(model, Path("bert"), rename=rename, adapt=arrays, include="head")
    np.testing.assert_array_equal(value(model.get_layer("head").bias), [0, 1])


def test_other_directories_keep_their_formats() -> None:
    model = two_layers()
    model.save("keras", zipped=False)
    assert Path("keras/config.json").is_file()
    safetensors.numpy.save_file(ARRAYS, "keras/model.safetensors")
    with kt.open_checkpoint("keras") as checkpoint:
        assert "Hugging Face" not in checkpoint.format
    Path("bare").mkdir()
    safetensors.numpy.save_file(ARRAYS, "bare/model.safetensors")
    with pytest.raises(kt.RestoreError, match="is not a checkpoint of a supported format"):
        kt.open_checkpoint("bare")


@pytest.mark.parametrize("weights", ["model.safetensors", INDEX, "pytorch_model.bin"])
def test_writes_the_files_of_its_source(weights: str) -> None:
    path = save_pretrained("bert", weights)
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text("{}")
    for name in (".git", ".cache"):
        (path / name).mkdir()
        (path / name / "large").write_text("large")
    assert rewritten("bert") == []
    expected = contents(path)
    for name in (".git/large", ".cache/large"):
        del expected[name]
    found = contents(Path("new"))
    if weights == "pytorch_model.bin":  # PyTorch writes the same content differently
        del expected[weights], found[weights]
    assert found == expected
    with kt.open_checkpoint("new") as checkpoint:
        for key, array in ARRAYS.items():
            np.testing.assert_array_equal(checkpoint[key], array)


def test_leaves_out_weights_that_would_be_outdated() -> None:
    path = save_pretrained("bert")
    outdated = [
        *("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "rust_model.ot"),
        *("model.fp16.safetensors", "model.ckpt.meta", "openvino_model.xml", "optimizer.pt"),
    ]
    for name in outdated:
        (path / name).write_text("old")
    for name in ("onnx", "checkpoint-500"):
        (path / name).mkdir()
        (path / name / "model.onnx").write_text("old")
    (line,) = rewritten("bert")
    assert line == (
        "Not copied, as only model.safetensors has the new weights: checkpoint-500/, "
        "flax_model.msgpack, model.ckpt.meta, model.fp16.safetensors, onnx/, openvino_model.xml, "
        "optimizer.pt, pytorch_model.bin, rust_model.ot, tf_model.h5."
    )
    names = {"config.json", "model.safetensors", "tokenizer.json", "vocab.txt"}
    assert contents(Path("new")).keys() == names


def test_follows_the_links_of_a_cache() -> None:
    path = save_pretrained("original")
    expected = contents(path)
    snapshot = Path("cache", "snapshots", "abc")
    snapshot.mkdir(parents=True)
    Path("cache", "blobs").mkdir()
    for number, name in enumerate(expected):
        (path / name).rename(Path("cache", "blobs", str(number)))
        (snapshot / name).symlink_to(Path("..", "..", "blobs", str(number)))
    assert rewritten(snapshot) == []
    assert contents(Path("new")) == expected
    assert not any(file.is_symlink() for file in Path("new").iterdir())


def test_may_be_written_inside_its_source_and_onto_itself() -> None:
    path = save_pretrained("bert")
    expected = contents(path)
    for _ in range(2):
        assert rewritten("bert", "bert/new") == []
        assert contents(path / "new") == expected
    assert rewritten("bert/new", "bert/new") == []
    assert contents(path / "new") == expected


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (make_pipe, "is a pipe and not a regular file"),
        (lambda path: path.symlink_to("gone"), "Cannot copy .*: No such file"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device and not a regular file"),
        (lambda path: path.symlink_to(".."), "is a link to a directory"),
    ],
    ids=["pipe", "dangling link", "device", "directory"],
)
def test_refuses_what_it_cannot_copy(make: Any, message: str) -> None:
    make(save_pretrained("bert") / "extra")
    with pytest.raises(kt.RestoreError, match=message):
        rewritten("bert")
    assert not Path("new").exists()


def test_says_if_the_directory_is_gone() -> None:
    path = save_pretrained("bert")
    expected = (path / "model.safetensors").read_bytes()
    with kt.open_checkpoint("bert") as like:
        (path / "model.safetensors").rename("moved")
        (line,) = hugging_face.write(Path("new"), like, {key: key for key in like})
    assert "Only weights were written, as" in line
    assert "bert' does not contain model.safetensors any more: config.json and" in line
    assert contents(Path("new")) == {"model.safetensors": expected}


@pytest.mark.parametrize("own", [None, {}, {"file": "../model.safetensors", "directory": "."}])
def test_is_only_written_like_a_directory(own: dict[str, str] | None) -> None:
    structure = {} if own is None else {"hugging face": own}
    source = Restructured(ArraysCheckpoint({"x": np.ones(1)}), structure)
    with pytest.raises(UnwritableError, match="can only be written like another one"):
        hugging_face.write(Path("new"), source, {"x": "x"})
    assert not Path("new").exists()
