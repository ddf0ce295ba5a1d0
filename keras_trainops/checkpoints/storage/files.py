"""Open files for reading: only regular files, checked for size beforehand.

A pipe or a device might never end, and libraries trust the sizes that a file claims. So every file
passes `require_file` before a library opens it, and reads here are bounded.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_trainops.checkpoints.storage.limits import is_bomb, refuse_bomb
from keras_trainops.errors import RestoreError

MOST_METADATA = 256 * 2**20  # bytes: an index of this size would list millions of tensors
_DEEPEST = 100  # nested containers; a model in a model in a model has some 20

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a directory",
}


def require_file(path: str) -> int:
    """Check a file before it is opened, here or by a library.

    Args:
        path: Path of the file.

    Returns:
        Its size in bytes.

    Raises:
        RestoreError: If it is not a regular file (a pipe, a device), or is a large sparse file that
            consists almost entirely of holes.
        OSError: If it does not exist or may not be read.
    """
    status = os.stat(path)
    kind = _KINDS.get(stat.S_IFMT(status.st_mode), "of an unknown kind")
    if not stat.S_ISREG(status.st_mode):
        raise RestoreError(f"{path!r} is {kind} and not a regular file, so it is not read.")
    if is_bomb(status.st_size, 0):
        with io.FileIO(path, opener=_open_without_waiting) as file:
            stored = _stored_bytes(file.fileno(), status.st_size)
        refuse_bomb("the file", status.st_size, stored, path)
    return status.st_size


def open_regular(path: str) -> io.FileIO:
    """Open a regular file for reading, unbuffered.

    Raises:
        RestoreError, OSError: See `require_file`.
    """
    require_file(path)
    return io.FileIO(path, opener=_open_without_waiting)


def read_file(path: str, most: int = MOST_METADATA) -> bytes:
    """Read a file that should be small.

    Args:
        path: Path of the file.
        most: Maximum size in bytes.

    Returns:
        Its content.

    Raises:
        RestoreError: If the file is larger than `most`.
        RestoreError, OSError: See `require_file`.
    """
    size = require_file(path)
    if size > most:
        raise RestoreError(
            f"{path!r} has {size:,} bytes, more than the limit of {most:,} for this kind of file, "
            "so it is not read."
        )
    with open_regular(path) as file:
        return file.read(size)


def load_json(text: bytes, location: str) -> Any:
    """Parse JSON, refusing repeated keys, which parsers resolve differently.

    Args:
        text: The JSON document.
        location: The file, for messages.

    Returns:
        The parsed document.

    Raises:
        RestoreError: If an object has a key twice.
        ValueError: If it is not JSON or is nested more than 100 deep.
    """
    if _depth(text) > _DEEPEST:
        raise ValueError(f"it is nested more than {_DEEPEST} deep")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            repeated, _ = Counter(key for key, _ in pairs).most_common(1)[0]
            raise RestoreError(f"{location!r}: its JSON contains {repeated!r} twice in one object.")
        return found

    return json.loads(text, object_pairs_hook=once)


def _depth(text: bytes) -> int:
    """Return how deep containers are nested in JSON text, without recursion."""
    bare = np.frombuffer(re.sub(rb'"[^"\\]*(?:\\.[^"\\]*)*"', b"", text, flags=re.DOTALL), np.uint8)
    bare = bare[np.isin(bare, np.frombuffer(b"[]{}", np.uint8))]
    steps = np.where(np.isin(bare, np.frombuffer(b"[{", np.uint8)), 1, -1)
    return int(np.cumsum(steps, dtype=np.int64).max(initial=0))


def data_ranges(descriptor: int, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the parts of a file that are not holes.

    Args:
        descriptor: File descriptor, open for reading.
        begin: Offset of the first byte.
        end: Offset after the last byte.

    Yields:
        Pairs of offsets; the whole range if the file system cannot report holes.
    """
    while begin < end:
        try:
            start = os.lseek(descriptor, begin, os.SEEK_DATA)
            stop = min(os.lseek(descriptor, start, os.SEEK_HOLE), end)
        except (AttributeError, OSError) as error:
            if getattr(error, "errno", None) != errno.ENXIO:  # ENXIO: a hole up to the end
                yield begin, end
            return
        if start < end:
            yield start, stop
        begin = stop


def _stored_bytes(descriptor: int, size: int) -> int:
    """Count the bytes that a file occupies on disk, up to as many as its size requires."""
    stored = 0
    for start, stop in data_ranges(descriptor, 0, size):
        stored += stop - start
        if not is_bomb(size, stored):
            break
    return stored


def _open_without_waiting(path: str, flags: int) -> int:
    """Open a regular file; if a pipe has replaced it meanwhile, raise instead of blocking."""
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise RestoreError(f"{path!r} is not a regular file any more, so it is not read.")
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(descriptor)
        raise
    return descriptor
