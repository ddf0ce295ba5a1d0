"""What commands print."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

FILE_HELP = "a file, a directory, or the prefix of a TensorFlow checkpoint"


class RefusedError(Exception):
    """The answer of a command is no: exit code 1."""


def print_json(document: Any) -> None:
    """Prints one document, in ASCII, which any encoding has; null is for what is not finite."""
    print(json.dumps(_finite(document), indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    """The same with None for numbers that are NaN or infinite: JSON has none of them."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def size_text(nbytes: int) -> str:
    """A size for people, in decimal units.

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
    """Prints rows as aligned columns.

    Args:
        rows: The cells, as many in each row.
        right: The numbers of the columns that are aligned on the right.
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
    """Gives a function to be told of bytes that were done; a terminal shows how many.

    Args:
        total: How many there are.
        what: What is done with them.
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
