"""Scalars for TensorBoard, written through tensorboardX."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from keras_trainops.state import copy_of
from keras_trainops.training.optimizer import engine_of
from keras_trainops.transforms.monitoring import Monitor


class Summaries:
    """Loss, metrics, learning rate, steps per second and, with a `Monitor`, gradient norms.

    Args:
        directory: Where the event files go.
        step: The step that the run begins with. What an interrupted run wrote after it,
            TensorBoard leaves out.

    Raises:
        ImportError: If tensorboardX is not installed.
    """

    def __init__(self, directory: Path, step: int) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(directory), purge_step=step)
        self._since = (step, time.monotonic())

    def write(self, model: Any, logs: Mapping[str, Any], step: int) -> None:
        """Writes what there is at a step."""
        self._add(logs, step)
        self._add(learning_rates(model.optimizer), step)
        self._add(_norms(model.optimizer), step)
        (since, then), now = self._since, time.monotonic()
        if step > since:
            self._add({"steps_per_second": (step - since) / (now - then)}, step)
        self._since = (step, now)

    def write_logs(self, logs: Mapping[str, Any], step: int) -> None:
        """Writes logs alone, as those of a validation."""
        self._add(logs, step)

    def _add(self, scalars: Mapping[str, Any], step: int) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, float(value), step)

    def flush(self) -> None:
        """Writes out what there is: a run that is resumed does not write it again."""
        self._writer.flush()

    def close(self) -> None:
        """Writes out what is left."""
        self._writer.close()


def learning_rates(optimizer: Any) -> dict[str, float]:
    """The learning rate now, or of each part of a `MultiOptimizer` its own."""
    if optimizer is None:
        return {}
    engine = engine_of(optimizer)
    parts = getattr(optimizer if engine is None else engine.inner_optimizer, "optimizers", None)
    if parts is None:
        return {"learning_rate": _number(optimizer.learning_rate)}
    return {f"learning_rate/{part.name}": _number(part.learning_rate) for part in parts}


def _number(value: Any) -> float:
    return float(keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(value)))


def _norms(optimizer: Any) -> dict[str, float]:
    engine = engine_of(optimizer)
    if engine is None:
        return {}
    monitors = [part for part in engine.chain.walk() if isinstance(part, Monitor)]
    return {
        label: float(norm)
        for monitor in monitors
        for label, norm in zip(monitor.labels, copy_of(monitor.norms), strict=True)
    }
