"""Where a new file goes, and in which format."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from keras_trainops.checkpoints.format import Writer
from keras_trainops.checkpoints.locations import location_of
from keras_trainops.checkpoints.open import writers
from keras_trainops.checkpoints.storage.writing import existing
from keras_trainops.errors import RestoreError
from keras_trainops.writing.like import Like


def writer_for(out: str, like: Like) -> Writer:
    """Return the writer of a format: the source's, unless the name of `out` asks for another.

    Raises:
        ValueError: If that format can only be read.
    """
    of_source = like.format.write if like.format is not None else None
    ending = Path(out).suffix
    if of_source and ending and ending == Path(like.checkpoint.location).suffix:
        return of_source
    known = writers()
    for suffix, writer in known.items():
        if out.endswith(suffix):
            return writer
    if of_source is not None:
        return of_source
    raise ValueError(
        f"{like.checkpoint.location!r} ({like.checkpoint.format}) has no format that can be "
        f"written. Let `out` end in one of {', '.join(known)}. Received: out={out!r}"
    )


def path_for(out: str | os.PathLike[str], like: Like, *, overwrite: bool) -> Path:
    """Return the path to write to. A link is replaced, and not what it leads to.

    Raises:
        RestoreError: If something exists there that may not be overwritten, or there is no
            directory for it.
    """
    text = location_of(out)
    path = Path(os.path.abspath(text))
    if not path.parent.is_dir():
        raise RestoreError(f"There is no directory {str(path.parent)!r} to write {text!r} to.")
    if existing(path) is not None and not overwrite:
        what = "is `like` itself" if is_same(path, like) else "exists"
        raise RestoreError(
            f"{text!r} {what}. Pass `overwrite=True` to replace it, or another `out`."
        )
    return path


def is_same(path: Path, like: Like) -> bool:
    """Return True if a path leads to the source."""
    return os.path.realpath(like.checkpoint.location) == os.path.realpath(path)


def refuse_files_of(like: Like, names: Iterable[str], path: Path) -> None:
    """Raise if files of the source would be replaced, although `out` is not the source.

    Args:
        like: The source.
        names: The names of the new files.
        path: The path to write to.

    Raises:
        RestoreError: If there is such a file, such as a shard of the same name.
    """
    if is_same(path, like):
        return
    files = {os.path.realpath(file) for file in like.checkpoint.files}
    for name in names:
        if os.path.realpath(path.with_name(name)) in files:
            raise RestoreError(
                f"{name!r} is a file of `like`, and would be replaced by one of {str(path)!r}. "
                "Write to another directory."
            )


def require_space(path: Path, nbytes: int) -> None:
    """Raise if the disk has no room for the new file.

    Raises:
        RestoreError: If fewer than `nbytes` bytes are free.
    """
    free = shutil.disk_usage(path.parent).free
    if free < nbytes:
        raise RestoreError(
            f"The disk of {str(path)!r} is too full: {nbytes:,} bytes are needed, and {free:,} are "
            "free. Nothing was written."
        )
