"""The members of `.keras` files and directories."""

from __future__ import annotations

import zipfile
from pathlib import Path

from keras_trainops.checkpoints.storage.files import MOST_METADATA, read_file, require_file

WEIGHTS = "model.weights.h5"
CONFIG = "config.json"


def small_file(path: Path) -> bytes:
    """Read a small file; empty if it is missing or large."""
    fits = path.is_file() and require_file(str(path)) <= MOST_METADATA
    return read_file(str(path)) if fits else b""


def small_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Read a small member; empty if it is missing or large."""
    if name not in archive.namelist() or archive.getinfo(name).file_size > MOST_METADATA:
        return b""
    return archive.read(name)
