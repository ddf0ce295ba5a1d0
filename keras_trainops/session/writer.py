"""Writing in the background, one thing at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable


class BackgroundWriter:
    """A thread that writes while training goes on.

    It is no daemon: a program that ends waits for it.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: OSError | None = None

    @property
    def busy(self) -> bool:
        """Whether it is still writing."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, work: Callable[[], object]) -> None:
        """Begins with `work`, after what it does now."""
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(work,), name="session writer")
        self._thread.start()

    def _run(self, work: Callable[[], object]) -> None:
        try:
            work()
        except OSError as error:
            self._error = error

    def wait(self) -> None:
        """Waits until it is done."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def take_error(self) -> OSError | None:
        """Why the last writing failed, told once; None where it did not."""
        error, self._error = self._error, None
        return error
