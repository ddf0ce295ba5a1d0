"""Gradient norms and histograms for TensorBoard."""

from __future__ import annotations

import os
from typing import Any, Literal

import keras
import numpy as np

from keras_trainops.processes import Processes
from keras_trainops.representation import CallRepr
from keras_trainops.training.optimizers.group import monitors_of
from keras_trainops.transforms.monitoring import HISTOGRAM_EDGES, Monitor
from keras_trainops.values import copy_of


class MonitorBoard(CallRepr, keras.callbacks.Callback):
    """Write the norms and histograms of each `Monitor` in the chain for TensorBoard.

    Works on every backend, with a model that has `TrainOpsMixin` or a plain one whose optimizer is
    a `TransformedOptimizer`. Use a different directory than `keras.callbacks.TensorBoard`. Of
    several processes only the first one writes.

    Args:
        log_dir: Directory for the event files.
        update_freq: `"epoch"` writes after each epoch, an integer after at least that many weight
            updates. Each write waits for the device.

    Raises:
        ValueError: If `update_freq` is invalid; when training begins, if there is no `Monitor`.
        ImportError: When training begins, if tensorboardX is not installed.

    Example:
        >>> import keras_trainops as kt
        >>> board = kt.MonitorBoard("logs/gradients", update_freq=100)

    References: `summarize_gradients` of tf.contrib.training.create_train_op.
    """

    def __init__(
        self,
        log_dir: str | os.PathLike[str] = "logs",
        update_freq: int | Literal["epoch"] = "epoch",
    ) -> None:
        super().__init__()
        whole = isinstance(update_freq, int) and not isinstance(update_freq, bool)
        if update_freq != "epoch" and not (whole and int(update_freq) > 0):
            raise ValueError(
                '`update_freq` must be "epoch" or a number of weight updates > 0. Received: '
                f"update_freq={update_freq!r}"
            )
        self.log_dir, self.update_freq = os.fspath(log_dir), update_freq
        self._monitors: list[Monitor] = []
        self._writer: Any = None
        self._steps_per_execution = 1
        self._batches, self._last_step = 0, -1

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._monitors = monitors_of(self.model.optimizer)
        if not self._monitors:
            raise ValueError(
                "There is no `keras_trainops.transforms.Monitor` among the gradient transforms of "
                "the model: add one at the place whose gradients you want to see."
            )
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "`MonitorBoard` writes with tensorboardX: pip install 'keras-trainops[tensorboard]'"
            ) from error
        is_first = Processes(self.model).is_first
        self._writer = SummaryWriter(self.log_dir) if is_first else None
        # Read once: on JAX each use of `self.model` fetches the state from the device.
        self._steps_per_execution = self.model.steps_per_execution
        self._last_step = -1

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._batches += 1
        if self.update_freq == "epoch":
            return
        if self._batches * self._steps_per_execution >= int(self.update_freq):
            self._batches = 0
            self._write()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self.update_freq == "epoch":
            self._write()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._writer is not None:
            self._writer.close()

    def _write(self) -> None:
        if self._writer is None:
            return
        step = int(copy_of(self.model.optimizer.iterations))
        if step == self._last_step:
            return
        self._last_step = step
        for monitor in self._monitors:
            norms = copy_of(monitor.norms)
            for i, label in enumerate(monitor.labels):
                self._writer.add_scalar(label, norms[i], step)
                if monitor.histogram:
                    self._add_histogram(f"{label}/elements", copy_of(monitor.counts)[i], step)

    def _add_histogram(self, tag: str, counts: np.ndarray, step: int) -> None:
        """Write the number of elements in each bin of `HISTOGRAM_EDGES`, without empty ends."""
        (filled,) = np.nonzero(counts)
        if len(filled) == 0:
            return
        limits = np.append(HISTOGRAM_EDGES.astype("float64"), np.finfo("float32").max)
        first, last = max(int(filled[0]) - 1, 0), int(filled[-1])
        limits, counts = limits[first : last + 1], counts[first : last + 1].astype("float64")
        self._writer.add_histogram_raw(
            tag=tag,
            min=float(limits[0]),
            max=float(limits[-1]),
            num=float(counts.sum()),
            sum=float((counts * limits).sum()),
            sum_squares=float((counts * limits**2).sum()),
            bucket_limits=limits.tolist(),
            bucket_counts=counts.tolist(),
            global_step=step,
        )
