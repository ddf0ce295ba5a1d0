"""Files that are complete, or not there at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


class UnwritableError(Exception):
    """A tensor that a format cannot hold, for its dtype or its name; nothing was written."""


@contextlib.contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """Gives a path beside `target` to write to; only what was written whole takes its name.

    The path ends as `target` does: some libraries look at that.
    """
    aside = target.with_name(f".{os.getpid()}-{target.name}")
    try:
        yield aside
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)
