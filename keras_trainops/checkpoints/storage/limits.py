"""What no file may claim or name, whatever its format."""

from __future__ import annotations

import re
from collections.abc import Collection

from keras_trainops.errors import RestoreError

# Weights compress to a half at best; only constants reach more. What claims a hundred times of what
# is stored, and is large, is a bomb or a damaged header.
_LARGE = 256 * 2**20
_EXPANSION = 100
_LONGEST_NAME = 4096  # characters
_MOST_NAMES = 1 << 20


def is_bomb(claimed: int, stored: int) -> bool:
    """Whether `claimed` bytes are many, and more than 100 times the bytes that are stored."""
    return claimed > _LARGE and claimed > _EXPANSION * stored


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
    if is_bomb(claimed, stored):
        raise RestoreError(
            f"{location!r}: {what} claims {claimed:,} bytes, but only {stored:,} are stored for "
            "it, so it is not read. If the file is to be trusted, save it again without "
            "compression or holes."
        )


def refuse_unsafe_names(names: Collection[str], location: str) -> None:
    """Refuses names that lead elsewhere where they are taken for paths, and too many or too long.

    Raises:
        RestoreError: If a name is absolute, has `..` for a component or a null character in it, or
            more than 4,096 characters; or if there are more than a million.
    """
    if len(names) > _MOST_NAMES:
        raise RestoreError(
            f"{location!r} holds {len(names):,} names, where at most {_MOST_NAMES:,} are read."
        )
    for name in names:
        if len(name) > _LONGEST_NAME:
            raise RestoreError(
                f"{location!r} holds a name of {len(name):,} characters, which is too long to be "
                f"that of a tensor: {name[:40]!r}…"
            )
        parts = re.split(r"[/\\]", name)
        if ".." in parts or "\0" in name or (len(parts) > 1 and not parts[0]):
            raise RestoreError(
                f"{location!r} holds the name {name!r}, which leads out of it. Such names come "
                "from a damaged or hostile file, so it is not read."
            )
