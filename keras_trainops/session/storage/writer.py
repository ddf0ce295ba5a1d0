"""Background writing, one job at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable


class BackgroundWriter:
    """A thread that writes while training continues.

    The thread is not a daemon, so the interpreter waits for it at exit.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: OSError | None = None

    @property
    def busy(self) -> bool:
        """If True, a job is still running."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, job: Callable[[], object]) -> None:
        """Start `job`, after the previous one has finished."""
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(job,), name="session writer")
        self._thread.start()

    def _run(self, job: Callable[[], object]) -> None:
        try:
            job()
        except OSError as error:
            self._error = error

    def wait(self) -> None:
        """Wait until the current job has finished."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def take_error(self) -> OSError | None:
        """Return the error of a failed job and clear it; None if there was none."""
        error, self._error = self._error, None
        return error
