"""The readable log of a session."""

from __future__ import annotations

import time
from pathlib import Path


class SessionLog:
    """Timestamped lines, appended over all runs on a directory.

    Args:
        path: The log file.
        verbose: 1 also prints what `report` logs; 0 prints nothing.
    """

    def __init__(self, path: Path, verbose: int) -> None:
        self._path, self._verbose = path, verbose

    def report(self, message: str) -> None:
        """Log a line and print it."""
        self.write(message)
        if self._verbose:
            print(f"TrainingSession: {message}", flush=True)

    def write(self, message: str) -> None:
        """Log a line without printing it, for frequent events."""
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}\n"
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError:  # a full disk: the save or summary that fails reports it
            return
