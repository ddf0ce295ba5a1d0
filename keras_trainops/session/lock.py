"""One run at a time on a log directory."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

# The locks of this process, which the system would give to it twice.
_HELD: dict[Path, DirectoryLock] = {}


class DirectoryLock:
    """A lock that the system releases when the process ends, however it ends.

    It is a POSIX record lock: processes that a run forks, such as data loaders, do not inherit it
    and so cannot keep it after the run was killed.

    Args:
        path: A file for it.
        succeeded: Called when another run of this process wants it, and this one is over but did
            not say so, as where a `fit` failed; it must release the lock.
    """

    def __init__(self, path: Path, succeeded: Callable[[], None]) -> None:
        self._path, self._succeeded = path.resolve(), succeeded
        self._file: IO[str] | None = None
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Takes the lock.

        Raises:
            RuntimeError: If another process has it; the message names that process.
        """
        try:
            import fcntl
        except ImportError:  # there are no such locks on this system
            return
        self._succeed(_HELD.get(self._path))
        file = self._path.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            with file:
                raise RuntimeError(
                    f"The log directory '{self._path.parent}' is in use by {_holder(file)}. Wait "
                    "for it to end, or give this run a log directory of its own."
                ) from error
        file.truncate(0)
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        command = " ".join([Path(sys.executable).name, *sys.argv])
        whose = {"process": os.getpid(), "host": socket.gethostname(), "since": started}
        file.write(json.dumps({**whose, "command": command}))
        file.flush()
        self._file, self._thread = file, threading.current_thread()
        _HELD[self._path] = self

    def _succeed(self, other: DirectoryLock | None) -> None:
        """Takes over from a run of this process that ended without giving its lock back."""
        if other is None or other._file is None:
            return
        thread = other._thread
        elsewhere = thread is not None and thread is not threading.current_thread()
        if thread is not None and elsewhere and thread.is_alive():
            raise RuntimeError(
                f"The log directory '{self._path.parent}' is in use by another thread of this "
                f"process ({os.getpid()})."
            )
        other._succeeded()

    def release(self) -> None:
        """Gives the lock back."""
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()
            self._file = None
            del _HELD[self._path]


def _holder(file: IO[str]) -> str:
    file.seek(0)
    try:
        held = json.loads(file.read())
    except ValueError:  # it is just being written
        return "another process"
    return f"process {held['process']} on {held['host']} since {held['since']} ({held['command']})"
