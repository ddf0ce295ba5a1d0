"""Being told to stop: SIGTERM, as a scheduler sends it before it takes a machine away."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from keras_trainops.session import forks


class SessionInterrupted(SystemExit):
    """Training was told to stop (SIGTERM), and stopped after a checkpoint was written.

    It is a `SystemExit` with the code 143 = 128 + SIGTERM: a program that does not catch it ends
    quietly with the status that schedulers expect, and `except Exception` does not swallow it.

    Attributes:
        step: The step that the checkpoint stands at.

    Example:
        >>> import keras_trainops as kt
        >>> try:
        ...     raise kt.SessionInterrupted(120)
        ... except kt.SessionInterrupted as interruption:
        ...     print(interruption)
        interrupted by SIGTERM; the checkpoint stands at step 120
    """

    def __init__(self, step: int) -> None:
        super().__init__(128 + signal.SIGTERM)
        self.step = step

    def __str__(self) -> str:
        return f"interrupted by SIGTERM; the checkpoint stands at step {self.step}"


class Interruption:
    """Notes a SIGTERM while it listens; what to do about it is up to the training loop.

    It listens in this process only: those forked meanwhile have the handler that was there before.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: Any = None
        self._listens = False

    def listen(self) -> None:
        """Takes SIGTERM over, where that is possible: in the main thread."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
            self._listens = True
            forks.let_go_in_children(self.stop_listening)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True

    def stop_listening(self) -> None:
        """Gives SIGTERM back to whoever had it."""
        if self._listens:
            self._listens = False
            forks.forget(self.stop_listening)
            if signal.getsignal(signal.SIGTERM) == self._note:  # nobody took it over since
                signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)
