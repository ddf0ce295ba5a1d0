"""When the state of a run is saved, and how little that holds training up."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_trainops.session.log import SessionLog
from keras_trainops.session.record import Record
from keras_trainops.session.snapshot import HostCopy, gradient_sums_of, variables_of
from keras_trainops.session.store import SavedStep, Store
from keras_trainops.session.writer import BackgroundWriter


class Saver:
    """Saves the state of a run from time to time.

    Training waits while the state is copied in the host's memory; a thread writes the copy.

    Args:
        directory: Where the checkpoints are.
        keep: How many are kept.
        seconds: One is due after so long, or None.
        steps: One is due after so many steps, or None.
        log: Told of each.
        require_directory: Raises an `OSError` where the run has its directory no more.
    """

    def __init__(
        self,
        directory: Path,
        keep: int,
        seconds: float | None,
        steps: int | None,
        log: SessionLog,
        require_directory: Callable[[], None],
    ) -> None:
        self._store = Store(directory, keep)
        self._seconds, self._steps, self._log = seconds, steps, log
        self._require_directory = require_directory
        self._writer, self._copy = BackgroundWriter(), HostCopy()
        self._last_step, self._last_time = 0, time.monotonic()

    def read(self) -> SavedStep | None:
        """The newest checkpoint that is whole; what is not is told, and half ones are removed.

        Raises:
            OSError: If there are some and all of them are damaged.
        """
        self._store.recover()
        return self._store.newest(self._warn)

    def start(self, step: int, variables: Mapping[str, keras.Variable]) -> None:
        """Begins to count, and gets the memory for copies."""
        self._last_step, self._last_time = step, time.monotonic()
        self._writer.start(lambda: self._copy.reserve(variables))

    def is_due(self, step: int) -> bool:
        """Whether it is time for the next, and the last one is written."""
        by_steps = self._steps is not None and step - self._last_step >= self._steps
        due = by_steps or (
            self._seconds is not None and time.monotonic() - self._last_time >= self._seconds
        )
        if not due or self._writer.busy:
            return False
        self._tell_error()
        return True

    def save(
        self,
        model: Any,
        record: Callable[[Sequence[str]], Record],
        more: Mapping[str, np.ndarray],
        prepare: Callable[[], None],
    ) -> None:
        """Takes the state, and has it written.

        Args:
            model: The model, with its state brought up to date.
            record: Says where the run stands, given the keys of the variables.
            more: The arrays of other callbacks.
            prepare: Called before it is written: what must not be older than the checkpoint.
                Where it raises an `OSError` nothing is written.
        """
        self._writer.wait()
        self._tell_error()
        began = time.monotonic()
        variables = variables_of(model)
        arrays = self._copy.take(variables, gradient_sums_of(model))
        stands = record(list(arrays))
        self._last_step, self._last_time = stands.step, time.monotonic()
        held_up = self._last_time - began

        def write() -> None:
            self._require_directory()
            try:
                prepare()
                path = self._store.write(stands.step, {**arrays, **more}, stands)
            except OSError:
                self._require_directory()  # one that went meanwhile is the reason to name
                raise
            size = sum(array.nbytes for array in arrays.values()) / 1e6
            self._log.note(
                f"saved step {stands.step} to '{path}' ({size:.1f} MB; training was held up for "
                f"{held_up:.3f} s, writing took {time.monotonic() - self._last_time:.3f} s)"
            )
            try:
                self._store.prune(stands.step)
            except OSError as error:
                self._log.say(f"an old checkpoint could not be removed: {error}")

        self._writer.start(write)

    def finish(self) -> None:
        """Waits until the last one is written.

        Raises:
            OSError: If it could not be.
        """
        self._writer.wait()
        error = self._writer.take_error()
        if error is not None:
            raise OSError(
                f"The final checkpoint, at step {self._last_step}, could not be written to "
                f"'{self._store.directory}': {error} ({self._left()})."
            ) from error

    def close(self) -> str:
        """Waits for the writing; says what there is."""
        self._writer.wait()
        return self._left()

    def _left(self) -> str:
        newest = next(iter(self._store.paths()), None)
        return "there is no checkpoint" if newest is None else f"the last is '{newest}'"

    def _tell_error(self) -> None:
        error = self._writer.take_error()
        if error is not None:
            self._warn(
                f"The checkpoint at step {self._last_step} could not be written, and training goes "
                f"on: {error} ({self._left()})."
            )

    def _warn(self, message: str) -> None:
        self._log.say(message)
        warnings.warn(message, stacklevel=2)
