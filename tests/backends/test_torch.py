"""A group of one process of `torch.distributed`; `tests/training/test_processes.py` has several."""

from __future__ import annotations

from pathlib import Path

import pytest

import keras_trainops as kt
from tests.helpers import value
from tests.training.optimizers.kinds import X, Y, net

pytestmark = pytest.mark.backends("torch")


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
