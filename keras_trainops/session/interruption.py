"""Interruption by SIGTERM, the signal of schedulers that reclaim a machine."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from keras_trainops.session.storage import forks


class SessionInterrupted(SystemExit):
    """Training received SIGTERM, wrote a checkpoint and stopped.

    It is a `SystemExit` with code 143 = 128 + SIGTERM: a program that does not catch it exits
    quietly with the status that schedulers expect, and `except Exception` does not swallow it.

    Attributes:
        step: The step of the checkpoint.

    Example:
        >>> import keras_trainops as kt
        >>> try:
        ...     raise kt.SessionInterrupted(120)
        ... except kt.SessionInterrupted as interruption:
        ...     print(interruption)
        interrupted by SIGTERM; saved a checkpoint at step 120
    """

    def __init__(self, step: int) -> None:
        super().__init__(128 + signal.SIGTERM)
        self.step = step

    def __str__(self) -> str:
        return f"interrupted by SIGTERM; saved a checkpoint at step {self.step}"


class Interruption:
    """Record a SIGTERM, for the training loop to act on.

    It listens in this process only: children that are forked meanwhile get the previous handler.

    Attributes:
        requested: If True, a SIGTERM has arrived.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous_handler: Any = None
        self._is_listening = False

    def listen(self) -> None:
        """Handle SIGTERM, if this is the main thread: Python allows it in no other."""
        if threading.current_thread() is threading.main_thread():
            self._previous_handler = signal.signal(signal.SIGTERM, self._record)
            self._is_listening = True
            forks.register(self.stop_listening)

    def _record(self, number: int, frame: FrameType | None) -> None:
        self.requested = True

    def stop_listening(self) -> None:
        """Restore the previous handler of SIGTERM, unless another one was installed since."""
        if self._is_listening:
            self._is_listening = False
            forks.unregister(self.stop_listening)
            if signal.getsignal(signal.SIGTERM) == self._record:
                signal.signal(signal.SIGTERM, self._previous_handler or signal.SIG_DFL)
