"""The one protocol of checkpoint readers, and how a format is recognised."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import string
import zipfile
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias, TypeVar

import numpy as np

from keras_trainops.readers.errors import RestoreError as RestoreError
from keras_trainops.readers.files import open_regular, require_file
from keras_trainops.readers.limits import refuse_unsafe_names
from keras_trainops.readers.locations import location_of
from keras_trainops.readers.raw import Checksum, Extent, Fingerprint, aligned, can_check

T = TypeVar("T")
Memory: TypeAlias = "Callable[[tuple[int, ...], np.dtype], np.ndarray]"
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
PIECE = 1 << 18  # elements: 1 MB of float32 stays in a processor's cache while it is looked at


class Checkpoint(Mapping[str, np.ndarray]):
    """A checkpoint as a lazy, read-only mapping from key to array.

    Listing the keys and asking for a shape or dtype reads no tensor. Use it as a context manager,
    or call `close()`.

    Attributes:
        location: Where it was opened, as the user gave it.
        format: What it is, for people, as in "TF2 object-based checkpoint".
        training_state: Keys that are no weights: optimizer slots, counters, seeds.
        checksums: Whether `_read` checks the tensor's checksum. Plain bytes then only count as
            checked where their extent has the checksum too.
    """

    format: str = ""
    training_state: frozenset[str] = frozenset()
    checksums: bool = False

    def __init__(self, location: str, files: Sequence[str] = ()) -> None:
        self.location = location
        self._fingerprint = Fingerprint(files)

    # A reader answers these; any exception of all but the first becomes a `RestoreError`.

    @abstractmethod
    def _keys(self) -> Mapping[str, Any]:
        """What the reader knows under each key, in the order of the file."""

    @abstractmethod
    def _shape(self, key: str) -> tuple[int, ...]: ...

    @abstractmethod
    def _dtype(self, key: str) -> np.dtype: ...

    def _extent(self, key: str) -> Extent | None:
        """Where the tensor lies as plain bytes of `_dtype`; None where `_read` has to be asked."""
        return None

    @abstractmethod
    def _read(self, key: str) -> np.ndarray:
        """The tensor, checked as the format allows, in an array that nobody else holds."""

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of the tensor under `key`, without reading it."""
        return self._ask(self._shape, key)

    def dtype(self, key: str) -> np.dtype:
        """The dtype of the tensor under `key`, without reading it."""
        return self._ask(self._dtype, key)

    def __getitem__(self, key: str) -> np.ndarray:
        return self._ask(self._fetch, key)

    def again(self, key: str, memory: Memory = aligned) -> np.ndarray:
        """The tensor that `pieces` has been through, without looking at its checksum again.

        Args:
            key: Its key.
            memory: Makes the array that is filled, where the tensor lies as plain bytes.
        """
        return self._ask(functools.partial(self._fetch_plain, memory), key)

    def _fetch(self, key: str) -> np.ndarray:
        return self._read(key) if self.checksums else self._fetch_plain(aligned, key)

    def _fetch_plain(self, memory: Memory, key: str) -> np.ndarray:
        extent = self._extent(key)
        if extent is None:
            return self._read(key)
        array = memory(self._shape(key), self._dtype(key))
        extent.read_into(array)
        return array

    def in_pieces(self, key: str) -> bool:
        """Whether `pieces` reads the tensor piece by piece, and so may be called in threads."""
        return self._ask(self._checked_extent, key) is not None

    def _checked_extent(self, key: str) -> Extent | None:
        """Where plain bytes lie that are as well checked as those of `_read`."""
        extent = self._extent(key)
        if extent is None or not self.checksums:
            return extent
        return extent if extent.checksum is not None and can_check() else None

    def pieces(self, key: str) -> Iterator[np.ndarray]:
        """The elements in C order, `PIECE` at a time; a piece is valid until the next is asked for.

        What the checksum says is known behind the last.

        Where the tensor lies as plain bytes, no more than a piece of it is in memory.
        """
        extent = self._ask(self._checked_extent, key)
        if extent is None:
            elements = self[key].reshape(-1)
            yield from (elements[i : i + PIECE] for i in range(0, elements.size, PIECE))
            return
        size = math.prod(self.shape(key))
        buffer = np.empty(min(size, PIECE), self.dtype(key))
        checksum = Checksum(extent.checksum)
        for start in range(0, size, PIECE):
            piece = buffer[: size - start]
            self._ask(functools.partial(_read_piece, extent, piece, start), key)
            checksum.add(piece)
            yield piece
        self._ask(lambda key: checksum.require(), key)

    def require_unchanged(self) -> None:
        """Refuses to go on where somebody has written to the files since they were opened.

        Raises:
            RestoreError: It names the files.
        """
        changed = self._fingerprint.changed()
        if changed:
            raise RestoreError(
                f"{self.location!r} was changed while it was read: {', '.join(map(repr, changed))}."
            )

    def _ask(self, question: Callable[[str], T], key: str) -> T:
        if key not in self._keys():
            raise KeyError(key)
        try:
            return question(key)
        except RestoreError:
            raise
        except Exception as error:  # each library has its own classes for damaged data
            raise RestoreError(
                f"Cannot read {key!r} from {self.location!r} ({self.format}): {error}"
            ) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys())

    def __len__(self) -> int:
        return len(self._keys())

    def __contains__(self, key: object) -> bool:
        return key in self._keys()

    def close(self) -> None:
        """Closes the file. The arrays already read stay valid."""

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{self.format} {self.location!r}: {len(self)} tensors>"


def _read_piece(extent: Extent, piece: np.ndarray, start: int, key: str) -> None:
    extent.read_into(piece, start)


def open_checkpoint(path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> Checkpoint:
    """Opens a checkpoint of any supported format, recognised by content and not by its name.

    Formats: TF1 name-based checkpoints, TF2 object-based checkpoints, SavedModel directories,
    `.weights.h5` and its shards, `.keras` (file or directory), legacy Keras HDF5 (weights or whole
    model), `.npz`, `.npy`, `.safetensors` and its index, PyTorch state dicts, Orbax directories,
    and what a `TrainingSession` saved: its log directory means the newest checkpoint in it.

    Args:
        path: A file, a directory, or the prefix of a TensorFlow checkpoint, on this machine. `~`
            is expanded, and a `file://` URL is a path.

    Returns:
        A lazy `Mapping` from key to `numpy.ndarray`, with `shape(key)` and `dtype(key)`.

    Raises:
        RestoreError: If there is nothing at `path`, it is on another machine (`gs://…`), no regular
            file, damaged, or of no supported format.

    Example:
        >>> import numpy as np
        >>> np.savez("weights.npz", **{"head/kernel": np.ones((2, 3), "float32")})
        >>> with open_checkpoint("weights.npz") as checkpoint:
        ...     print(checkpoint.shape("head/kernel"), checkpoint.dtype("head/kernel"))
        (2, 3) float32
    """
    text = location_of(path)
    try:
        with contextlib.ExitStack() as refused:
            checkpoint = refused.enter_context(_recognise(text)(text))
            refuse_unsafe_names(checkpoint, text)
            refused.pop_all()  # it stays open
            return checkpoint
    except RestoreError:
        raise
    except Exception as error:  # each library has its own classes for damaged files
        raise RestoreError(
            f"Cannot open {text!r}: it looks damaged or cut short ({type(error).__name__}: {error})"
        ) from error


def _recognise(text: str) -> Callable[[str], Checkpoint]:
    from keras_trainops.readers import (
        keras_archive,
        keras_weights,
        legacy_h5,
        npz,
        orbax_directory,
        safetensors_file,
        session_directory,
        tf_checkpoint,
        torch_file,
    )

    path = Path(text)
    if tf_checkpoint.is_checkpoint(text):
        return tf_checkpoint.open_prefix
    if path.is_dir():
        if (path / keras_archive.MEMBER).is_file():
            return keras_archive.open_directory
        if tf_checkpoint.in_directory(path):
            return tf_checkpoint.open_directory
        if session_directory.in_directory(path):
            return session_directory.open_directory
        if orbax_directory.in_directory(path):
            return orbax_directory.OrbaxCheckpoint
        raise RestoreError(_no_checkpoint(text, _listing(path)))
    if not path.exists():
        raise RestoreError(_missing(path))
    require_file(text)
    head = _first_bytes(path, 16)
    if head.startswith(_HDF5_MAGIC):
        return legacy_h5.open_file if legacy_h5.is_legacy(text) else keras_weights.open_file
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if keras_archive.is_archive(archive):
                return keras_archive.open_archive
            return torch_file.open_file if torch_file.is_archive(archive) else npz.open_file
    if head.startswith(npz.NPY_MAGIC):
        return npz.open_array
    if torch_file.is_legacy(head):
        return torch_file.open_file
    if safetensors_file.has_header(head):
        return safetensors_file.open_file
    return _recognise_index(text, head)


def _recognise_index(text: str, head: bytes) -> Callable[[str], Checkpoint]:
    """A file of text may be the index of a sharded checkpoint; the shards tell of which kind."""
    from keras_trainops.readers import keras_shards, safetensors_index, shards

    files = shards.weight_map(text) if head.lstrip().startswith(b"{") else None
    if files is None:
        raise RestoreError(_no_checkpoint(text, _reading_of(head)))
    first = Path(next(iter(files.values()))[0])
    if _first_bytes(first, len(_HDF5_MAGIC)) == _HDF5_MAGIC:
        return lambda location: keras_shards.KerasShardsCheckpoint(location, files)
    return lambda location: safetensors_index.SafetensorsIndexCheckpoint(location, files)


def _first_bytes(path: Path, count: int) -> bytes:
    with open_regular(str(path)) as file:
        return file.read(count)


def _missing(path: Path) -> str:
    message = f"There is no checkpoint at {str(path)!r}."
    if path.parent.is_dir():
        return f"{message} {_listing(path.parent)}"
    return f"{message} Its directory does not exist either."


def _listing(directory: Path, count: int = 8) -> str:
    names = sorted(entry.name for entry in directory.iterdir())
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return f"The directory {str(directory)!r} holds: {', '.join(names[:count]) or 'nothing'}{more}."


def _reading_of(head: bytes) -> str:
    if not head:
        return "The file is empty."
    if head.startswith(b"PK"):
        return "It starts as a zip archive but has no readable end: it was cut short."
    if head.startswith(b"MATLAB 7.3"):
        return (
            "It is a MATLAB 7.3 file. Pass arrays instead: the `h5py.File` is a mapping of them, "
            "with axes in reverse order."
        )
    if head.startswith(b"MATLAB"):
        return "It is a MATLAB file. Pass arrays instead: `scipy.io.loadmat` makes a mapping of it."
    if not head.translate(None, string.printable.encode()):
        return (
            f"It starts with the bytes {head!r}: text. Of a table of numbers pass arrays instead, "
            "as `numpy.loadtxt` makes them."
        )
    return f"It starts with the bytes {head!r}."


def _no_checkpoint(text: str, found: str) -> str:
    return (
        f"{text!r} is no checkpoint of a supported format. {found} Supported are TensorFlow "
        "checkpoints (TF1, TF2, SavedModel), .weights.h5 and .weights.json, .keras, legacy Keras "
        "HDF5, .npz, .npy, .safetensors and its index, PyTorch state dicts, Orbax directories and "
        "what a TrainingSession saved."
    )
