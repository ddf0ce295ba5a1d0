"""Checkpoint formats: how to recognise, open and write one."""

from __future__ import annotations

import dataclasses
import functools
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.storage.files import open_regular
from keras_trainops.checkpoints.storage.shards import weight_map

_HEAD = 16  # bytes


class Candidate:
    """A path whose format is unknown. Each property reads the disk once, on first access.

    Args:
        location: The path as text.

    Attributes:
        location: The path as text; it may be the prefix of a TensorFlow checkpoint.
        path: The same as a `Path`, which may not exist.
    """

    def __init__(self, location: str) -> None:
        self.location = location
        self.path = Path(location)

    @functools.cached_property
    def is_directory(self) -> bool:
        """True if the path is a directory."""
        return self.path.is_dir()

    @functools.cached_property
    def head(self) -> bytes:
        """The first 16 bytes of a file; empty for a directory and for a missing file.

        Raises:
            RestoreError: If the path is a pipe, a device or another special file.
        """
        if self.is_directory or not self.path.exists():
            return b""
        return first_bytes(self.path)

    @functools.cached_property
    def members(self) -> frozenset[str] | None:
        """The names in a zip archive; None for other files."""
        if not self.head or not zipfile.is_zipfile(self.path):
            return None
        with zipfile.ZipFile(self.path) as archive:
            return frozenset(archive.namelist())

    @functools.cached_property
    def shard_head(self) -> bytes:
        """The first 16 bytes of the first shard that an index file lists; empty for other files."""
        files = weight_map(self.location) if self.head.lstrip().startswith(b"{") else None
        return first_bytes(Path(next(iter(files.values()))[0])) if files else b""


def first_bytes(path: Path, count: int = _HEAD) -> bytes:
    """Read the first bytes of a regular file."""
    with open_regular(str(path)) as file:
        return file.read(count)


class Writer(Protocol):
    """Writes tensors of a checkpoint to a new file, one at a time.

    If the checkpoint has this format, the new file has its structure: see `Checkpoint.structure`.
    """

    def __call__(
        self,
        path: Path,
        checkpoint: Checkpoint,
        keys: Mapping[str, str],
        progress: Callable[[int], None] = ...,
    ) -> Sequence[str] | None:
        """Write the file.

        Args:
            path: The new file, or the prefix of the new files, in an otherwise empty directory.
            checkpoint: The source of the tensors and of the structure.
            keys: Mapping from the name in the new file to the key in `checkpoint`, in the order
                of the new file.
            progress: Called with the number of bytes after each piece.

        Returns:
            Lines that tell the user what the source has and the new file has not, or None.

        Raises:
            UnwritableError: If the format cannot store a dtype or a name, or needs a structure
                that the checkpoint does not have; nothing is written.
            RestoreError: If a tensor cannot be read.
        """


@dataclasses.dataclass(frozen=True)
class Format:
    """A checkpoint format; see `register_format`.

    Attributes:
        name: Its name in messages, in the plural: "GGUF files".
        recognise: Returns True if a path is of this format. Must not raise for other formats.
        open: Returns the checkpoint at a path.
        suffix: The file name ending that selects `write`, such as `.npz`, or several. Without one,
            files of this format are only written like a file of the same format.
        write: Writes a file of this format; None if it can only be read.

    Example:
        >>> gguf = Format("GGUF files", lambda path: path.head.startswith(b"GGUF"), open=print)
    """

    name: str
    recognise: Callable[[Candidate], bool]
    open: Callable[[str], Checkpoint]
    suffix: str | tuple[str, ...] = ()
    write: Writer | None = None

    @property
    def suffixes(self) -> tuple[str, ...]:
        """The file name endings that select `write`."""
        suffixes = (self.suffix,) if isinstance(self.suffix, str) else self.suffix
        return tuple(filter(None, suffixes))
