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
from keras_trainops.scalars import check_number, check_whole
from keras_trainops.session.run import Run, Settings, announce


class TrainingSession(CallRepr, keras.callbacks.Callback):
    """Keeps a run in a log directory: interrupted anywhere, it ends as if it never had been.

    The same program, run again, goes on where the last complete checkpoint stands: weights,
    optimizer with the state of transforms and updates, seeds, metrics of the running epoch, epoch
    and batch, the state of other callbacks. With data whose order can be repeated the result is bit
    for bit that of the uninterrupted run. A model with `TrainOpsMixin` goes on within an epoch; a
    plain `keras.Model` at its beginning, so that its checkpoints wait for the end of an epoch, and
    other callbacks there begin anew. See the page "Sessions" of the documentation.

    Checkpoints are written aside in the background, synced, renamed and, when read, verified. A
    `WarmStart` beside it is skipped when a run is resumed. A SIGTERM has one written and raises
    `SessionInterrupted`.

    Args:
        logdir: The directory: `checkpoints/`, event files for TensorBoard, and `session.log`. One
            run at a time may have it. A relative one is meant from where the program stands now.
        save_seconds: A checkpoint is written after so many seconds, or None.
        save_steps: The same after so many steps (batches), whichever comes first, or None. There
            is always one at the end.
        summary_steps: Loss, metrics, learning rate, steps per second and norms of a `Monitor` are
            written for TensorBoard every so many steps (needs tensorboardX), or None.
        keep: How many checkpoints are kept.
        stop_at_step: Training stops after so many steps of all runs together, or None.
        verbose: 1 prints what happens, apart from each checkpoint; 0 nothing. All of it stands in
            `session.log`.

    Attributes:
        step: The steps until now, of all runs on the directory.

    Raises:
        ValueError: If an argument does not fit, or there are two sessions; when training begins, if
            the epoch that is resumed has no such batch any more.
        RuntimeError: When training begins, if another run has the directory; it is named.
        RestoreError: When training begins, if the directory is of another model; nothing changed.
        OSError: If the directory cannot be written, or the final checkpoint; when training begins,
            if there are checkpoints and all are damaged.

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
            _directory(logdir),
            check_number("save_seconds", save_seconds, "> 0", lambda n: n > 0, optional=True),
            check_whole("save_steps", save_steps, 1, optional=True),
            check_whole("summary_steps", summary_steps, 1, optional=True),
            check_whole("keep", keep, 1),
            check_whole("stop_at_step", stop_at_step, 1, optional=True),
            verbose,
        )
        self._run: Run | None = None
        self._opening = _Opening(self)
        self._arranged = False

    @property
    def step(self) -> int:
        """The steps until now, of all runs on the directory."""
        return 0 if self._run is None else self._run.step

    @contextmanager
    def accompany(self, model: keras.Model, callbacks: list[Any]) -> Iterator[list[Any]]:
        """Used by a model with the mixin: surrounds its `fit`.

        Others stand between the session's two halves, so that they find the state put back when
        training begins, and have all seen the end of an epoch when theirs is saved.
        """
        others = [c for c in callbacks if c is not self]
        if not any(isinstance(c, keras.callbacks.History) for c in others):
            others.append(keras.callbacks.History())
        run = self._new_run()
        self._arranged, self._others = True, others
        try:
            run.open()
            yield [self._opening, *others, self]
        except BaseException as error:
            self._close(run, error)
            raise
        finally:
            self._close(run)
            self._arranged = False

    def see_data(self, iterator: Any) -> None:
        """Used by a model with the mixin: follows its data."""
        assert self._run is not None
        self._run.see_data(iterator)

    def _new_run(self) -> Run:
        self._run = Run(self._settings)
        return self._run

    def _close(self, run: Run, error: BaseException | None = None) -> None:
        run.close(error)
        if self._model is not None:
            announce(self._model, None)

    def begin(self) -> Run:
        """Begins, if it has not begun; others that come earlier in the list may want it to."""
        run = self._run
        if run is None or not run.is_open:
            run = self._new_run()
            run.open()
        try:
            run.begin(lambda: self.model, self.params)
        except BaseException as error:
            self._close(run, error)
            raise
        return run

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        announce(model, self.begin)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.begin().start_neighbours(self._others if self._arranged else [])

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        assert self._run is not None
        self._run.begin_epoch(epoch)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        # At a batch's *end* Keras would wait for the device to bring the logs, in every step.
        if not self._arranged:
            self._opening.on_train_batch_begin(batch)

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        if not self._arranged:
            self._opening.on_test_begin()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        assert self._run is not None
        if not self._arranged:
            self._opening.on_epoch_end(epoch)
        self._run.end_epoch(epoch, logs or {})

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        assert self._run is not None
        self._run.end()
        if not self._arranged:
            self._close(self._run)


def _directory(logdir: str | os.PathLike[str]) -> Path:
    """The directory, wherever the program goes later.

    Raises:
        ValueError: If it is no local one.
    """
    name = os.fspath(logdir)
    if re.match(r"[A-Za-z][\w+.-]+://", name):
        raise ValueError(f"`logdir` must be a directory of this machine. Received: {logdir=}")
    return Path(name).expanduser().absolute()


class _Opening(keras.callbacks.Callback):
    """The half of a session that comes before all other callbacks."""

    def __init__(self, session: TrainingSession) -> None:
        super().__init__()
        self._session = session

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._session.begin()

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        run = self._session._run
        assert run is not None
        run.before_batch(batch)

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        run = self._session._run
        assert run is not None
        run.after_batches()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        run = self._session._run
        assert run is not None
        run.after_batches()
