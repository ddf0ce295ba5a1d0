"""One run at a time on a log directory."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from keras_trainops.session import forks

# The locks of this process.
_HELD: dict[Path, DirectoryLock] = {}
_MOST = 2**16  # bytes that the holder's words may have


class DirectoryLock:
    """A lock that the system releases when the process ends, however it ends.

    It belongs to the open file (`flock`), not to the process, as a POSIX record lock does: that
    is gone when any descriptor of the file is closed, so by whoever copies the directory. Processes
    that are forked share the open file. They close it at once (see `forks`), as they could keep
    the lock after the run was killed.

    Args:
        path: A file for it.
        succeeded: Called when another run of this process wants it, and this one is over but did
            not say so, as where a `fit` failed; it must release the lock.
    """

    def __init__(self, path: Path, succeeded: Callable[[], None]) -> None:
        self._path, self._succeeded = path.resolve(), succeeded
        self._file: int | None = None
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Takes the lock.

        Raises:
            RuntimeError: If another process has it; the message names that process.
        """
        self._succeed(_HELD.get(self._path))
        # A descriptor of Python's is closed in programs that are started.
        file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(file)
        except BlockingIOError as error:
            holder = _holder(file)
            os.close(file)
            raise RuntimeError(
                f"The log directory '{self._path.parent}' is in use by {holder}. Wait for it to "
                "end, or give this run a log directory of its own."
            ) from error
        except OSError as error:
            warnings.warn(
                f"The log directory '{self._path.parent}' cannot be locked ({error}): see to it "
                "that no other run uses it.",
                stacklevel=2,
            )
        self._file, self._thread = file, threading.current_thread()
        _HELD[self._path] = self
        forks.let_go_in_children(self._let_go)
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        command = " ".join([Path(sys.executable).name, *sys.argv])
        whose = {"process": os.getpid(), "host": socket.gethostname(), "since": started}
        os.ftruncate(file, 0)
        os.lseek(file, 0, os.SEEK_SET)
        os.write(file, json.dumps({**whose, "command": command[:1000]}).encode("utf-8"))

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

    def require_held(self) -> None:
        """Raises if the directory is not the one that was locked any more.

        Raises:
            FileNotFoundError: If it was deleted, moved, or replaced by another.
            PermissionError: If this process was forked from the one that locked it.
        """
        if self._file is None:
            raise PermissionError(f"the log directory '{self._path.parent}' is of another process")
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if os.path.samestat(os.stat(self._path), os.fstat(self._file)):
                return
        raise FileNotFoundError(
            f"the log directory '{self._path.parent}' was deleted, moved or replaced while the run "
            "trained"
        )

    def release(self) -> None:
        """Gives the lock back."""
        if self._file is not None:
            os.ftruncate(self._file, 0)
            self._let_go()

    def _let_go(self) -> None:
        """Closes the file: that releases the lock, unless another process has it open."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
            del _HELD[self._path]
            forks.forget(self._let_go)


def _lock(file: int) -> None:
    try:
        import fcntl
    except ImportError:  # there are no such locks on this system
        return
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _holder(file: int) -> str:
    try:
        os.lseek(file, 0, os.SEEK_SET)
        held = json.loads(os.read(file, _MOST))
        since = f"since {held['since']} ({held['command']})"
        return f"process {held['process']} on {held['host']} {since}"
    except (ValueError, TypeError, LookupError, RecursionError):  # it is just being written
        return "another process"
