"""Gradient norms and histograms for TensorBoard."""

from __future__ import annotations

import os
from typing import Any

import keras
import numpy as np

from keras_trainops.representation import CallRepr
from keras_trainops.training.optimizer import engine_of
from keras_trainops.transforms.monitoring import HISTOGRAM_EDGES, Monitor
from keras_trainops.values import copy_of


class MonitorBoard(CallRepr, keras.callbacks.Callback):
    """Writes what each `Monitor` of the chain sees as scalars and histograms for TensorBoard.

    Works on every backend, with a model that has `TrainOpsMixin` or a plain one whose optimizer is
    a `TransformedOptimizer`. Beside `keras.callbacks.TensorBoard`, give it a directory of its own.

    Args:
        log_dir: The directory for the event files.
        update_freq: `"epoch"` writes after each epoch, a number after so many weight updates at
            least. Each writing waits for the device.

    Raises:
        ValueError: If `update_freq` does not fit; when training begins, if there is no `Monitor`.
        ImportError: When training begins, if tensorboardX is not installed.

    Example:
        >>> import keras_trainops as kt
        >>> board = kt.MonitorBoard("logs/gradients", update_freq=100)

    References: `summarize_gradients` of tf.contrib.training.create_train_op.
    """

    def __init__(
        self, log_dir: str | os.PathLike[str] = "logs", update_freq: int | str = "epoch"
    ) -> None:
        super().__init__()
        whole = isinstance(update_freq, int) and not isinstance(update_freq, bool)
        if update_freq != "epoch" and not (whole and int(update_freq) > 0):
            raise ValueError(
                '`update_freq` must be "epoch" or a number of weight updates > 0. Received: '
                f"update_freq={update_freq!r}"
            )
        self.log_dir, self.update_freq = os.fspath(log_dir), update_freq
        self._batches = 0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        engine = engine_of(self.model.optimizer)
        parts = engine.chain.walk() if engine is not None else ()
        self._monitors = [part for part in parts if isinstance(part, Monitor)]
        if not self._monitors:
            raise ValueError(
                "There is no `keras_trainops.transforms.Monitor` among the gradient transforms of "
                "the model: put one where the gradients are to be watched."
            )
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "`MonitorBoard` writes with tensorboardX: pip install 'keras-trainops[tensorboard]'"
            ) from error
        self._writer = SummaryWriter(self.log_dir)
        # Kept, as on JAX each `self.model` takes the state from the device.
        self._steps = self.model.steps_per_execution
        self._written = -1

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._batches += 1
        if self.update_freq != "epoch" and self._batches * self._steps >= int(self.update_freq):
            self._batches = 0
            self._write()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self.update_freq == "epoch":
            self._write()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._writer.close()

    def _write(self) -> None:
        step = int(copy_of(self.model.optimizer.iterations))
        if step == self._written:
            return
        self._written = step
        for monitor in self._monitors:
            norms = copy_of(monitor.norms)
            for i, label in enumerate(monitor.labels):
                self._writer.add_scalar(label, norms[i], step)
                if monitor.histogram:
                    self._add_histogram(f"{label}/elements", copy_of(monitor.counts)[i], step)

    def _add_histogram(self, tag: str, counts: np.ndarray, step: int) -> None:
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
