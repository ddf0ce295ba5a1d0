"""Scalars for TensorBoard, written through tensorboardX."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras

from keras_trainops.session.log import SessionLog
from keras_trainops.training.optimizer import engine_of
from keras_trainops.transforms.monitoring import Monitor
from keras_trainops.values import copy_of


class Summaries:
    """Loss, metrics, learning rate, steps per second and, with a `Monitor`, gradient norms.

    They are written at once, to the file's buffer: tensorboardX's `SummaryWriter` hands them to a
    thread, which dies of a full disk and then has training wait for it, and for which a checkpoint
    would have to wait.

    Args:
        directory: Where the event files go.
        step: The step that the run begins with. What an interrupted run wrote after it,
            TensorBoard leaves out.
        log: Told where they cannot be written; training goes on without them.

    Raises:
        ImportError: If tensorboardX is not installed.
    """

    def __init__(self, directory: Path, step: int, log: SessionLog) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2
        from tensorboardX.summary import scalar

        self._log, self._event, self._scalar = log, event_pb2.Event, scalar
        self._since = (step, time.monotonic())
        # The name has the time in seconds: two runs may begin in one.
        suffix = f".{os.getpid()}.{time.time_ns() % 10**9}"
        self._file: Any = None
        with self._tolerant():
            self._file = EventsWriter(str(directory / "events"), suffix)
            begins = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            # From the next step on: those of this one were written before its checkpoint.
            event = event_pb2.Event(step=step + 1, wall_time=time.time(), session_log=begins)
            self._file.write_event(event)

    @contextmanager
    def _tolerant(self) -> Iterator[None]:
        """A disk that is full ends the summaries, and nothing else."""
        try:
            yield
        except OSError as error:
            self._file = None
            self._log.say(f"no more summaries: {error}")

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
        if self._file is None:
            return
        with self._tolerant():
            for name, value in scalars.items():
                summary, now = self._scalar(name, float(value)), time.time()
                self._file.write_event(self._event(step=step, wall_time=now, summary=summary))

    def flush(self) -> None:
        """Writes out what there is: a run that is resumed does not write it again."""
        if self._file is not None:
            with self._tolerant():
                self._file.flush()

    def close(self) -> None:
        """Writes out what is left."""
        if self._file is not None:
            with self._tolerant():
                self._file.close()


def learning_rates(optimizer: Any) -> dict[str, float]:
    """The learning rate now, or of each part of a `MultiOptimizer` its own."""
    return {name: _number(rate) for name, rate in _rates(optimizer).items()}


def saved_learning_rates(optimizer: Any) -> tuple[float, ...]:
    """Those that are saved with the optimizer: schedules are not."""
    return tuple(_number(r) for r in _rates(optimizer).values() if isinstance(r, keras.Variable))


def _rates(optimizer: Any) -> dict[str, Any]:
    if optimizer is None:
        return {}
    engine = engine_of(optimizer)
    parts = getattr(optimizer if engine is None else engine.inner_optimizer, "optimizers", None)
    if parts is None:
        return {"learning_rate": optimizer.learning_rate}
    return {f"learning_rate/{part.name}": part.learning_rate for part in parts}


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
