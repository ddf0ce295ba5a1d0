"""One run at a time on a log directory."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from keras_trainops.session.storage import forks

# The locks that this process holds.
_HELD: dict[Path, DirectoryLock] = {}
_MAX_HOLDER_BYTES = 2**16
_SIGHT_SECONDS = 5.0


class DirectoryLock:
    """A lock that the system releases when the process ends, however it ends.

    `flock` locks belong to the open file. POSIX record locks belong to the process and are lost
    when any descriptor of the file is closed, for example by whoever copies the directory. Forked
    processes share the open file and could keep the lock after the run was killed, so they close it
    at once (see `forks`).

    Args:
        path: The lock file.
        on_takeover: Function that must release this lock. It is called when another run of this
            process needs the lock and this run has ended without releasing it, as after a failed
            `fit`.
    """

    def __init__(self, path: Path, on_takeover: Callable[[], None]) -> None:
        self._path, self._on_takeover = path.resolve(), on_takeover
        self._file: int | None = None
        self._thread = threading.current_thread()

    def acquire(self) -> str:
        """Lock the directory.

        Returns:
            A word that `require_sight_of` recognises the locked directory by.

        Raises:
            RuntimeError: If another process or thread uses it; the message names the process.
        """
        self._take_over_from(_HELD.get(self._path))
        # Programs that this process starts do not inherit the descriptor.
        file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(file)
        except BlockingIOError as error:
            holder = _read_holder(file)
            os.close(file)
            raise RuntimeError(
                f"The log directory '{self._path.parent}' is in use by {holder}. Wait for it to "
                "end, or give this run its own log directory."
            ) from error
        except OSError as error:
            warnings.warn(
                f"The log directory '{self._path.parent}' cannot be locked ({error}): make sure "
                "that no other run uses it.",
                stacklevel=2,
            )
        self._file, self._thread = file, threading.current_thread()
        _HELD[self._path] = self
        forks.register(self._close_file)
        word = secrets.token_hex(8)
        _write_holder(file, word)
        return word

    def require_sight_of(self, word: str) -> None:
        """Check that another process has locked the directory that this one sees.

        Args:
            word: What `acquire` has returned there.

        Raises:
            OSError: If it is another directory.
        """
        began = time.monotonic()
        while _read_word(self._path) != word:
            if time.monotonic() - began > _SIGHT_SECONDS:  # network file systems take a while
                raise OSError(
                    f"the log directory '{self._path.parent}' is not the one that process 0 uses: "
                    "it must be on a file system that all processes share"
                )
            time.sleep(0.1)

    def _take_over_from(self, other: DirectoryLock | None) -> None:
        """Release the lock of a run of this process that ended without doing so."""
        if other is None or other._file is None:
            return
        if other._thread is not threading.current_thread() and other._thread.is_alive():
            raise RuntimeError(
                f"The log directory '{self._path.parent}' is in use by another thread of this "
                f"process ({os.getpid()})."
            )
        other._on_takeover()

    def require_held(self) -> None:
        """Check that the locked directory still exists at its path.

        Raises:
            FileNotFoundError: If it was deleted, moved or replaced.
            PermissionError: If this process was forked from the one that locked it.
        """
        if self._file is None:
            raise PermissionError(
                f"the log directory '{self._path.parent}' belongs to another process"
            )
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if os.path.samestat(os.stat(self._path), os.fstat(self._file)):
                return
        raise FileNotFoundError(
            f"the log directory '{self._path.parent}' was deleted, moved or replaced while the run "
            "trained"
        )

    def release(self) -> None:
        """Unlock the directory."""
        if self._file is not None:
            os.ftruncate(self._file, 0)
            self._close_file()

    def _close_file(self) -> None:
        """Close the file, which releases the lock unless another process has it open."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
            del _HELD[self._path]
            forks.unregister(self._close_file)


def _lock(file: int) -> None:
    try:
        import fcntl
    except ImportError:  # Windows has no such locks
        return
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _write_holder(file: int, word: str) -> None:
    command = " ".join([Path(sys.executable).name, *sys.argv])
    holder = {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": command[:1000],
        "run": word,
    }
    os.ftruncate(file, 0)
    os.lseek(file, 0, os.SEEK_SET)
    os.write(file, json.dumps(holder).encode("utf-8"))


def _read_word(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return json.loads(file.read(_MAX_HOLDER_BYTES))["run"]
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return None


def _read_holder(file: int) -> str:
    try:
        os.lseek(file, 0, os.SEEK_SET)
        held = json.loads(os.read(file, _MAX_HOLDER_BYTES))
        since = f"since {held['since']} ({held['command']})"
        return f"process {held['process']} on {held['host']} {since}"
    except (ValueError, TypeError, LookupError, RecursionError):  # it is just being written
        return "another process"
