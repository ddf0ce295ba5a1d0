"""Output shared by the commands."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

FILE_HELP = "a file, a directory, or the prefix of a TensorFlow checkpoint"


class RefusedError(Exception):
    """The command refuses or fails to find something; exit with code 1."""


def print_json(document: Any) -> None:
    """Print a JSON document in ASCII, which any encoding supports; NaN and infinity become null."""
    print(json.dumps(_finite(document), indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    """Replace NaN and infinite numbers by None, as JSON does not have them."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def size_text(nbytes: int) -> str:
    """Format a size in decimal units.

    Args:
        nbytes: The size in bytes.

    Example:
        >>> size_text(512), size_text(48_300), size_text(1_080_000_000)
        ('512 B', '48.3 kB', '1.08 GB')
    """
    if nbytes < 1000:
        return f"{nbytes} B"
    size, units = float(nbytes), iter(("kB", "MB", "GB", "TB", "PB"))
    unit = ""
    while size >= 999.5:
        size, unit = size / 1000, next(units)
    return f"{size:.3g} {unit}"


def print_columns(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> None:
    """Print rows as aligned columns.

    Args:
        rows: The cells; all rows have the same number.
        right: Indices of the columns to align on the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


@contextlib.contextmanager
def progress_bar(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """Yield a function to report progress to; show a progress bar if stderr is a terminal.

    Args:
        total: Total number of bytes.
        what: The label of the bar.

    Yields:
        A function to call with the number of bytes processed since the last call.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda nbytes: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda nbytes: progress.advance(task, nbytes)
