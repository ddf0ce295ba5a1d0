"""A progress bar for long restores."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

import keras

from keras_trainops.restoring.planning.assignment import Assignment, variable_bytes

PATIENCE = 2.0  # seconds before the bar appears
UNIT = 1 << 20  # bytes


@contextlib.contextmanager
def progress_bar(
    assignments: Sequence[Assignment], verbose: int
) -> Iterator[Callable[[int], None]]:
    """Yield a function to call with the number of bytes processed; it shows a bar after a while.

    Args:
        assignments: The assignments. Each is processed twice: checked and assigned.
        verbose: 0 to show no bar.
    """
    total = 2 * sum(variable_bytes(a.variable) for a in assignments)
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
