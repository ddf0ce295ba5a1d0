"""Files of formats that store tensors as plain bytes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import safetensors.numpy
import tensorflow as tf

from keras_trainops.checkpoints.checkpoint import PIECE

RNG = np.random.default_rng(0)
ARRAYS = {
    "a/long": RNG.normal(size=(7, PIECE // 3)).astype("f4"),  # more than two pieces
    "a/whole": RNG.normal(size=(2, PIECE)),
    "a/half": RNG.normal(size=(3, 5)).astype(ml_dtypes.bfloat16),
    "a/flags": np.array([True, False, True]),
    "a/scalar": np.array(3, "int32"),
    "a/none": np.zeros((0, 4), "f4"),
}


def write_h5(path: str) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = ["a"]
        group = file.create_group("a")
        more = {
            "chunked": {"chunks": (1, 7)},
            "deflated": {"compression": "gzip"},
            "checked": {"chunks": (2, 7), "fletcher32": True},
            "big": {"dtype": ">f4"},
        }
        for name, options in more.items():
            group.create_dataset(name, data=np.arange(28, dtype="f4").reshape(4, 7), **options)
        for key, array in ARRAYS.items():
            if array.dtype != ml_dtypes.bfloat16:
                group[key.removeprefix("a/")] = array
        group.attrs["weight_names"] = list(group)


WRITERS: dict[str, Callable[[str], Any]] = {
    "w.h5": write_h5,
    "w.safetensors": lambda path: safetensors.numpy.save_file(ARRAYS, path),
    "w.npz": lambda path: np.savez(path, **{k: v for k, v in ARRAYS.items() if "half" not in k}),
    "tf/ck": lambda path: write_tf(path),
    "tf/v1": lambda path: write_tf(path, "half", write_version=tf.compat.v1.train.SaverDef.V1),
}


def write_tf(path: str, without: str = "-", **options: Any) -> None:
    os.makedirs("tf")
    arrays = {k: v for k, v in ARRAYS.items() if without not in k and "none" not in k}
    arrays |= {f"a/many{i}": np.full(3, i, "f4") for i in range(400)}  # fill several blocks
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variables = [
            tf.compat.v1.get_variable(k, initializer=v, use_resource=True)
            for k, v in arrays.items()
        ]
        session.run([v.initializer for v in variables])
        saver = tf.compat.v1.train.Saver(**options)
        saver.save(session, path, write_meta_graph=False, write_state=False)
