"""Checkpoints in several files: Keras's `.weights.json`, the index of safetensors."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import h5py
import keras
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import keras_trainops as kt
from tests.helpers import assert_same, make_everything, randomise, refused, two_layers, weights


def wide_model(seed: int) -> keras.Model:
    """Two layers of one class, and one whose variables do not fit into one shard."""
    inputs = keras.Input((16,))
    x = keras.layers.Dense(16, name="b")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(keras.layers.Dense(16, name="a")(x))
    return randomise(keras.Model(inputs, keras.layers.Dense(16, name="head")(x)), seed)


def save_shards(model: keras.Model, path: str = "w.weights.json", kilobytes: float = 1) -> int:
    """Saves in shards of about the size of a kernel; gives their number."""
    model.save_weights(path, max_shard_size=kilobytes * 1024 / 1024**3)
    return len(list(Path().glob("w_*.weights.h5")))


def test_keras_shards_arrive() -> None:
    source, target = make_everything(wide_model)
    assert save_shards(source) > 3
    listed = json.loads(Path("w.weights.json").read_text())["weight_map"]
    assert any(isinstance(files, list) for files in listed.values())  # a group that spills over
    report = kt.restore(target, "w.weights.json")
    assert_same(weights(target), weights(source))
    assert report.unexpected == ()
    with kt.open_checkpoint("w.weights.json") as checkpoint:
        assert list(checkpoint)[:4] == ["b/kernel", "b/bias", "a/kernel", "a/bias"]
        assert checkpoint.format == "sharded Keras weights (.weights.json)"


def test_names_decide_in_shards_too() -> None:
    def stack(names: str, seed: int) -> keras.Model:
        x = inputs = keras.Input((16,))
        for name in names:
            x = keras.layers.Dense(16, name=name)(x)
        return randomise(keras.Model(inputs, x), seed)

    source, target = stack("xab", 1), stack("ba", 2)
    save_shards(source)
    report = kt.restore(target, "w.weights.json")
    for name in "ab":
        assert_same(weights(target.get_layer(name)), weights(source.get_layer(name)))
    assert report.unexpected == ("x/kernel", "x/bias")


def with_map(change: Callable[[dict[str, object]], object]) -> None:
    content = json.loads(Path("w.weights.json").read_text())
    change(content["weight_map"])
    Path("w.weights.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update({"/layers/dense/vars": "../w_00000.weights.h5"}), "not beside it"),
        (lambda m: m.update({"/layers/dense/vars": "/etc/passwd"}), "not beside it"),
        (lambda m: m.update({"/layers/dense/vars": ".."}), "not beside it"),
        (lambda m: m.update({"/layers/dense/vars": 3}), "w.weights.json"),
        (lambda m: m.update({"/layers/dense/vars": "w_9.weights.h5"}), "is missing beside it"),
        (lambda m: m.update({"/layers/lost/vars": "w_00000.weights.h5"}), "where it is not"),
        (lambda m: m.pop("/layers/dense/vars"), "missing: b/"),
    ],
)
def test_a_wrong_index_is_refused(
    change: Callable[[dict[str, object]], object], message: str
) -> None:
    save_shards(wide_model(1))
    with_map(change)
    with refused(wide_model(2), message, kt.RestoreError):
        kt.restore(wide_model(2), "w.weights.json")


def test_a_variable_that_two_shards_hold_is_refused() -> None:
    save_shards(wide_model(1))
    with h5py.File("w_00001.weights.h5", "r+") as file:
        file["layers/dense/vars/0"] = np.zeros((16, 16))
    with pytest.raises(kt.RestoreError, match="two of its shards hold 'layers/dense/0'"):
        kt.open_checkpoint("w.weights.json")


@pytest.mark.parametrize("changed", ["w.weights.json", "w_00000.weights.h5", "w_00001.weights.h5"])
def test_each_file_of_a_checkpoint_is_watched(changed: str) -> None:
    save_shards(wide_model(1))
    with kt.open_checkpoint("w.weights.json") as checkpoint:
        checkpoint.require_unchanged()
        os.utime(changed, ns=(1, 1))
        with pytest.raises(kt.RestoreError, match=f"was changed while it was read: .*{changed}"):
            checkpoint.require_unchanged()


def test_refused_shards_can_be_written_again() -> None:
    save_shards(wide_model(1))
    with_map(lambda m: m.update({"/layers/lost/vars": "w_00000.weights.h5"}))
    with pytest.raises(kt.RestoreError, match="where it is not") as held:
        kt.open_checkpoint("w.weights.json")
    h5py.File("w_00000.weights.h5", "w").close()
    assert held.value.__traceback__ is not None


def save_index(path: str = "model.safetensors.index.json") -> dict[str, np.ndarray]:
    """Three tensors in two files, as transformers writes them."""
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


def test_an_index_of_safetensors_is_one_checkpoint() -> None:
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
        ("head.kernel", "../model-00002-of-00002.safetensors", "not beside it"),
        ("head.kernel", "gone.safetensors", "is missing beside it"),
        ("head.kernel", ["model-00001-of-00002.safetensors"] * 2, "not in one file"),
        ("head.kernel", None, "is not iterable"),
    ],
)
def test_a_wrong_index_of_safetensors_is_refused(name: str, file: object, message: str) -> None:
    save_index()
    path = Path("model.safetensors.index.json")
    content = json.loads(path.read_text())
    content["weight_map"][name] = file
    path.write_text(json.dumps(content))
    with pytest.raises(kt.RestoreError, match=message):
        kt.open_checkpoint(path)


@pytest.mark.parametrize(
    "text", ["{", "{}", "[]", '{"weight_map": 3}', '{"weight_map": {}}', "{" * 9999]
)
def test_json_that_is_no_index(text: str) -> None:
    Path("w.json").write_text(text)
    with pytest.raises(kt.RestoreError, match="is no checkpoint of a supported format"):
        kt.open_checkpoint("w.json")
