"""What a session did, in one readable file."""

from __future__ import annotations

import time
from pathlib import Path


class SessionLog:
    """Lines with the time they were written at, appended over all runs on a directory.

    Args:
        path: The file.
        verbose: Whether lines are printed too.
    """

    def __init__(self, path: Path, verbose: int) -> None:
        self._path, self._verbose = path, verbose

    def say(self, message: str) -> None:
        """Writes a line, and prints it."""
        self.note(message)
        if self._verbose:
            print(f"TrainingSession: {message}", flush=True)

    def note(self, message: str) -> None:
        """Writes a line to the file only, as for what happens often."""
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}\n"
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError:  # a full disk: what fails for it says so itself
            return
