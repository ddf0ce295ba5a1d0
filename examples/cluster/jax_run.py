"""Trains in several processes of JAX, which share the data or, with `--layout model`, the kernels.

`python examples/cluster/jax_run.py --processes 2 --compare` trains in one process and in two, and
prints the accuracies and the largest difference of the weights.
"""

from __future__ import annotations

import os

os.environ["KERAS_BACKEND"] = "jax"

import argparse

import jax
import keras
import numpy as np
from cluster import BATCH, Data, Place, digits, network, run, train


def data_parallel() -> keras.distribution.DataParallel:
    """Each device has all weights, and a part of each batch."""
    devices = keras.distribution.list_devices()
    return keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False)


def model_parallel() -> keras.distribution.ModelParallel:
    """Each device has a part of the large kernels, and all of each batch."""
    devices = keras.distribution.list_devices()
    mesh = keras.distribution.DeviceMesh((1, len(devices)), ["batch", "model"], devices)
    layouts = keras.distribution.LayoutMap(mesh)
    layouts["first/kernel"] = (None, "model")
    layouts["first/bias"] = ("model",)
    layouts["hidden/kernel"] = ("model", None)
    return keras.distribution.ModelParallel(
        layout_map=layouts, batch_dim_name="batch", auto_shard_dataset=False
    )


class Batches(keras.utils.PyDataset):
    """One of `count` parts of every batch; the order of the rows changes with the epoch."""

    def __init__(self, data: Data, index: int = 0, count: int = 1) -> None:
        super().__init__()
        self.data, self.index, self.count, self.epoch = data, index, count, 0

    def __len__(self) -> int:
        return len(self.data[0]) // BATCH

    def __getitem__(self, number: int) -> Data:
        images, labels = self.data
        order = np.random.default_rng(self.epoch).permutation(len(images))
        rows = order[number * BATCH : (number + 1) * BATCH][self.index :: self.count]
        return images[rows], labels[rows]

    def on_epoch_end(self) -> None:
        self.epoch += 1


def train_here(place: Place, options: argparse.Namespace) -> None:
    """Join the other processes, and train."""
    if place.count > 1:
        jax.distributed.initialize(place.address, place.count, place.index)
    layout = {"data": data_parallel, "model": model_parallel}[options.layout]()
    keras.distribution.set_distribution(layout)
    parts = place.count if options.layout == "data" else 1
    seen, (images, labels) = digits()
    mine = slice(place.index % parts, None, parts)
    train(
        network(),
        place,
        options,
        fit={"x": Batches(seen, place.index % parts, parts)},
        evaluate={"x": images[mine], "y": labels[mine]},
    )


if __name__ == "__main__":
    run(__doc__, train_here, layouts=("data", "model"))
