"""The JSON file that says in which file beside it each part of a sharded checkpoint lies."""

from __future__ import annotations

import os
from collections.abc import Mapping

from keras_trainops.checkpoints.storage.files import (
    MOST_METADATA,
    load_json,
    read_file,
    require_file,
)
from keras_trainops.errors import RestoreError


def weight_map(path: str) -> Mapping[str, list[str]] | None:
    """What the index at `path` lists: names, each with the paths of its files; None if it is none.

    Raises:
        RestoreError: If it names a file that is missing, or is not beside the index itself, or says
            anything twice.
    """
    if require_file(path) > MOST_METADATA:
        return None
    try:
        content = load_json(read_file(path), path)
    except RestoreError:
        raise
    except ValueError:  # not JSON, or not in UTF-8
        return None
    entries = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(entries, dict) or not entries:
        return None
    listed = {
        name: [files] if isinstance(files, str) else list(files) for name, files in entries.items()
    }
    paths = {file: _beside(path, file) for files in listed.values() for file in files}
    return {name: [paths[file] for file in files] for name, files in listed.items()}


def _beside(index: str, name: object) -> str:
    plain = isinstance(name, str) and name not in ("", ".", "..") and "\0" not in name
    if not plain or os.path.basename(str(name)) != name or "\\" in str(name):
        raise RestoreError(
            f"{index!r} names the file {name!r}, which is not beside it, so it is not read."
        )
    path = os.path.join(os.path.dirname(index), str(name))
    if not os.path.isfile(path):
        raise RestoreError(f"{index!r} names the file {name!r}, which is missing beside it.")
    return path


def listed_files(path: str) -> Mapping[str, list[str]]:
    """Return what an index lists, as `weight_map` does.

    Raises:
        RestoreError: If it has changed since it was recognised and is no index any more.
    """
    files = weight_map(path)
    if files is None:
        raise RestoreError(f"{path!r} is no longer the index of a checkpoint.")
    return files
