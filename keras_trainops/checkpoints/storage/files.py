"""The one place where readers open files: regular ones only, of a size that was looked at before.

A pipe or a device would never end, and libraries read what a file says of itself: what they are
handed has been through `require_file`, and what is read here is bounded.
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

MOST_METADATA = 256 * 2**20  # bytes: such an index would list millions of tensors
_DEEPEST = 100  # containers in containers; a model in models in models has some 20

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a directory",
}


def require_file(path: str) -> int:
    """Looks at a file before it is opened, here or by a library.

    Returns:
        Its size in bytes.

    Raises:
        RestoreError: If it is no regular file (a pipe, a device), or a large one that is nearly all
            hole: it claims more than it has on the disk.
        OSError: If there is none, or it may not be read.
    """
    status = os.stat(path)
    kind = _KINDS.get(stat.S_IFMT(status.st_mode), "of an unknown kind")
    if not stat.S_ISREG(status.st_mode):
        raise RestoreError(f"{path!r} is {kind} and not a regular file, so it is not read.")
    if is_bomb(status.st_size, 0):
        with io.FileIO(path, opener=_without_waiting) as file:
            stored = _stored(file.fileno(), status.st_size)
        refuse_bomb("the file", status.st_size, stored, path)
    return status.st_size


def open_regular(path: str) -> io.FileIO:
    """Opens a regular file for reading, without a buffer.

    Raises:
        RestoreError, OSError: As `require_file`.
    """
    require_file(path)
    return io.FileIO(path, opener=_without_waiting)


def read_file(path: str, most: int = MOST_METADATA) -> bytes:
    """The content of a file that is to be small.

    Raises:
        RestoreError: If it has more than `most` bytes.
        RestoreError, OSError: As `require_file`.
    """
    size = require_file(path)
    if size > most:
        raise RestoreError(
            f"{path!r} has {size:,} bytes, too large to be what it should be: at most {most:,} are "
            "read."
        )
    with open_regular(path) as file:
        return file.read(size)


def load_json(text: bytes, location: str) -> Any:
    """What JSON says, where every reader agrees on what that is.

    Raises:
        RestoreError: If an object has a key twice.
        ValueError: If it is no JSON, or containers lie more than 100 deep in each other.
    """
    if _depth(text) > _DEEPEST:
        raise ValueError(f"it is nested more than {_DEEPEST} deep")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            repeated = max(Counter(key for key, _ in pairs).items(), key=lambda item: item[1])[0]
            raise RestoreError(f"{location!r}: its JSON holds {repeated!r} twice in one object.")
        return found

    return json.loads(text, object_pairs_hook=once)


def _depth(text: bytes) -> int:
    """How deep containers lie in each other, told without walking into them."""
    bare = np.frombuffer(re.sub(rb'"[^"\\]*(?:\\.[^"\\]*)*"', b"", text, flags=re.DOTALL), np.uint8)
    bare = bare[np.isin(bare, np.frombuffer(b"[]{}", np.uint8))]
    steps = np.where(np.isin(bare, np.frombuffer(b"[{", np.uint8)), 1, -1)
    return int(np.cumsum(steps, dtype=np.int64).max(initial=0))


def data_ranges(descriptor: int, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts of a file between two places that are no holes; all of it where nobody can tell."""
    while begin < end:
        try:
            start = os.lseek(descriptor, begin, os.SEEK_DATA)
            stop = min(os.lseek(descriptor, start, os.SEEK_HOLE), end)
        except (AttributeError, OSError) as error:
            if getattr(error, "errno", None) != errno.ENXIO:  # which says: a hole up to the end
                yield begin, end
            return
        if start < end:
            yield start, stop
        begin = stop


def _stored(descriptor: int, size: int) -> int:
    """How many bytes a file has on the disk, counted until they are enough for its size."""
    stored = 0
    for start, stop in data_ranges(descriptor, 0, size):
        stored += stop - start
        if not is_bomb(size, stored):
            break
    return stored


def _without_waiting(path: str, flags: int) -> int:
    """Opens what is checked to be a regular file once more: a pipe in its place would wait."""
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise RestoreError(f"{path!r} is not a regular file any more, so it is not read.")
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(descriptor)
        raise
    return descriptor
