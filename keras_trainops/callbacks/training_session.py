"""The training session as a callback."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras

from keras_trainops.representation import CallRepr
from keras_trainops.scalars import check_positive, check_whole
from keras_trainops.session.run import Run
from keras_trainops.session.session import Session, announce, withdraw
from keras_trainops.session.settings import Settings


class TrainingSession(CallRepr, keras.callbacks.Callback):
    """Save training to a log directory and resume it as if it had never been interrupted.

    Run the same program again and it continues from the last complete checkpoint: weights, the
    optimizer with the state of transforms and updates, seeds, metrics of the current epoch, epoch
    and batch, and the state of other callbacks. If the order of the data is repeatable, the result
    is bit for bit that of an uninterrupted run. A model with `TrainOpsMixin` resumes within an
    epoch. A plain `keras.Model` resumes at the beginning of one: its checkpoints wait for the end
    of an epoch, and do not include the state of other callbacks. See the page "Sessions" of the
    documentation.

    Checkpoints are written in the background under a temporary name, synced, renamed, and verified
    when they are read. A `WarmStart` in the same list is skipped in a resumed run. SIGTERM saves a
    checkpoint and raises `SessionInterrupted`.

    Args:
        logdir: Directory for `checkpoints/`, event files for TensorBoard, and `session.log`. Only
            one run at a time can use it. A relative path is resolved now, not when training begins.
        save_seconds: Number of seconds between checkpoints, or None.
        save_steps: Number of steps (batches) between checkpoints, or None. A checkpoint is saved
            when either limit is reached, and at the end of training.
        summary_steps: Number of steps between summaries for TensorBoard, or None: loss, metrics,
            learning rate, steps per second and norms of each `Monitor`. Needs tensorboardX.
        keep: Number of checkpoints to keep.
        stop_at_step: Step after which training stops, counted over all runs on the directory, or
            None.
        verbose: 1 prints all events except checkpoints; 0 prints nothing. `session.log` contains
            all of them.

    Attributes:
        step: Number of steps trained by all runs on the directory.

    Raises:
        ValueError: If an argument is invalid, or there are two sessions; when training begins, if
            the resumed epoch now has fewer batches than were already trained.
        RuntimeError: When training begins, if another run uses the directory; the message names it.
        RestoreError: When training begins, if the directory belongs to another model; nothing was
            changed.
        OSError: If the directory or the final checkpoint cannot be written; when training begins,
            if there are checkpoints and all of them are damaged.

    Example:
        >>> import keras_trainops as kt
        >>> session = kt.TrainingSession("logs/run1", save_seconds=300, stop_at_step=100_000)

    References: `tf.contrib.training.train`, `tf.train.MonitoredTrainingSession`.
    """

    def __init__(
        self,
        logdir: str | os.PathLike[str],
        save_seconds: float | None = 600,
        save_steps: int | None = None,
        summary_steps: int | None = 100,
        keep: int = 5,
        stop_at_step: int | None = None,
        *,
        verbose: int = 1,
    ) -> None:
        super().__init__()
        if not isinstance(logdir, (str, os.PathLike)) or not os.fspath(logdir):
            raise ValueError(
                f"`logdir` must be the path of a directory. Received: logdir={logdir!r}"
            )
        if verbose not in (0, 1):
            raise ValueError(f"`verbose` must be 0 or 1. Received: {verbose=}")
        self._settings = Settings(
            _absolute(logdir),
            check_positive("save_seconds", save_seconds, optional=True),
            check_whole("save_steps", save_steps, 1, optional=True),
            check_whole("summary_steps", summary_steps, 1, optional=True),
            check_whole("keep", keep, 1),
            check_whole("stop_at_step", stop_at_step, 1, optional=True),
            verbose,
        )
        self._session = Session(self._settings)
        self._first_half = _FirstHalf(self)
        self._is_wrapped = False
        self._announced_to: Any = None
        self._others: list[Any] = []

    @property
    def step(self) -> int:
        """Number of steps trained by all runs on the directory."""
        return self._session.step

    @contextmanager
    def wrap_fit(self, model: Any, callbacks: list[Any]) -> Iterator[list[Any]]:
        """Surround the `fit` of a model with the mixin.

        The other callbacks come between two halves of the session. So they find the state restored
        when training begins, and the session saves their state once all have seen the end of an
        epoch.

        Args:
            model: The model that `fit` trains.
            callbacks: The callbacks that `fit` was given.

        Returns:
            A context manager that returns the callbacks for `fit` to use.
        """
        self._others = [c for c in callbacks if c is not self]
        if not any(isinstance(c, keras.callbacks.History) for c in self._others):
            self._others.append(keras.callbacks.History())
        self._session = Session(self._settings, model)
        self._is_wrapped = True
        try:
            self._session.open()
            yield [self._first_half, *self._others, self]
        except BaseException as error:
            self._close(error)
            raise
        finally:
            self._close()
            self._is_wrapped, self._others = False, []

    def follow_data(self, iterator: Any) -> None:
        """Follow the data of a model with the mixin.

        Args:
            iterator: Keras's iterator over the epochs.
        """
        self._session.follow_data(iterator)

    def _close(self, error: BaseException | None = None) -> None:
        self._session.close(error)
        if self._announced_to is not None:
            withdraw(self._announced_to)

    def begin(self) -> Run:
        """Return the run; begin it first if no earlier callback in the list has done so."""
        if self._session.is_over:
            self._session = Session(self._settings, self.model)
        try:
            return self._run()
        except BaseException as error:
            self._close(error)
            raise

    def _run(self) -> Run:
        return self._session.begin(lambda: self.model, self.params)

    def set_model(self, model: keras.Model) -> None:
        if not self._is_wrapped:
            self._close()  # in case an earlier `fit` failed without closing it
            if not self._session.is_over:
                self._session = Session(self._settings, model)
        super().set_model(model)
        self._announced_to = model
        announce(model, self.begin)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.begin().track_callbacks(self._others)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._run().begin_epoch(epoch)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        # Not at the end of a batch: Keras would wait for the device to get the logs in every step.
        if not self._is_wrapped:
            self._run().before_batch(batch)

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        if not self._is_wrapped and self._session.is_running:  # else `evaluate` outside `fit`
            self._run().after_batches()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if not self._is_wrapped:
            self._run().after_batches()
        self._run().end_epoch(epoch, logs or {})

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._run().end()
        if not self._is_wrapped:
            self._close()


def _absolute(logdir: str | os.PathLike[str]) -> Path:
    """Return the absolute path, which does not depend on a later working directory.

    Raises:
        ValueError: If it is a URL.
    """
    name = os.fspath(logdir)
    if re.match(r"[A-Za-z][\w+.-]+://", name):
        raise ValueError(f"`logdir` must be a directory on this machine. Received: {logdir=}")
    return Path(name).expanduser().absolute()


class _FirstHalf(keras.callbacks.Callback):
    """The half of a session that comes before all other callbacks."""

    def __init__(self, session: TrainingSession) -> None:
        super().__init__()
        self._session = session

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._session.begin()

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._session._run().before_batch(batch)

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._session._run().after_batches()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._session._run().after_batches()
