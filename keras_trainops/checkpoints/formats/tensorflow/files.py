"""The files of a TensorFlow checkpoint, and the name by which TensorFlow opens them.

V2: files named after a prefix, with `.index` and `.data-…` appended. V1: one file, or several
numbered ones (`ck-00000-of-00002`), which TensorFlow calls `ck-?????-of-00002`.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from keras_trainops.checkpoints.storage.files import open_regular, require_file

STATE = "checkpoint"  # the file that names the latest checkpoint of a directory
_TABLE_MAGIC = bytes.fromhex("57fb808b247547db")  # the last bytes of V1 files and `.index` files
_SHARD = re.compile(r"(.*)-(?:\d{5}|\?{5})-of-(\d{5})", re.DOTALL)
_PATTERN = re.compile(r"[*?\[\]\\]")


class Files(NamedTuple):
    """The files of a checkpoint.

    Attributes:
        prefix: Common prefix of the paths.
        ending: Appended to the prefix, it makes TensorFlow's name for the files.
        paths: Paths of the files, which are all regular.
        is_v2: True for an index with its data files.
    """

    prefix: str
    ending: str
    paths: tuple[str, ...]
    is_v2: bool


def files_of(text: str) -> Files | None:
    """Find the files of a checkpoint.

    Args:
        text: A prefix, one of the files, or TensorFlow's name for them. The base name of a prefix
            may be empty (`DIR/`).

    Returns:
        The files; None if `text` does not name a checkpoint.

    Raises:
        RestoreError: If one of them is not a regular file.
    """
    prefix = re.sub(r"\.(?:index|data-\d+-of-\d+)$", "", text)
    prefix = os.path.join(os.path.abspath(os.path.dirname(prefix)), os.path.basename(prefix))
    if os.path.exists(f"{prefix}.index") and not os.path.isdir(f"{prefix}.index"):
        found = Files(prefix, "", (f"{prefix}.index", *_matching(prefix, ".data-*-of-*")), True)
    else:
        found = _v1_shards(prefix) or Files(prefix, "", (prefix,), False)
        if not all(os.path.isfile(path) and is_v1_file(path) for path in found.paths):
            return None
    for path in found.paths:
        require_file(path)
    return found


def _v1_shards(prefix: str) -> Files | None:
    shard = _SHARD.fullmatch(prefix)
    if shard is None:
        names = map(_SHARD.fullmatch, _matching(prefix, "-?????-of-?????"))
        shards = {match[2]: match for match in names if match is not None}
        if len(shards) != 1:
            return None
        (shard,) = shards.values()
    start, count = shard.groups()
    paths = tuple(f"{start}-{i:05d}-of-{count}" for i in range(int(count)))
    return Files(start, f"-?????-of-{count}", paths, False)


def _matching(prefix: str, pattern: str) -> list[str]:
    return sorted(glob.glob(glob.escape(prefix) + pattern))


def base_name(text: str) -> str:
    """Return the last part of a prefix, given a prefix, a file or TensorFlow's name for several."""
    found = files_of(text)
    return os.path.basename(found.prefix) if found is not None else ""


def is_v1_file(path: str) -> bool:
    """Return True if a file ends like those of V1 checkpoints."""
    size = require_file(path)
    with open_regular(path) as file:
        file.seek(max(0, size - len(_TABLE_MAGIC)))
        return file.read() == _TABLE_MAGIC


def names_in(directory: Path) -> list[str]:
    """Return the base names of the checkpoints in a directory: V2 if there are any, else V1."""
    names = [path.name for path in directory.iterdir()]
    prefixes = [name.removesuffix(".index") for name in names if name.endswith(".index")]
    if prefixes or not (directory / STATE).exists():
        return sorted(prefixes)
    return _v1_names_in(directory)


def _v1_names_in(directory: Path) -> list[str]:
    files = [path for path in directory.iterdir() if path.is_file()]
    v1_files = [path.name for path in files if is_v1_file(str(path))]
    return sorted({_SHARD.sub(r"\1-?????-of-\2", name) for name in v1_files})


@contextlib.contextmanager
def name_for_tensorflow(files: Files) -> Iterator[str]:
    """Yield a name by which TensorFlow can open the files, valid inside the context.

    TensorFlow treats names as glob patterns, but those of a V2 checkpoint's data files literally,
    so it cannot open `run[1]/ck` at all. Such files are linked to under another name.

    Args:
        files: The files of a checkpoint.
    """
    if not _PATTERN.search(files.prefix):
        yield files.prefix + files.ending
        return
    with tempfile.TemporaryDirectory(prefix="keras-trainops-") as directory:
        prefix = os.path.join(directory, "ck")
        for path in files.paths:
            os.symlink(path, prefix + path.removeprefix(files.prefix))
        yield prefix + files.ending
