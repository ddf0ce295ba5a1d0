"""Write files aside, and move them to their place when they are complete."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from keras_trainops.errors import RestoreError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UnwritableError(Exception):
    """A format cannot store a tensor because of its dtype or name; nothing was written."""


def existing(target: Path) -> Path | None:
    """Return what exists at a path, or at the prefix of a TensorFlow checkpoint."""
    paths = (target, target.with_name(f"{target.name}.index"))
    return next((path for path in paths if os.path.lexists(path)), None)


@contextlib.contextmanager
def written_aside(target: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a path to write to, and move what was written there to `target` on success.

    The path has the name of `target`, in an empty directory beside it, because some libraries look
    at the ending. Everything in that directory moves, so a writer may write several files, or make
    a directory of the path. What has the name of `target`, or the index of TensorFlow, moves last.

    A single file is replaced atomically. A directory is replaced by two renames, between which it
    is absent; files that only the old one has stay in it. Several files move one by one.

    Args:
        target: Path of the new file, or the prefix of the new files.
        overwrite: If True, existing files of these names are replaced.

    Raises:
        RestoreError: If no file can be made there, the disk is full, or a file exists that may not
            be overwritten; nothing was changed.
    """
    directory = _directory_beside(target)
    try:
        yield directory / target.name
        for path in sorted(directory.rglob("*")):
            _flush(path)
        if not overwrite:
            _refuse_existing(target.parent / path.name for path in directory.iterdir())
        last = (target.name, f"{target.name}.index")
        for path in sorted(directory.iterdir(), key=lambda path: (path.name in last, path.name)):
            _replace(path, target.parent / path.name)
        _flush(target.parent)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        free = shutil.disk_usage(target.parent).free
        raise RestoreError(
            f"Cannot write {str(target)!r}: {error.strerror} ({free:,} bytes are free). Nothing "
            "was changed."
        ) from error
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _directory_beside(target: Path) -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix=".", dir=target.parent))
    except OSError as error:
        raise RestoreError(
            f"Cannot write {str(target)!r}: no file can be made in {str(target.parent)!r} "
            f"({error.strerror})."
        ) from error


def _refuse_existing(paths: Iterable[Path]) -> None:
    for path in sorted(paths):
        if os.path.lexists(path):
            raise RestoreError(
                f"{str(path)!r} exists. Pass `overwrite=True` to replace it, or another `out`."
            )


def _flush(path: Path) -> None:
    """Wait until a file, or the list of files in a directory, is on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows does not open directories
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(new: Path, old: Path) -> None:
    """Move a file or a directory to a path; what only the old directory has stays in it."""
    is_directory = old.is_dir() and not old.is_symlink()
    if is_directory != new.is_dir() and os.path.lexists(old) and not old.is_symlink():
        kind, other = ("directory", "file") if is_directory else ("file", "directory")
        raise RestoreError(f"{str(old)!r} is a {kind}, so no {other} can be written there.")
    if not is_directory and not (old.is_symlink() and new.is_dir()):
        os.replace(new, old)
        return
    if is_directory:
        _keep(old, new)
    replaced = Path(tempfile.mkdtemp(dir=new.parent), "old")
    os.replace(old, replaced)
    try:
        os.replace(new, old)
    except BaseException:
        os.replace(replaced, old)
        raise


def _keep(old: Path, new: Path) -> None:
    """Link what is in an old directory, but not in the new one, into the new one."""
    for entry in old.iterdir():
        place = new / entry.name
        is_directory = entry.is_dir() and not entry.is_symlink()
        if is_directory:
            if not os.path.lexists(place):
                place.mkdir()
            if place.is_dir():
                _keep(entry, place)
        elif not os.path.lexists(place):
            try:
                os.link(entry, place, follow_symlinks=False)
            except OSError:  # a file system without hard links
                shutil.copy2(entry, place, follow_symlinks=False)
