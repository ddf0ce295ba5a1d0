"""A progress bar that appears if something takes long."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import keras

PATIENCE = 2.0  # seconds before the bar appears
UNIT = 1 << 20  # bytes


@contextlib.contextmanager
def progress_bar(total: int, verbose: int) -> Iterator[Callable[[int], None]]:
    """Yield a function to call with the number of bytes processed; it shows a bar after a while.

    Args:
        total: The number of bytes in all.
        verbose: 0 to show no bar.
    """
    bar: keras.utils.Progbar | None = None
    started, done = time.perf_counter(), 0

    def advance(nbytes: int) -> None:
        nonlocal bar, done
        done += nbytes
        if bar is None and verbose and time.perf_counter() - started > PATIENCE:
            bar = keras.utils.Progbar(total // UNIT, unit_name="MB")
        if bar is not None:
            bar.update(done // UNIT)

    yield advance
