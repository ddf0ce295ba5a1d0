"""Copy the files of a directory that a new checkpoint shares with its source."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from keras_trainops.checkpoints.storage.files import open_regular
from keras_trainops.errors import RestoreError

_COPIED_AT_ONCE = 1 << 20  # bytes


def copy_directory(
    source: Path,
    target: Path,
    is_wanted: Callable[[Path], bool] = lambda path: True,
    *,
    follow_links: bool = False,
) -> None:
    """Copy the regular files below a directory, with the directories that contain them.

    If `target` is inside `source`, the directories that contain it are left out, and so is the one
    that it replaces: see `written_aside`.

    Args:
        source: The directory.
        target: The copy; it may exist.
        is_wanted: Returns False for files and directories to leave out, given their path below
            `source`.
        follow_links: If True, links become the files that they lead to, wherever these are. The
            caches of Hugging Face consist of such links.

    Raises:
        RestoreError: If a link leads to a directory, or out of `source` unless links are followed;
            if a file cannot be read, or is not a regular file.
    """
    target.mkdir(exist_ok=True)
    inside, root = target.resolve(), source.resolve()
    own = {inside, *inside.parents, inside.parent.parent / inside.name}
    for parent, directories, names in os.walk(source):
        below = Path(parent).relative_to(source)
        others = [name for name in directories if root / below / name not in own]
        directories[:] = [name for name in others if is_wanted(below / name)]
        for path in (Path(parent, name) for name in directories):
            if path.is_symlink():
                raise RestoreError(f"{str(path)!r} is a link to a directory, so it is not copied.")
            (target / below / path.name).mkdir(exist_ok=True)
        for path in (Path(parent, name) for name in names if is_wanted(below / name)):
            if not follow_links:
                _refuse_outside(path, source)
            _copy_file(path, target / below / path.name)


def _refuse_outside(path: Path, source: Path) -> None:
    if source.resolve() not in path.resolve().parents:
        raise RestoreError(
            f"{str(path)!r} is a link to a place outside of {str(source)!r}, so it is not copied."
        )


def _copy_file(source: Path, target: Path) -> None:
    try:
        file = open_regular(str(source))
    except OSError as error:
        raise RestoreError(f"Cannot copy {str(source)!r}: {error.strerror}.") from error
    with file, target.open("wb") as copy:
        shutil.copyfileobj(file, copy, _COPIED_AT_ONCE)
