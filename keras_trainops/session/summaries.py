"""Scalars for TensorBoard, written with tensorboardX."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras

from keras_trainops import keras_private
from keras_trainops.processes import Processes
from keras_trainops.session.log import SessionLog
from keras_trainops.session.settings import Settings
from keras_trainops.training.optimizers.group import monitors_of
from keras_trainops.training.optimizers.transformed import transformed_in
from keras_trainops.values import copy_of


class Summaries:
    """Loss, metrics, learning rate, steps per second and the gradient norms of each `Monitor`.

    Training continues without summaries if tensorboardX is missing or the disk is full.

    Args:
        settings: The settings of the session.
        step: The step at which the run begins. TensorBoard hides the later events of an earlier,
            interrupted run.
        log: The log of the session, which reports why there are no summaries.
        processes: The processes of the run. The first one writes; reading metrics may need all.
    """

    def __init__(
        self, settings: Settings, step: int, log: SessionLog, processes: Processes
    ) -> None:
        self._every, self._log = settings.summary_steps, log
        self._last_step, self._last_time = step, time.monotonic()
        self._file: _EventFile | None = None
        if self._every is None:
            return
        if processes.is_first:
            self._open(settings, step)
        if not processes.broadcast(self._file is not None, "to begin summaries"):
            self._every = None

    def _open(self, settings: Settings, step: int) -> None:
        try:
            with self._until_disk_is_full():
                self._file = _EventFile(settings.logdir, step)
        except ImportError:
            self._log.report("no summaries: pip install 'keras-trainops[tensorboard]'")

    @contextmanager
    def _until_disk_is_full(self) -> Iterator[None]:
        """End the summaries, and nothing else, if writing fails."""
        try:
            yield
        except OSError as error:
            self._file = None
            self._log.report(f"summaries stopped: {error}")

    def is_due(self, step: int) -> bool:
        """Return True if `summary_steps` have passed since the last summary."""
        if self._every is None:
            return False
        return step // self._every > self._last_step // self._every

    def write(self, model: Any, logs: Mapping[str, Any], step: int) -> None:
        """Write all scalars of a step.

        Args:
            model: The model, for the learning rate and the norms of its optimizer.
            logs: Loss and metrics, by name.
            step: The current step.
        """
        self.write_logs(logs, step)
        self.write_logs(_learning_rates(model.optimizer), step)
        self.write_logs(_norms(model.optimizer), step)
        now = time.monotonic()
        if step > self._last_step:
            speed = (step - self._last_step) / (now - self._last_time)
            self.write_logs({"steps_per_second": speed}, step)
        self._last_step, self._last_time = step, now

    def write_logs(self, logs: Mapping[str, Any], step: int) -> None:
        """Write scalars alone, such as the metrics of a validation.

        Args:
            logs: Scalars by name.
            step: The current step.
        """
        if self._file is not None:
            with self._until_disk_is_full():
                for name, value in logs.items():
                    self._file.add(name, float(value), step)

    def flush(self) -> None:
        """Write out all buffered scalars: a resumed run does not write them again."""
        if self._file is not None:
            with self._until_disk_is_full():
                self._file.writer.flush()

    def close(self) -> None:
        """Write all buffered scalars and close the file."""
        if self._file is not None:
            with self._until_disk_is_full():
                self._file.writer.close()


class _EventFile:
    """An event file that is written directly.

    The `SummaryWriter` of tensorboardX writes in a thread. A full disk kills the thread, which then
    blocks training, and a checkpoint would have to wait for it.

    Raises:
        ImportError: If tensorboardX is not installed.
        OSError: If the file cannot be written.
    """

    def __init__(self, directory: Path, step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2
        from tensorboardX.summary import scalar

        self._event, self._scalar = event_pb2.Event, scalar
        # tensorboardX puts the time in seconds into the name: two runs may begin in one second.
        suffix = f".{os.getpid()}.{time.time_ns() % 10**9}"
        self.writer = EventsWriter(str(directory / "events"), suffix)
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        # TensorBoard hides earlier events from this step on. Those of `step` itself were written
        # before its checkpoint and are valid.
        event = event_pb2.Event(step=step + 1, wall_time=time.time(), session_log=start)
        self.writer.write_event(event)

    def add(self, name: str, value: float, step: int) -> None:
        """Write a scalar to the buffer of the file."""
        summary, now = self._scalar(name, value), time.time()
        self.writer.write_event(self._event(step=step, wall_time=now, summary=summary))


def constant_learning_rates(optimizer: Any) -> tuple[float, ...]:
    """Return the learning rate, of each part of a `MultiOptimizer`, without schedules.

    Constant rates are variables, which are saved with the optimizer; schedules are not.
    """
    rates = _rates(optimizer).values()
    return tuple(_number(rate) for rate in rates if isinstance(rate, keras.Variable))


def _learning_rates(optimizer: Any) -> dict[str, float]:
    return {name: _number(rate) for name, rate in _rates(optimizer).items()}


def _rates(optimizer: Any) -> dict[str, Any]:
    rates: dict[str, Any] = {}
    for name, each in keras_private.named_optimizers(optimizer).items():
        transformed = transformed_in(each)
        inner = each if transformed is None else transformed.inner_optimizer
        tag = "/".join(["learning_rate", *([name] if name else [])])
        parts = getattr(inner, "optimizers", None)
        if parts is None:
            rates[tag] = each.learning_rate
        else:
            rates.update({f"{tag}/{part.name}": part.learning_rate for part in parts})
    return rates


def _number(value: Any) -> float:
    return float(keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(value)))


def _norms(optimizer: Any) -> dict[str, float]:
    norms: dict[str, float] = {}
    for monitor in monitors_of(optimizer):
        values = map(float, copy_of(monitor.norms))
        norms.update(zip(monitor.labels, values, strict=True))
    return norms
