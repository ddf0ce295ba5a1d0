"""Saving the state of a run, with a short pause of training."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Container, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_trainops.backends import backend
from keras_trainops.processes import Processes
from keras_trainops.session.log import SessionLog
from keras_trainops.session.settings import Settings
from keras_trainops.session.state.record import Record
from keras_trainops.session.state.snapshot import HostCopy, gradient_sums_of, variables_of
from keras_trainops.session.storage import shards
from keras_trainops.session.storage.store import SavedStep, Store
from keras_trainops.session.storage.writer import BackgroundWriter


class Saver:
    """Save the state of a run from time to time.

    Training pauses while the state is copied to host memory; a thread writes the copy. If several
    processes train, all of them save at the same step: the first one writes what it has whole, and
    all write their parts of the rest.

    Args:
        settings: The settings of the session.
        log: The log of the session.
        require_directory: Function that raises an `OSError` if the run has lost its directory.
        processes: The processes of the run.
    """

    def __init__(
        self,
        settings: Settings,
        log: SessionLog,
        require_directory: Callable[[], None],
        processes: Processes,
    ) -> None:
        self._settings, self._log, self._processes = settings, log, processes
        self._require_directory = require_directory
        self._store = Store(settings.logdir / "checkpoints", settings.keep)
        self._writer, self._copy = BackgroundWriter(), HostCopy()
        self._last_step, self._last_time = 0, time.monotonic()

    def read(self) -> SavedStep | None:
        """Return the newest intact checkpoint, and remove incomplete ones.

        Warns of damaged checkpoints.

        Raises:
            OSError: If there are checkpoints and all of them are damaged.
        """
        processes, found = self._processes, None
        with processes.agreed("to read the newest checkpoint"):
            if processes.is_first:
                self._store.recover()
                found = self._store.newest(self._warn)
        step = processes.broadcast(None if found is None else found.record.step, "to resume")
        with processes.agreed("to read the newest checkpoint"):
            if not processes.is_first and step is not None:
                found = self._store.read(step)
        return found

    def start(self, step: int, variables: Mapping[str, keras.Variable]) -> None:
        """Start counting steps and seconds, and allocate memory for the copies.

        Args:
            step: The step at which the run begins.
            variables: `variables_of` the model.
        """
        self._last_step, self._last_time = step, time.monotonic()
        whole = _whole(variables)
        with self._processes.agreed("to begin the session"):
            if len(whole) < len(variables):
                shards.require_orbax()
        if self._processes.is_first:
            self._writer.start(lambda: self._copy.reserve(whole))

    def until_due(self, step: int) -> int | None:
        """Return the number of steps until it is time to save, None if steps do not count."""
        every = self._settings.save_steps
        return None if every is None else max(1, self._last_step + every - step)

    def is_due(self, step: int) -> bool:
        """Return True if it is time to save and the previous checkpoint is written."""
        if not self._is_time(step) or self._writer.busy:
            return False
        self._warn_of_error()
        return True

    def _is_time(self, step: int) -> bool:
        seconds, steps = self._settings.save_seconds, self._settings.save_steps
        if steps is not None and step - self._last_step >= steps:
            return True
        return seconds is not None and time.monotonic() - self._last_time >= seconds

    def save(
        self,
        model: Any,
        record: Record,
        callback_arrays: Mapping[str, np.ndarray],
        before_write: Callable[[], None],
    ) -> None:
        """Copy the state, and start writing it.

        Args:
            model: The model, synchronized with the training loop.
            record: The state of the run, apart from arrays. Its `variables` are filled in here.
            callback_arrays: The arrays of other callbacks.
            before_write: Function that writes files that must not be older than the checkpoint. If
                it raises an `OSError`, no checkpoint is written.
        """
        processes, variables = self._processes, variables_of(model)
        whole = _whole(variables)
        is_divided = len(whole) < len(variables)
        try:
            with processes.agreed("to begin a checkpoint"):
                self._writer.wait()
                self._warn_of_error()
                if is_divided and processes.is_first:
                    self._require_directory()
                    self._store.begin(record.step)
            began = time.monotonic()
            arrays = self._copy.take(whole, gradient_sums_of(model), processes)
            shards_writer = None
            if is_divided:  # all processes begin to write their parts
                directory = self._store.unfinished(record.step) / shards.DIRECTORY
                shards_writer = shards.ShardsWriter(directory, _divided(variables, whole))
        except OSError as error:
            self._give_up(record.step, error)
            return
        order = _order(variables, arrays)
        record = replace(record, variables=order, processes=processes.count)
        self._last_step, self._last_time = record.step, time.monotonic()
        pause = self._last_time - began

        def write() -> None:
            all_arrays = {**arrays, **callback_arrays}
            path = self._write(record, all_arrays, before_write, shards_writer)
            megabytes = sum(array.nbytes for array in arrays.values()) / 1e6
            self._log.write(
                f"saved step {record.step} to '{path}' ({megabytes:.1f} MB; training paused for "
                f"{pause:.3f} s, writing took {time.monotonic() - self._last_time:.3f} s)"
            )
            self._prune(record.step)

        if shards_writer is not None:
            self._writer.start(
                shards_writer.job(write if processes.is_first else shards_writer.wait)
            )
        elif processes.is_first:
            self._writer.start(write)

    def _give_up(self, step: int, error: OSError) -> None:
        """Report an error as one of the thread that writes."""
        self._last_step, self._last_time = step, time.monotonic()

        def fail() -> None:
            raise error

        self._writer.start(fail)

    def _write(
        self,
        record: Record,
        arrays: Mapping[str, np.ndarray],
        before_write: Callable[[], None],
        shards_writer: shards.ShardsWriter | None,
    ) -> Path:
        """Write a checkpoint, unless the run has lost its directory."""
        self._require_directory()
        try:
            before_write()
            wait = None if shards_writer is None else shards_writer.wait
            return self._store.write(record.step, arrays, record, wait)
        except OSError:
            self._require_directory()  # if it was lost meanwhile, that is the error to report
            raise

    def _prune(self, step: int) -> None:
        try:
            self._store.prune(step)
        except OSError as error:
            self._log.report(f"an old checkpoint could not be removed: {error}")

    def finish(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
            OSError: If it could not be written.
        """
        with self._processes.agreed("to finish the last checkpoint"):
            self._writer.wait()
            error = self._writer.take_error()
            if error is not None:
                raise OSError(
                    f"The final checkpoint, at step {self._last_step}, could not be written to "
                    f"'{self._store.directory}': {error} ({self._describe_newest()})."
                ) from error

    def close(self) -> str:
        """Wait until writing has ended, and describe the newest checkpoint for the log."""
        self._writer.wait()
        return self._describe_newest()

    def _describe_newest(self) -> str:
        newest = next(iter(self._store.paths()), None)
        return "there is no checkpoint" if newest is None else f"the last is '{newest}'"

    def _warn_of_error(self) -> None:
        error = self._writer.take_error()
        if error is not None:
            self._warn(
                f"The checkpoint at step {self._last_step} could not be written, but training "
                f"continues: {error} ({self._describe_newest()})."
            )

    def _warn(self, message: str) -> None:
        self._log.report(message)
        warnings.warn(message, stacklevel=2)


def _whole(variables: Mapping[str, keras.Variable]) -> dict[str, keras.Variable]:
    """Return the variables whose values this process has whole; the same on all processes."""
    return {key: v for key, v in variables.items() if backend().is_whole(v.value)}


def _divided(variables: Mapping[str, keras.Variable], whole: Container[str]) -> dict[str, Any]:
    """Return the values that no process has whole, by their place among all."""
    pairs = enumerate(variables.items())
    return {str(place): variable.value for place, (key, variable) in pairs if key not in whole}


def _order(variables: Mapping[str, Any], arrays: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the keys of all that is saved: the variables in their order, then parts of them."""
    return tuple(dict.fromkeys([*variables, *arrays]))
