"""Trains in several processes of TensorFlow, under a `MultiWorkerMirroredStrategy`.

`python examples/cluster/tensorflow_run.py --processes 2 --compare` trains in one process and in
two, and prints the accuracies and the largest difference of the weights.
"""

from __future__ import annotations

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import argparse
import json

import tensorflow as tf
from cluster import BATCH, Data, Place, digits, network, run, train


def strategy_for(place: Place) -> tf.distribute.Strategy:
    """Return the strategy; TF_CONFIG says who takes part, or WORKERS: "host:port,host:port"."""
    if place.count == 1:
        return tf.distribute.get_strategy()
    if "TF_CONFIG" not in os.environ:
        workers = os.environ["WORKERS"].split(",")
        task = {"type": "worker", "index": place.index}
        os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": workers}, "task": task})
    return tf.distribute.MultiWorkerMirroredStrategy()


def dataset(data: Data) -> tf.data.Dataset:
    """Return all rows: the strategy gives each process its part of them."""
    by_rows = tf.data.Options()
    by_rows.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return tf.data.Dataset.from_tensor_slices(data).with_options(by_rows)


def train_here(place: Place, options: argparse.Namespace) -> None:
    """Join the other processes, and train."""
    strategy = strategy_for(place)
    with strategy.scope():
        model = network()
    seen, held_out = digits()
    train(
        model,
        place,
        options,
        fit={"x": dataset(seen).shuffle(len(seen[0]), seed=0).batch(BATCH)},
        evaluate={"x": dataset(held_out).batch(BATCH)},
    )


if __name__ == "__main__":
    run(__doc__, train_here)
