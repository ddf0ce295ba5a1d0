"""PyTorch in several processes: refused, as nothing would reduce their gradients."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import keras_trainops as kt

pytestmark = pytest.mark.backends("torch")

PROGRAM = """
import sys
import keras, numpy as np, torch
import torch.distributed as dist
import keras_trainops as kt

address, rank, size, method = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
dist.init_process_group("gloo", init_method=address, rank=rank, world_size=size)
keras.utils.set_random_seed(1)
inputs = keras.Input((4,))
model = kt.TrainOpsModel(inputs, keras.layers.Dense(2, name="head")(inputs))
model.compile(keras.optimizers.SGD(0.1), "mse", gradient_transforms=kt.transforms.ClipByNorm(1.0))
wrapped = torch.nn.parallel.DistributedDataParallel(model)
before = model.get_weights()
x, y = np.full((8, 4), rank + 1.0, "float32"), np.ones((8, 2), "float32")
try:
    if method == "fit":
        wrapped.module.fit(x, y, verbose=0)
    else:
        wrapped.module.train_on_batch(x, y)
    print("trained")
except NotImplementedError as error:
    assert all((a == b).all() for a, b in zip(before, model.get_weights()))
    assert not model.optimizer.built
    print("refused:", error)
model.evaluate(x, y, verbose=0)  # changes nothing, and so may run
dist.destroy_process_group()
"""


def outputs(size: int, method: str) -> list[str]:
    """What each of several real processes prints."""
    Path("program.py").write_text(PROGRAM, encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    path = os.pathsep.join([str(Path(kt.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    processes = [
        subprocess.Popen(
            [sys.executable, "program.py", address, str(rank), str(size), method],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        for rank in range(size)
    ]
    found = []
    for process in processes:
        out, error = process.communicate()
        assert process.returncode == 0, error[-2000:]
        found.append(out.strip().splitlines()[-1])
    return found


@pytest.mark.parametrize("method", ["fit", "train_on_batch"])
def test_training_in_two_processes_is_refused(method: str) -> None:
    for out in outputs(2, method):
        assert out.startswith("refused: Training with the mixin does not reduce gradients over")
        assert out.endswith("Received: world size 2")


def test_a_world_of_one_process_trains() -> None:
    assert outputs(1, "fit") == ["trained"]
