"""Read the JSON index that maps the parts of a sharded checkpoint to the files beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import chain
from typing import Any

from keras_trainops.checkpoints.storage.files import (
    MOST_METADATA,
    load_json,
    read_file,
    require_file,
)
from keras_trainops.errors import RestoreError

_MAP = "weight_map"


def weight_map(path: str) -> Mapping[str, list[str]] | None:
    """Read the `weight_map` of an index file.

    Args:
        path: Path of the index.

    Returns:
        Mapping from name to the paths of the files that contain it; None if the file is not an
            index.

    Raises:
        RestoreError: If it names a missing file or one outside its directory, or has a key twice.
    """
    entries = _entries(path)
    if not entries:
        return None
    files = {name: [one] if isinstance(one, str) else list(one) for name, one in entries.items()}
    paths = {file: _beside(path, file) for file in chain.from_iterable(files.values())}
    return {name: [paths[file] for file in listed] for name, listed in files.items()}


def other_entries(path: str) -> dict[str, Any]:
    """Return what an index contains beside its `weight_map`."""
    return {name: entry for name, entry in _content(path).items() if name != _MAP}


def _entries(path: str) -> dict[str, Any]:
    """Return the content of `weight_map`; empty if the file is not an index."""
    entries = _content(path).get(_MAP)
    return entries if isinstance(entries, dict) else {}


def _content(path: str) -> dict[str, Any]:
    """Return the JSON object in a file; empty if there is none."""
    if require_file(path) > MOST_METADATA:
        return {}
    try:
        content = load_json(read_file(path), path)
    except RestoreError:
        raise
    except ValueError:  # not JSON, or not UTF-8
        return {}
    return content if isinstance(content, dict) else {}


def _beside(index: str, name: object) -> str:
    if not isinstance(name, str) or not is_plain(name):
        raise RestoreError(
            f"{index!r} names the file {name!r}, which is not in the same directory, so it is not "
            "read."
        )
    path = os.path.join(os.path.dirname(index), name)
    if not os.path.isfile(path):
        raise RestoreError(f"{index!r} names the file {name!r}, which does not exist.")
    return path


def is_plain(name: str) -> bool:
    """Return True if a file of this name is in the directory it is looked for in."""
    is_path = os.path.basename(name) != name or "\\" in name
    return not is_path and name not in ("", ".", "..") and "\0" not in name


def listed_files(path: str) -> Mapping[str, list[str]]:
    """Return the `weight_map` of a file that is known to be an index.

    Raises:
        RestoreError: If it has changed meanwhile and is not an index any more.
    """
    files = weight_map(path)
    if files is None:
        raise RestoreError(f"{path!r} is no longer the index of a checkpoint.")
    return files
