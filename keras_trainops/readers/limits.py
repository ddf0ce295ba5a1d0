"""What no file may claim or name, whatever its format."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import numpy as np

from keras_trainops.readers.base import RestoreError

# Weights compress to a half at best; only constants reach more. What claims a hundred times of what
# is stored, and is large, is a bomb or a damaged header.
_LARGE = 256 * 2**20
_EXPANSION = 100


def nbytes(shape: Iterable[int], dtype: np.dtype) -> int:
    """The size of an array in memory, exact where NumPy's own integers would overflow."""
    return math.prod(int(n) for n in shape) * dtype.itemsize


def refuse_bomb(what: str, claimed: int, stored: int, location: str) -> None:
    """Refuses what would grow out of all proportion as it is unpacked.

    Args:
        what: The tensor or member, for the message.
        claimed: Its size in memory, in bytes.
        stored: The bytes that the file has for it.
        location: The file.

    Raises:
        RestoreError: If `claimed` is large and more than 100 times `stored`.
    """
    if claimed > _LARGE and claimed > _EXPANSION * stored:
        raise RestoreError(
            f"{location!r}: {what} claims {claimed:,} bytes, but only {stored:,} are stored for "
            "it, so it is not read. If the file is to be trusted, save it again without "
            "compression."
        )


def refuse_unsafe_names(names: Iterable[str], location: str) -> None:
    """Refuses names that lead elsewhere where they are taken for paths.

    Raises:
        RestoreError: If a name is absolute, or has `..` for a component or a null character in it.
    """
    for name in names:
        parts = re.split(r"[/\\]", name)
        if ".." in parts or "\0" in name or (len(parts) > 1 and not parts[0]):
            raise RestoreError(
                f"{location!r} holds the name {name!r}, which leads out of it. Such names come "
                "from a damaged or hostile file, so it is not read."
            )
