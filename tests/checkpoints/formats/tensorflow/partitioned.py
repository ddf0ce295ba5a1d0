"""TensorFlow checkpoints with partitioned variables."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import tensorflow as tf

tf1 = tf.compat.v1


PARTS = {
    "rows": tf1.fixed_size_partitioner(3, axis=0),  # of 4, 3 and 3 rows
    "columns": tf1.fixed_size_partitioner(2, axis=1),
    "sizes": tf1.min_max_variable_partitioner(max_partitions=4, min_slice_size=64),
    "whole": None,
}


def save(prefix: str, version: int = 2, sharded: bool = False) -> dict[str, np.ndarray]:
    """Save partitioned variables of TF1 and a whole one, and return their values."""
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
