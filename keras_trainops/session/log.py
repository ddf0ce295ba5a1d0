"""The readable log of a session."""

from __future__ import annotations

import time
from pathlib import Path


class SessionLog:
    """Timestamped lines, appended over all runs on a directory.

    Args:
        path: The log file.
        verbose: 1 also prints what `report` logs; 0 prints nothing.
        is_silent: If True, nothing is logged or printed: another process does it.
    """

    def __init__(self, path: Path, verbose: int, *, is_silent: bool = False) -> None:
        self._path, self._verbose, self._is_silent = path, verbose, is_silent

    def report(self, message: str) -> None:
        """Log a line and print it."""
        self.write(message)
        if self._verbose and not self._is_silent:
            print(f"TrainingSession: {message}", flush=True)

    def write(self, message: str) -> None:
        """Log a line without printing it, for frequent events."""
        if self._is_silent:
            return
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}\n"
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError:  # a full disk: the save or summary that fails reports it
            return
