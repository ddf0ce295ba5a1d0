"""Files for libraries that cannot cope with a full disk."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class _DeferringFile(io.FileIO):
    """A file that remembers its first failure, and from then on pretends that all is well."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        with self._deferred():
            while rest and self.failure is None:
                rest = rest[super().write(rest) or 0 :]
        return size

    def truncate(self, size: int | None = None) -> int:
        with self._deferred():
            super().truncate(size)
        return self.tell() if size is None else size

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer) or 0
        view = memoryview(buffer).cast("B")
        if self.failure is not None:
            view[count:] = bytes(len(view) - count)  # what was never written
            return len(view)
        return count

    @contextlib.contextmanager
    def _deferred(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failure = self.failure or error


@contextlib.contextmanager
def deferring_errors(path: Path) -> Iterator[io.FileIO]:
    """Open a new file whose failures are raised at the end of the block.

    HDF5 ends the process later if it cannot write a file while closing it.

    Args:
        path: Path of the file.

    Raises:
        OSError: If the disk is full, for example.
    """
    with _DeferringFile(path) as file:
        try:
            yield file
        finally:
            if file.failure is not None:
                raise file.failure
