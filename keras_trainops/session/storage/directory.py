"""The log directory of a session, while a run uses it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from keras_trainops.processes import Processes
from keras_trainops.session.log import SessionLog
from keras_trainops.session.settings import Settings
from keras_trainops.session.storage import forks
from keras_trainops.session.storage.lock import DirectoryLock
from keras_trainops.session.storage.saver import Saver


class LogDirectory:
    """A log directory that this run has locked, with the newest checkpoint in it.

    If several processes train, the first one locks the directory and writes to it.

    Args:
        settings: The settings of the session.
        processes: The processes of the run.

    Attributes:
        settings: The settings of the session.
        processes: The processes of the run.
        log: The log of the session.
        saver: Writes checkpoints.
        checkpoint: The newest intact checkpoint. None if there is none, and once
            `forget_checkpoint` was called.
        is_open: If True, the directory has not been closed yet, and belongs to this process.

    Raises:
        RuntimeError: If another run uses the directory.
        OSError: If there are checkpoints and all of them are damaged, or not all processes see
            the same directory.
    """

    def __init__(self, settings: Settings, processes: Processes) -> None:
        self.settings, self.processes = settings, processes
        self.log = SessionLog(
            settings.logdir / "session.log", settings.verbose, is_silent=not processes.is_first
        )
        self._lock = DirectoryLock(settings.logdir / "session.lock", self.close)
        self.saver = Saver(settings, self.log, self._lock.require_held, processes)
        self._on_close = ExitStack()
        word, self.is_open = "", True
        forks.register(self._disown)
        try:
            with processes.agreed("to lock the log directory"):
                if processes.is_first:
                    settings.logdir.mkdir(parents=True, exist_ok=True)
                    word = self._lock.acquire()
            _require_same(settings, processes)
            word = processes.broadcast(word, "to find the log directory")
            with processes.agreed("to find the log directory"):
                if not processes.is_first:
                    self._lock.require_sight_of(word)
            self.checkpoint = self.saver.read()
        except BaseException as error:
            self.close(error)
            raise

    def forget_checkpoint(self) -> None:
        """Free the memory of the checkpoint."""
        self.checkpoint = None

    def on_close(self, function: Callable[[], object]) -> None:
        """Call `function` when the directory is closed, and all checkpoints are written."""
        self._on_close.callback(function)

    def close(self, error: BaseException | None = None) -> None:
        """Unlock the directory; does nothing if it is closed.

        Args:
            error: The error that ended the run, for the log.
        """
        if not self.is_open:
            return
        self._disown()
        newest = self.saver.close()
        self._on_close.close()
        if error is not None:
            self.log.report(f"stopped because of {type(error).__name__}: {error} ({newest})")
        self._lock.release()

    def _disown(self) -> None:
        """Do not use the directory any more, as after a fork."""
        self.is_open = False
        forks.unregister(self._disown)


def _require_same(settings: Settings, processes: Processes) -> None:
    """Check the settings that decide when processes talk to each other."""
    facts = {
        "`stop_at_step`": settings.stop_at_step,
        "`summary_steps`": settings.summary_steps,
    }
    advice = "Give the sessions of all processes the same arguments."
    processes.require_same(facts, "to compare the settings of the session", advice)
