"""Trains in several processes of PyTorch, with `torch.distributed`.

`python examples/cluster/torch_run.py --processes 2 --compare` trains in one process and in two, and
prints the accuracies and the largest difference of the weights. `torchrun` starts it as well.
"""

from __future__ import annotations

import os

os.environ["KERAS_BACKEND"] = "torch"

import argparse

import keras
import torch
from cluster import BATCH, Place, digits, network, run, train
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


def train_here(place: Place, options: argparse.Namespace) -> None:
    """Join the other processes, and train."""
    if place.count > 1:
        torch.distributed.init_process_group(
            init_method=f"tcp://{place.address}", world_size=place.count, rank=place.index
        )
    seen, (images, labels) = digits()
    dataset = TensorDataset(*map(torch.from_numpy, seen))
    sampler = DistributedSampler(dataset, place.count, place.index)
    loader = DataLoader(dataset, BATCH // place.count, sampler=sampler)
    new_order = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: sampler.set_epoch(epoch)
    )
    mine = slice(place.index, None, place.count)
    train(
        network(),
        place,
        options,
        fit={"x": loader},
        evaluate={"x": images[mine], "y": labels[mine]},
        callbacks=[new_order],
    )


if __name__ == "__main__":
    run(__doc__, train_here)
