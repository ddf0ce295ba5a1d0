"""Load digits, make and train a network, find the place of a process, and launch several."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

import keras_trainops as kt

OUTPUT = Path(__file__).parents[1] / "output"
BATCH = 60  # of all processes together
Data = tuple[np.ndarray, np.ndarray]


class Place(NamedTuple):
    """The place of a process in its run.

    Attributes:
        index: Its index.
        count: The number of processes.
        address: Where process 0 listens: "host:port".
    """

    index: int
    count: int
    address: str

    @classmethod
    def here(cls) -> Place:
        """Return the place that torchrun, SLURM, Kubernetes or `launch` has given this process."""
        index = _first_of("RANK", "SLURM_PROCID", "JOB_COMPLETION_INDEX", otherwise="0")
        count = _first_of("WORLD_SIZE", "SLURM_NTASKS", otherwise="1")
        host = os.environ.get("MASTER_ADDR", "127.0.0.1")
        return cls(int(index), int(count), f"{host}:{os.environ.get('MASTER_PORT', '29500')}")


def _first_of(*names: str, otherwise: str) -> str:
    return next((os.environ[name] for name in names if name in os.environ), otherwise)


def digits() -> tuple[Data, Data]:
    """Return 1,200 digits to train on and 596 held out: float32 (n, 64) in [0, 1], labels (n,)."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order].astype("float32") / 16, labels[order].astype("int32")
    return (images[:1200], labels[:1200]), (images[1200:1796], labels[1200:1796])


def network() -> kt.TrainOpsModel:
    """Return a compiled network; all processes give it the same initial weights."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((64,))
    x = keras.layers.Dense(64, activation="relu", name="first")(inputs)
    x = keras.layers.Dense(128, activation="relu", name="hidden")(x)
    model = kt.TrainOpsModel(inputs, keras.layers.Dense(10, name="head")(x), name="digits")
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        gradient_transforms=kt.transforms.ClipByGlobalNorm(1.0),
        updates=[kt.updates.LayerUpdates(), kt.updates.MovingAverage(0.95)],
    )
    return model


def train(
    model: kt.TrainOpsModel,
    place: Place,
    options: argparse.Namespace,
    fit: Mapping[str, Any],
    evaluate: Mapping[str, Any],
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> None:
    """Start or continue a run, evaluate its averaged weights, and write them to `weights.npz`.

    Args:
        model: The compiled model.
        place: The place of this process.
        options: The command line.
        fit: The arguments of `fit` for the data that this process passes.
        evaluate: Those of `evaluate`.
        callbacks: More callbacks.
    """
    (images, _), _ = digits()
    start = kt.WarmStart(
        {"components": PCA(svd_solver="full").fit(images).components_},
        rename={"components": "first/kernel"},
        adapt={"first/kernel": kt.adapt.Transpose()},
        processes="first",
        verbose=0,
    )
    session = kt.TrainingSession(options.output / "log", save_steps=10)
    average = kt.UseAverage(finalize=True)
    model.fit(
        **fit,
        epochs=options.epochs,
        shuffle=False,  # the data are in a new order in each epoch
        verbose=0,
        callbacks=[start, session, average, *callbacks],
    )
    accuracy = model.evaluate(**evaluate, verbose=0, return_dict=True)["accuracy"]
    names = {v.path: np.zeros(v.shape, v.dtype) for v in model.weights}
    kt.write_back(model, names, options.output / "weights.npz", overwrite=True)
    if place.index == 0:
        print(f"accuracy on held-out digits: {accuracy:.3f}, processes: {place.count}", flush=True)


def run(
    doc: str | None,
    train_here: Callable[[Place, argparse.Namespace], None],
    layouts: Sequence[str] = (),
) -> None:
    """Run a script: in this process, or, with `--processes`, in several new ones.

    Args:
        doc: The docstring of the script; its first line describes the command.
        train_here: Trains in this process.
        layouts: The choices of `--layout`; the first one is the default.
    """
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--processes", type=int, help="start as many on this machine")
    parser.add_argument("--compare", action="store_true", help="train in one process, too")
    parser.add_argument("--epochs", type=int, default=5, help="default: 5")
    parser.add_argument("--output", type=Path, default=OUTPUT / Path(sys.argv[0]).stem)
    if layouts:
        parser.add_argument("--layout", choices=layouts, default=layouts[0])
    options = parser.parse_args()
    if options.processes is None:
        train_here(Place.here(), options)
        return
    arguments = ["--epochs", str(options.epochs)]
    alone = options.output.with_name(f"{options.output.name}-alone")
    if options.compare:
        launch(1, [*arguments, "--output", str(alone)])
    arguments += ["--layout", options.layout] if layouts else []
    launch(options.processes, [*arguments, "--output", str(options.output)])
    if options.compare:
        with np.load(alone / "weights.npz") as one, np.load(options.output / "weights.npz") as all_:
            largest = max(float(np.abs(one[key] - all_[key]).max()) for key in one)
        print(f"same as one process: largest difference {largest:.1e}")


def launch(count: int, arguments: Sequence[str]) -> None:
    """Start this script in several processes, and wait until they end.

    Their environment is that of torchrun, and TF_CONFIG for TensorFlow. A SIGTERM reaches all.

    Raises:
        SystemExit: With the status of the first process that failed.
    """
    ports = _free_ports(count)
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    processes = []
    for index in range(count):
        task = {"cluster": cluster, "task": {"type": "worker", "index": index}}
        environment = {
            **os.environ,
            "RANK": str(index),
            "WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(ports[0]),
            "TF_CONFIG": json.dumps(task),
            "CUDA_VISIBLE_DEVICES": "",  # processes would need a GPU each
        }
        command = [sys.executable, sys.argv[0], *arguments]
        processes.append(subprocess.Popen(command, env=environment))
    signal.signal(signal.SIGTERM, lambda *_: [process.terminate() for process in processes])
    failed = [status for status in [process.wait() for process in processes] if status]
    if failed:
        sys.exit(failed[0] if failed[0] > 0 else 128 - failed[0])


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
