"""Tensors that lie in a file as plain bytes, and files that may change while they are read."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

ALIGNMENT = 64  # bytes, as the widest vector instructions want it


class Extent(NamedTuple):
    """Where a tensor's elements lie, one after the other in C order.

    Attributes:
        file: The file, open for reading without a buffer.
        offset: Where the first element begins, in bytes.
    """

    file: io.FileIO
    offset: int

    def read_into(self, array: np.ndarray, start: int = 0) -> None:
        """Fills a contiguous `array` with elements from element number `start` on.

        It reads and does not map: a file that is cut short meanwhile is an error here, and not the
        end of the process.

        Raises:
            EOFError: If the file ends before the array is full.
        """
        view = array.reshape(-1).view(np.uint8).data  # ml_dtypes have no buffers of their own
        self.file.seek(self.offset + start * array.itemsize)
        while view:
            count = self.file.readinto(view)
            if not count:
                raise EOFError(f"the file ends {len(view)} bytes too early")
            view = view[count:]


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array to be filled, aligned as backends want it to take it over without a copy."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


class Fingerprint:
    """What files are at one moment, to be told later whether somebody has written to them."""

    def __init__(self, paths: Sequence[str] = ()) -> None:
        self._states = {path: _state(path) for path in paths}

    def changed(self) -> list[str]:
        """The paths at which another file, or other content, is now."""
        return [path for path, state in self._states.items() if _state(path) != state]


def _state(path: str) -> tuple[int, ...] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
