"""One process of a run: it joins the others, calls a function, and saves what that returns."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Place:
    """The place of a process in its run.

    Attributes:
        index: Its index.
        count: Number of processes.
        directory: A directory that they share.
        scope: A context in which models are made: that of TensorFlow's strategy.
        arguments: The arguments of the run.
    """

    index: int
    count: int
    directory: Path
    scope: Any
    arguments: Mapping[str, Any]


def join(index: int, count: int, ports: Sequence[int]) -> Any:
    """Join the other processes as users do, and return the scope for models."""
    backend = os.environ["KERAS_BACKEND"]
    if backend == "jax":
        import jax

        # JAX reads the variable when it is imported, which was before the fork.
        jax.config.update("jax_num_cpu_devices", int(os.environ.get("JAX_NUM_CPU_DEVICES", "1")))
    if count == 1:
        return contextlib.nullcontext
    if backend == "tensorflow":
        workers = [f"127.0.0.1:{port}" for port in ports]
        os.environ["TF_CONFIG"] = json.dumps(
            {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        )
        import tensorflow as tf

        return tf.distribute.MultiWorkerMirroredStrategy().scope
    if backend == "jax":
        jax.distributed.initialize(
            f"127.0.0.1:{ports[0]}", count, index, heartbeat_timeout_seconds=20
        )
    if backend == "torch":
        import torch

        torch.distributed.init_process_group(
            "gloo", init_method=f"tcp://127.0.0.1:{ports[0]}", world_size=count, rank=index
        )
    return contextlib.nullcontext


def main(task: Mapping[str, Any]) -> None:
    """Run a task: a function with its `Place` in a run."""
    index, count = task["index"], task["count"]
    scope = join(index, count, task["ports"])
    directory = Path(task["directory"])
    place = Place(index, count, directory, scope, task["arguments"])
    module, _, name = task["function"].partition(":")
    result = getattr(importlib.import_module(module), name)(place)
    path = directory / f"result-{index}.npz"
    written = path.with_suffix(".part.npz")
    np.savez(written, **(result or {}))
    written.replace(path)  # a process that is killed leaves no half of a file
