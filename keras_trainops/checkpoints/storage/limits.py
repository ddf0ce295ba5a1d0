"""Limits on what any file may claim or name, whatever its format."""

from __future__ import annotations

import re
from collections.abc import Collection

from keras_trainops.errors import RestoreError

# Weights rarely compress below half their size; only constants do. Something large that claims a
# hundred times its stored size is a decompression bomb or has a damaged header.
_LARGE = 256 * 2**20
_EXPANSION = 100
_LONGEST_NAME = 4096  # characters
_MOST_NAMES = 1 << 20


def is_bomb(claimed: int, stored: int) -> bool:
    """Return True if `claimed` bytes are many, and more than 100 times the `stored` bytes."""
    return claimed > _LARGE and claimed > _EXPANSION * stored


def refuse_bomb(what: str, claimed: int, stored: int, location: str) -> None:
    """Raise if unpacking would expand the stored bytes out of all proportion.

    Args:
        what: The tensor or member, for the message.
        claimed: Its size in memory, in bytes.
        stored: The bytes stored for it in the file.
        location: The file.

    Raises:
        RestoreError: If `claimed` is large and more than 100 times `stored`.
    """
    if is_bomb(claimed, stored):
        raise RestoreError(
            f"{location!r}: {what} claims {claimed:,} bytes, but only {stored:,} are stored for "
            "it, so it is not read. If you trust the file, save it again without compression or "
            "holes."
        )


def refuse_unsafe_names(names: Collection[str], location: str) -> None:
    """Raise if names would lead elsewhere when used as paths, are too long, or too many.

    Args:
        names: The names of tensors.
        location: The file, for messages.

    Raises:
        RestoreError: If a name is absolute, has a component `..`, contains a null character, or is
            longer than 4,096 characters; or if there are more than a million names.
    """
    if len(names) > _MOST_NAMES:
        raise RestoreError(
            f"{location!r} contains {len(names):,} names, but at most {_MOST_NAMES:,} are read."
        )
    for name in names:
        if len(name) > _LONGEST_NAME:
            raise RestoreError(
                f"{location!r} contains a name of {len(name):,} characters, which is too long "
                f"for a tensor: {name[:40]!r}…"
            )
        if _is_unsafe(name):
            raise RestoreError(
                f"{location!r} contains the name {name!r}, which leads out of it. Such names "
                "come from a damaged or hostile file, so it is not read."
            )


def _is_unsafe(name: str) -> bool:
    parts = re.split(r"[/\\]", name)
    is_absolute = len(parts) > 1 and not parts[0]
    return is_absolute or ".." in parts or "\0" in name
