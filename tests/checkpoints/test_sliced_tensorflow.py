"""TensorFlow checkpoints with variables that were partitioned: whole, as if they had never been."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_trainops as kt
from keras_trainops.checkpoints.storage.raw import can_check
from tests.helpers import refused, value

tf1 = tf.compat.v1
PARTS = {
    "rows": tf1.fixed_size_partitioner(3, axis=0),  # of 4, 3 and 3 rows
    "columns": tf1.fixed_size_partitioner(2, axis=1),
    "sizes": tf1.min_max_variable_partitioner(max_partitions=4, min_slice_size=64),
    "whole": None,
}


def save(prefix: str, version: int = 2, sharded: bool = False) -> dict[str, np.ndarray]:
    """Writes partitioned variables of TF1 and a whole one, and returns their values."""
    os.makedirs(os.path.dirname(prefix), exist_ok=True)
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=(10, 7)).astype("float32") for name in PARTS}
    with tf.Graph().as_default(), tf1.Session() as session:
        for name, partitioner in PARTS.items():
            tf1.get_variable(
                name,
                (10, 7),
                initializer=_slice_of(arrays[name]),
                partitioner=partitioner,
            )
        session.run(tf1.global_variables_initializer())
        saver = tf1.train.Saver(write_version=version, sharded=sharded)
        saver.save(session, prefix, write_meta_graph=False)
    return arrays


def _slice_of(array: np.ndarray) -> Any:
    def initializer(shape: Any, dtype: Any = None, partition_info: Any = None) -> Any:
        begin = [0, 0] if partition_info is None else partition_info.var_offset
        return tf.constant(array[tuple(slice(b, b + n) for b, n in zip(begin, shape, strict=True))])

    return initializer


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("version", [1, 2])
def test_partitioned_variables_of_tf1(version: int, sharded: bool) -> None:
    arrays = save("run/ck", version, sharded)
    for path in ("run/ck", "run"):  # the prefix, and the directory with its state file
        with kt.open_checkpoint(path) as checkpoint:
            assert set(checkpoint) == set(arrays)
            for name, array in arrays.items():
                assert checkpoint.shape(name) == (10, 7)
                assert checkpoint.dtype(name) == np.float32
                np.testing.assert_array_equal(checkpoint[name], array)
            # A neighbour's slices do not keep a whole tensor from being read as plain bytes.
            assert checkpoint.in_pieces("whole") == (version == 2 and can_check())


@pytest.mark.parametrize("path", ["run/ck-?????-of-00001", "run/ck-00000-of-00001"])
def test_the_names_that_tensorflow_gives_to_numbered_files_of_v1(path: str) -> None:
    arrays = save("run/ck", version=1, sharded=True)
    with kt.open_checkpoint(path) as checkpoint:
        np.testing.assert_array_equal(checkpoint["rows"], arrays["rows"])


def test_a_sharded_variable_of_tf2_starts_a_model() -> None:
    from tensorflow.python.distribute.sharded_variable import ShardedVariable

    table = np.random.default_rng(1).normal(size=(12, 3)).astype("float32")
    module = tf.Module()
    parts = [tf.Variable(table[i : i + 4], name=f"part_{i}") for i in (0, 4, 8)]
    module.table = ShardedVariable(parts, name="embedding/embeddings")
    module.kernel = tf.Variable(np.full((3, 2), 2.0, "float32"), name="head/kernel")
    tf.train.Checkpoint(model=module).write("tf2/ck")
    inputs = keras.Input((1,))
    embedded = keras.layers.Embedding(12, 3, name="embedding")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2, use_bias=False, name="head")(embedded))
    report = kt.restore(model, "tf2/ck")
    assert len(report.restored) == len(model.weights) == 2
    np.testing.assert_array_equal(value(model.get_layer("embedding").embeddings), table)
    np.testing.assert_array_equal(value(model.get_layer("head").kernel), np.full((3, 2), 2.0))


def test_a_damaged_slice_is_told_by_its_checksum() -> None:
    arrays = save("run/ck")
    path = Path("run/ck.data-00000-of-00001")
    data = path.read_bytes()
    place = data.index(arrays["rows"][4:7].tobytes())  # the second slice
    path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(7, use_bias=False, name="d")])
    with refused(model, "Cannot read 'rows' from 'run/ck'", kt.RestoreError):
        kt.restore(model, "run/ck", rename={"rows": "d/kernel"})
    kt.restore(model, "run/ck", rename={"columns": "d/kernel"})
    np.testing.assert_array_equal(value(model.get_layer("d").kernel), arrays["columns"])


@pytest.mark.parametrize("version", [1, 2])
def test_a_prefix_with_characters_of_patterns(version: int) -> None:
    arrays = save("run[1]*/c[k]?", version)
    for path in ("run[1]*/c[k]?", "run[1]*"):
        with kt.open_checkpoint(path) as checkpoint:
            for name, array in arrays.items():
                np.testing.assert_array_equal(checkpoint[name], array)
