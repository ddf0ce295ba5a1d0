"""Which files a TensorFlow checkpoint consists of, and the name by which TensorFlow opens them.

V2: a prefix, with `.index` and `.data-…` behind it. V1: one file, or several that are numbered
(`ck-00000-of-00002`), which TensorFlow calls `ck-?????-of-00002`.
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

_TABLE_MAGIC = bytes.fromhex("57fb808b247547db")  # the footer of a V1 file, and of an `.index`
_SHARD = re.compile(r"(.*)-(?:\d{5}|\?{5})-of-(\d{5})", re.DOTALL)
_PATTERN = re.compile(r"[*?\[\]\\]")


class Files(NamedTuple):
    """The files of a checkpoint, all of them regular.

    Attributes:
        prefix: What their names begin with.
        ending: What TensorFlow's name for them has behind the prefix.
        paths: The files.
        is_v2: Whether they are an index and its data.
    """

    prefix: str
    ending: str
    paths: tuple[str, ...]
    is_v2: bool


def files_of(text: str) -> Files | None:
    """The files of the checkpoint that `text` names: its prefix, one of them, or TensorFlow's name.

    The base name of a prefix may be empty (`DIR/`).

    Raises:
        RestoreError: If one of them is no regular file.
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


def is_v1_file(path: str) -> bool:
    """Whether `path` ends as a file of a V1 checkpoint does."""
    size = require_file(path)
    with open_regular(path) as file:
        file.seek(max(0, size - len(_TABLE_MAGIC)))
        return file.read() == _TABLE_MAGIC


def names_in(directory: Path) -> list[str]:
    """The base names of the checkpoints in a directory: prefixes of V2 or, without any, V1's."""
    names = [path.name for path in directory.iterdir()]
    prefixes = [name.removesuffix(".index") for name in names if name.endswith(".index")]
    if prefixes or not (directory / "checkpoint").exists():
        return sorted(prefixes)
    files = [name for name in names if (directory / name).is_file()]
    old = [name for name in files if is_v1_file(str(directory / name))]
    return sorted({_SHARD.sub(r"\1-?????-of-\2", name) for name in old})


@contextlib.contextmanager
def name_for_tensorflow(files: Files) -> Iterator[str]:
    """Gives the name by which TensorFlow opens `files`, as long as the context lasts.

    It takes names for patterns, but those of a V2 checkpoint's data literally, and so cannot open
    `run[1]/ck` at all: such files it sees under another name.
    """
    if not _PATTERN.search(files.prefix):
        yield files.prefix + files.ending
        return
    with tempfile.TemporaryDirectory(prefix="keras-trainops-") as directory:
        prefix = os.path.join(directory, "ck")
        for path in files.paths:
            os.symlink(path, prefix + path.removeprefix(files.prefix))
        yield prefix + files.ending
