"""Write files atomically: they are complete or absent."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


class UnwritableError(Exception):
    """A format cannot store a tensor because of its dtype or name; nothing was written."""


@contextlib.contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, and rename it to `target` on success.

    The path ends like `target`, as some libraries look at the suffix.

    Args:
        target: Path of the new file.
    """
    aside = target.with_name(f".{os.getpid()}-{target.name}")
    try:
        yield aside
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)
