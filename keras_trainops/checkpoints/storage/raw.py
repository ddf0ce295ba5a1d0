"""Read tensors stored as plain bytes, and detect changes of files while they are read."""

from __future__ import annotations

import functools
import io
import math
import os
import threading
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

ALIGNMENT = 64  # bytes, for the widest vector instructions

_SEEKING = threading.Lock()


class Checksum(NamedTuple):
    """The expected checksum of a tensor, and how to compute it.

    Attributes:
        expected: The sum.
        extend: Extends a sum by bytes.
        before: The sum of bytes before the first element that count, too.
    """

    expected: int
    extend: Callable[[int, np.ndarray], int]
    before: int = 0

    @classmethod
    def of_zip_member(cls, expected: int, header: bytes) -> Checksum:
        """Return the checksum of an array in a zip archive, after its header."""
        return cls(expected, lambda found, data: zlib.crc32(data.data, found), zlib.crc32(header))

    @classmethod
    def of_tensorflow(cls, masked: int) -> Checksum | None:
        """Return the checksum that TensorFlow stores; None if it cannot be verified here.

        TensorFlow masks checksums, as the CRC of data that contain their own CRC is weak.
        """
        turned = (masked - 0xA282EAD8) & 0xFFFFFFFF
        extend = crc32c()
        return extend and cls((turned >> 17 | turned << 15) & 0xFFFFFFFF, extend)

    def require(self, found: int) -> None:
        """Raise if a sum is not the expected one.

        Raises:
            ValueError: If they differ.
        """
        if found != self.expected:
            raise ValueError("its checksum does not match its values: the file is damaged")


class Extent(NamedTuple):
    """The place of a tensor's elements in a file, contiguous and in C order.

    Attributes:
        file: The file, open for reading and unbuffered.
        offset: Offset of the first element in bytes.
        checksum: Of all bytes; None if there is none, or none that can be verified piece by piece.
    """

    file: io.FileIO
    offset: int
    checksum: Checksum | None = None

    def read_into(self, array: np.ndarray, start: int = 0) -> None:
        """Fill an array with elements of the tensor.

        Reads instead of mapping the file: if the file is truncated meanwhile, this raises, whereas
        a mapping would kill the process.

        Args:
            array: A contiguous array of the tensor's dtype.
            start: Index of the first element to read.

        Raises:
            EOFError: If the file ends before the array is full.
        """
        view = array.reshape(-1).view(np.uint8).data  # ml_dtypes do not support buffers
        place = self.offset + start * array.itemsize
        while view:
            count = _read_at(self.file, view, place)
            if not count:
                raise EOFError(f"the file ends {len(view)} bytes too early")
            view, place = view[count:], place + count


def _read_at(file: io.FileIO, view: memoryview, place: int) -> int:
    """Read from an offset; the file's position, which threads share, stays unused or locked."""
    if hasattr(os, "preadv"):
        return os.preadv(file.fileno(), [view], place)
    with _SEEKING:
        file.seek(place)
        return file.readinto(view) or 0


@functools.cache
def crc32c() -> Callable[[int, np.ndarray], int] | None:
    """Return a fast function that extends a CRC-32C by an array's bytes; None if unavailable."""
    try:
        import google_crc32c
    except ImportError:
        return None
    # Its pure Python fallback needs minutes for what the C code does in a second.
    return google_crc32c.extend if google_crc32c.implementation == "c" else None


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return an uninitialised array, aligned so that backends can use it without a copy."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


class Fingerprint:
    """Identity, size and modification time of files, to detect later changes.

    Args:
        paths: The files.
    """

    def __init__(self, paths: Sequence[str] = ()) -> None:
        self._states = {path: _state(path) for path in paths}

    @property
    def paths(self) -> list[str]:
        """The files."""
        return list(self._states)

    def changed(self) -> list[str]:
        """Return the paths whose file was replaced or written to."""
        return [path for path, state in self._states.items() if _state(path) != state]


def _state(path: str) -> tuple[int, ...] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
