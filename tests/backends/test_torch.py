"""PyTorch in several processes: refused, as nothing would reduce their gradients."""

from __future__ import annotations

import functools
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import keras_trainops as kt
from tests.helpers import value
from tests.training.optimizers.kinds import X, Y, net

pytestmark = pytest.mark.backends("torch")

PROGRAM = """
import sys
import keras, numpy as np, torch
import torch.distributed as dist
import keras_trainops as kt

address, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
keras.utils.set_random_seed(1)
inputs = keras.Input((4,))
model = kt.TrainOpsModel(inputs, keras.layers.Dense(2, name="head")(inputs))
model.compile(keras.optimizers.SGD(0.1), "mse", gradient_transforms=kt.transforms.ClipByNorm(1.0))
wrapped = torch.nn.parallel.DistributedDataParallel(model)
before = model.get_weights()
x, y = np.full((8, 4), rank + 1.0, "float32"), np.ones((8, 2), "float32")
for method, options in (("fit", {"verbose": 0}), ("train_on_batch", {})):
    try:
        getattr(wrapped.module, method)(x, y, **options)
        print(method, "trained")
    except NotImplementedError as error:
        assert all((a == b).all() for a, b in zip(before, model.get_weights()))
        assert not model.optimizer.built
        print(method, "refused:", error)
model.evaluate(x, y, verbose=0)  # evaluating is allowed
dist.destroy_process_group()
"""


@functools.cache
def outputs() -> list[str]:
    """Return the lines that two real processes print."""
    Path("program.py").write_text(PROGRAM, encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    path = os.pathsep.join([str(Path(kt.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    processes = [
        subprocess.Popen(
            [sys.executable, "program.py", address, str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        for rank in range(2)
    ]
    found = []
    for process in processes:
        out, error = process.communicate()
        assert process.returncode == 0, error[-2000:]
        found += out.strip().splitlines()
    return found


@pytest.mark.parametrize("method", ["fit", "train_on_batch"])
def test_training_in_two_processes_is_refused(method: str) -> None:
    found = [line for line in outputs() if line.startswith(f"{method} ")]
    assert len(found) == 2
    for line in found:
        assert line.startswith(f"{method} refused: Training with the mixin does not reduce grad")
        assert line.endswith("Received: world size 2")


def test_a_world_of_one_process_trains(tmp_path: Path) -> None:
    import torch

    model = net()
    model.compile("sgd", "mse", gradient_transforms=kt.transforms.ClipByNorm(1.0))
    meeting = f"file://{tmp_path / 'meeting'}"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        wrapped.module.fit(X, Y, verbose=0)
        wrapped.module.train_on_batch(X, Y)
        model.evaluate(X, Y, verbose=0)
    finally:
        torch.distributed.destroy_process_group()
    assert value(model.optimizer.iterations) == 2
