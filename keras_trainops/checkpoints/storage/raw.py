"""Tensors that lie in a file as plain bytes, and files that may change while they are read."""

from __future__ import annotations

import functools
import io
import math
import os
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

ALIGNMENT = 64  # bytes, as the widest vector instructions want it

_SEEKING = threading.Lock()


class Extent(NamedTuple):
    """Where a tensor's elements lie, one after the other in C order.

    Attributes:
        file: The file, open for reading without a buffer.
        offset: Where the first element begins, in bytes.
        checksum: A masked CRC-32C of all its bytes, as TensorFlow stores it; None if there is none.
    """

    file: io.FileIO
    offset: int
    checksum: int | None = None

    def read_into(self, array: np.ndarray, start: int = 0) -> None:
        """Fills a contiguous `array` with elements from element number `start` on.

        It reads and does not map: a file that is cut short meanwhile is an error here, and not the
        end of the process.

        Raises:
            EOFError: If the file ends before the array is full.
        """
        view = array.reshape(-1).view(np.uint8).data  # ml_dtypes have no buffers of their own
        place = self.offset + start * array.itemsize
        while view:
            count = _read_at(self.file, view, place)
            if not count:
                raise EOFError(f"the file ends {len(view)} bytes too early")
            view, place = view[count:], place + count


def _read_at(file: io.FileIO, view: memoryview, place: int) -> int:
    """Reads without moving a position that threads would have in common."""
    if hasattr(os, "preadv"):
        return os.preadv(file.fileno(), [view], place)
    with _SEEKING:
        file.seek(place)
        return file.readinto(view) or 0


@functools.cache
def crc32c() -> Callable[[int, np.ndarray], int] | None:
    """What extends a CRC-32C by an array's bytes, at the speed of memory; None if nothing does."""
    try:
        import google_crc32c
    except ImportError:
        return None
    # Its substitute in Python takes minutes for what its C code does in a second.
    return google_crc32c.extend if google_crc32c.implementation == "c" else None


def can_check() -> bool:
    """Whether checksums can be compared here, and not by TensorFlow's reader."""
    return crc32c() is not None


class Checksum:
    """The checksum of bytes that come in pieces, beside the one that they should have."""

    def __init__(self, expected: int | None) -> None:
        self._expected, self._found = expected, 0
        self._extend = None if expected is None else crc32c()

    def add(self, piece: np.ndarray) -> None:
        """Takes the next piece."""
        if self._extend is not None:
            self._found = self._extend(self._found, piece.view(np.uint8))

    def require(self) -> None:
        """Refuses the bytes where the two differ.

        Raises:
            ValueError: If they do.
        """
        # TensorFlow masks it: a CRC over data that hold their own CRC says little.
        masked = ((self._found >> 15 | self._found << 17) + 0xA282EAD8) & 0xFFFFFFFF
        if self._extend is not None and masked != self._expected:
            raise ValueError("its checksum does not match its values: the file is damaged")


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
