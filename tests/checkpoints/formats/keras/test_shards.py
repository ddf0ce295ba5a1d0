from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import assert_same, make_everything, randomise, refused, weights

pytestmark = pytest.mark.once


def wide_model(seed: int) -> keras.Model:
    """Return a model with layers that need several shards."""
    inputs = keras.Input((16,))
    x = keras.layers.Dense(16, name="b")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(keras.layers.Dense(16, name="a")(x))
    return randomise(keras.Model(inputs, keras.layers.Dense(16, name="head")(x)), seed)


def save_shards(model: keras.Model, path: str = "w.weights.json", kilobytes: float = 1) -> int:
    """Save in shards of about the size of a kernel, and return their number."""
    model.save_weights(path, max_shard_size=kilobytes * 1024 / 1024**3)
    return len(list(Path().glob("w_*.weights.h5")))


def test_restores_every_weight() -> None:
    source, target = make_everything(wide_model)
    assert save_shards(source) > 3
    listed = json.loads(Path("w.weights.json").read_text())["weight_map"]
    assert any(isinstance(files, list) for files in listed.values())  # a group in several shards
    report = kt.restore(target, "w.weights.json")
    assert_same(weights(target), weights(source))
    assert report.unexpected == ()
    with kt.open_checkpoint("w.weights.json") as checkpoint:
        assert list(checkpoint)[:4] == ["b/kernel", "b/bias", "a/kernel", "a/bias"]
        assert checkpoint.format == "sharded Keras weights (.weights.json)"


def test_loads_by_name() -> None:
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
        (
            lambda m: m.update({"/layers/dense/vars": "../w_00000.weights.h5"}),
            "not in the same directory",
        ),
        (lambda m: m.update({"/layers/dense/vars": "/etc/passwd"}), "not in the same directory"),
        (lambda m: m.update({"/layers/dense/vars": ".."}), "not in the same directory"),
        (lambda m: m.update({"/layers/dense/vars": 3}), "w.weights.json"),
        (lambda m: m.update({"/layers/dense/vars": "w_9.weights.h5"}), "which does not exist"),
        (lambda m: m.update({"/layers/lost/vars": "w_00000.weights.h5"}), "is missing there"),
        (lambda m: m.pop("/layers/dense/vars"), "missing: b/"),
    ],
)
def test_refuses_a_wrong_index(change: Callable[[dict[str, object]], object], message: str) -> None:
    save_shards(wide_model(1))
    with_map(change)
    with refused(wide_model(2), message, kt.RestoreError):
        kt.restore(wide_model(2), "w.weights.json")


def test_refuses_a_variable_in_two_shards() -> None:
    save_shards(wide_model(1))
    with h5py.File("w_00001.weights.h5", "r+") as file:
        file["layers/dense/vars/0"] = np.zeros((16, 16))
    with pytest.raises(kt.RestoreError, match="two of its shards contain 'layers/dense/0'"):
        kt.open_checkpoint("w.weights.json")


@pytest.mark.parametrize("changed", ["w.weights.json", "w_00000.weights.h5", "w_00001.weights.h5"])
def test_detects_a_change_of_any_file(changed: str) -> None:
    save_shards(wide_model(1))
    with kt.open_checkpoint("w.weights.json") as checkpoint:
        checkpoint.require_unchanged()
        os.utime(changed, ns=(1, 1))
        with pytest.raises(kt.RestoreError, match=f"was changed while it was read: .*{changed}"):
            checkpoint.require_unchanged()


def test_refused_shards_can_be_overwritten() -> None:
    save_shards(wide_model(1))
    with_map(lambda m: m.update({"/layers/lost/vars": "w_00000.weights.h5"}))
    with pytest.raises(kt.RestoreError, match="is missing there") as held:
        kt.open_checkpoint("w.weights.json")
    h5py.File("w_00000.weights.h5", "w").close()
    assert held.value.__traceback__ is not None
