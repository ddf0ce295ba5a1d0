"""A session: the log directory, the data and the run of one `fit`."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

from keras_trainops.processes import Processes
from keras_trainops.session.run import Run
from keras_trainops.session.settings import Settings
from keras_trainops.session.state.data import DataPosition
from keras_trainops.session.storage.directory import LogDirectory

# Functions that begin the runs of models that `fit` is about to train, or is training.
_BEGINS: weakref.WeakKeyDictionary[Any, Callable[[], Run]] = weakref.WeakKeyDictionary()


class Session:
    """The session of one `fit`. Each part is made once, by the first call that needs it.

    Args:
        settings: The settings of the session.
        model: The model, which may not have its variables yet; None before there is one.
    """

    def __init__(self, settings: Settings, model: Any = None) -> None:
        self._settings, self._model = settings, model
        self._directory: LogDirectory | None = None
        self._data: DataPosition | None = None
        self._run: Run | None = None

    @property
    def step(self) -> int:
        """Number of steps trained by all runs on the directory; 0 before the run begins."""
        return 0 if self._run is None else self._run.step

    @property
    def is_over(self) -> bool:
        """If True, the log directory was opened and closed again."""
        return self._directory is not None and not self._directory.is_open

    @property
    def is_running(self) -> bool:
        """If True, the run has begun and the log directory is open."""
        return self._run is not None and not self.is_over

    def open(self) -> LogDirectory:
        """Return the log directory, and lock it first if this is the first call.

        Raises:
            RuntimeError: If another run uses the directory.
            OSError: If there are checkpoints and all of them are damaged.
        """
        if self._directory is None:
            self._directory = LogDirectory(self._settings, Processes(self._model))
        return self._directory

    def follow_data(self, iterator: Any) -> None:
        """Follow the data, so that the run can be resumed in the middle of an epoch.

        Args:
            iterator: Keras's iterator over the epochs, before anything is taken from it.
        """
        directory = self.open()
        saved = None if directory.checkpoint is None else directory.checkpoint.record.data
        if saved is not None:
            saved = saved.of_process(directory.processes)
        self._data = DataPosition(iterator, saved)

    def begin(self, get_model: Callable[[], Any], params: Mapping[str, Any]) -> Run:
        """Return the run, and restore the model first if this is the first call.

        Args:
            get_model: See `Run`.
            params: See `Run`.

        Raises:
            RestoreError: If the checkpoint is from another model; nothing was changed.
            ValueError: If the epoch of the checkpoint had more batches than it has now; nothing was
                changed.
        """
        if self._run is None:
            self._run = Run(self.open(), self._data, get_model, params)
        return self._run

    def close(self, error: BaseException | None = None) -> None:
        """Release everything, however the run ended.

        Args:
            error: The error that ended it, for the log.
        """
        if self._directory is not None:
            self._directory.close(error)


def announce(model: Any, begin: Callable[[], Run]) -> None:
    """Let callbacks that come earlier in the list find the session of a model.

    Args:
        model: The model.
        begin: Function that begins the run, unless it has begun, and returns it.
    """
    _BEGINS[model] = begin


def withdraw(model: Any) -> None:
    """Undo `announce`."""
    _BEGINS.pop(model, None)


def run_on(model: Any) -> Run | None:
    """Return the run that trains a model, with its state restored; None without a session."""
    begin = _BEGINS.get(model)
    return None if begin is None else begin()
