"""Writers of a model's weights, one for each format."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import safetensors.numpy
import tensorflow as tf

from tests.helpers import randomise, value

tf1 = tf.compat.v1


def plain_model(seed: int) -> keras.Model:
    """Layers with unique paths, for formats whose keys are paths."""
    inputs = keras.Input((6, 6, 2))
    x = keras.layers.SeparableConv2D(3, 3, name="separable")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Conv2D(4, 3, name="conv")(x)
    x = keras.layers.Flatten()(x)
    return randomise(keras.Model(inputs, keras.layers.Dense(5, name="head")(x)), seed)


def arrays_of(model: keras.Model) -> dict[str, np.ndarray]:
    return {variable.path: value(variable) for variable in model.weights}


def write_tf1(model: keras.Model, prefix: str, **options: object) -> None:
    """Save the weights as variables of a TF1 graph, with Adam's slots and a global step."""
    arrays = arrays_of(model)
    os.makedirs(os.path.dirname(prefix), exist_ok=True)  # the V1 writer does not create it
    with tf.Graph().as_default(), tf1.Session() as session:
        variables = [tf1.get_variable(name, initializer=array) for name, array in arrays.items()]
        loss = tf.add_n([tf.reduce_sum(v**2) for v in variables])
        tf1.train.AdamOptimizer().minimize(loss, tf1.train.get_or_create_global_step())
        session.run(tf1.global_variables_initializer())
        tf1.train.Saver(**options).save(session, prefix, write_meta_graph=False)


def write_checkpoint(model: keras.Model, prefix: str) -> None:
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    tf.train.Checkpoint(model=model).save(prefix)


WRITERS: dict[str, Callable[[keras.Model], object]] = {
    "weights.h5": lambda m: m.save_weights("w.weights.h5") or "w.weights.h5",
    "keras": lambda m: m.save("w.keras") or "w.keras",
    "keras directory": lambda m: m.save("w_dir", zipped=False) or "w_dir",
    "legacy h5": lambda m: write_legacy(m, "w.h5") or "w.h5",
    "npz": lambda m: np.savez("w.npz", **arrays_of(m)) or "w.npz",
    "safetensors": lambda m: (
        safetensors.numpy.save_file(arrays_of(m), "w.safetensors") or "w.safetensors"
    ),
    "TF1": lambda m: write_tf1(m, "tf1/model.ckpt") or "tf1/model.ckpt",
    "TF1 directory": lambda m: write_tf1(m, "tf1/model.ckpt") or "tf1",
    "TF1 empty base name": lambda m: write_empty_base_name(m) or "empty",
    "TF1 V1 file": lambda m: (
        write_tf1(m, "tf1/old.ckpt", write_version=tf1.train.SaverDef.V1) or "tf1/old.ckpt"
    ),
    "TF2": lambda m: write_checkpoint(m, "tf2/ck") or "tf2",
    "TF2 prefix": lambda m: write_checkpoint(m, "tf2/ck") or "tf2/ck-1",
    "TF2 index file": lambda m: write_checkpoint(m, "tf2/ck") or "tf2/ck-1.index",
    "TF2 data file": lambda m: write_checkpoint(m, "tf2/ck") or "tf2/ck-1.data-00000-of-00001",
    "SavedModel": lambda m: m.export("exported", verbose=False) or "exported",
    "mapping": arrays_of,
    "model": lambda m: m,
}


def write_legacy(model: keras.Model, path: str) -> None:
    import logging

    logging.disable(logging.WARNING)  # absl warns about the legacy format
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    model.save(path)
    logging.disable(logging.NOTSET)


def write_empty_base_name(model: keras.Model) -> None:
    write_tf1(model, "elsewhere/x")
    os.makedirs("empty")
    for file in Path("elsewhere").glob("x.*"):
        os.rename(file, Path("empty", file.name[1:]))
    Path("empty/checkpoint").write_text('model_checkpoint_path: "/somebody/elses/machine/"\n')
