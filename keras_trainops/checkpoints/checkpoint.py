"""The protocol of checkpoints: a lazy mapping from key to array."""

from __future__ import annotations

import contextlib
import functools
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np

from keras_trainops.checkpoints.dtypes import nbytes
from keras_trainops.checkpoints.storage.parts import (
    Index,
    aligned_copy,
    normalized,
    read_part,
    shape_of,
    whole,
)
from keras_trainops.checkpoints.storage.raw import Extent, Fingerprint, aligned
from keras_trainops.errors import RestoreError

Memory: TypeAlias = "Callable[[tuple[int, ...], np.dtype], np.ndarray]"
PIECE = 1 << 16  # elements: with its source, it fits into the second-level cache of a processor


class Checkpoint(Mapping[str, np.ndarray]):
    """A checkpoint as a lazy, read-only mapping from key to array.

    Listing the keys and asking for a shape or dtype reads no tensor. Use it as a context manager,
    or call `close()`.

    Args:
        location: The path or prefix, as the user gave it.
        files: Paths of the files, compared by `require_unchanged`.

    Attributes:
        location: The path or prefix, as the user gave it.
        format: A description of the format, such as "TF2 object-based checkpoint".
        training_state: Keys of optimizer slots, counters and seeds rather than weights.
        opened_as: The `Format` that opened it; None for arrays in memory.
        checksums: If True, `_read` verifies checksums. Plain bytes then count as verified only if
            their extent has a checksum.
    """

    format: str = ""
    training_state: frozenset[str] = frozenset()
    checksums: bool = False
    opened_as: Any = None

    def __init__(self, location: str, files: Sequence[str] = ()) -> None:
        self.location = location
        self._fingerprint = Fingerprint(files)

    # Subclasses implement these. All but `_keys` may raise anything, which becomes `RestoreError`.

    @abstractmethod
    def _keys(self) -> Mapping[str, Any]:
        """Return a mapping from key to the reader's own data, in the order of the file."""

    @abstractmethod
    def _shape(self, key: str) -> tuple[int, ...]: ...

    @abstractmethod
    def _dtype(self, key: str) -> np.dtype: ...

    def _extent(self, key: str) -> Extent | None:
        """Return the place of a tensor stored as plain bytes of `_dtype`; None to use `_read`."""
        return None

    @abstractmethod
    def _read(self, key: str) -> np.ndarray:
        """Return the tensor, verified as far as the format allows, in an array of its own."""

    def _read_part(self, key: str, index: Index) -> np.ndarray:
        """Return a part of a tensor without an extent; by default, of the whole tensor."""
        return aligned_copy(self._read(key)[index])

    def _structure(self) -> Mapping[str, Any]:
        """Return what `structure` returns; it is called once."""
        return {}

    def structure(self) -> Mapping[str, Any]:
        """Return what the files contain beside the tensors, for a writer of the same format.

        Returns:
            By the name of a format, plain data (lists, dicts with strings as keys, strings,
            numbers, None), which a plan stores as JSON. A writer uses the entry under its own name
            and ignores the others. Default: none.

        Raises:
            RestoreError: If it cannot be read.
        """
        return self._cached_structure

    @functools.cached_property
    def _cached_structure(self) -> Mapping[str, Any]:
        with self._translating("the structure"):
            return self._structure()

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of the tensor under `key` without reading it."""
        with self._reading(key):
            return self._shape(key)

    def dtype(self, key: str) -> np.dtype:
        """Return the dtype of the tensor under `key` without reading it."""
        with self._reading(key):
            return self._dtype(key)

    def nbytes(self, key: str) -> int:
        """Return the size in bytes of the tensor under `key` without reading it."""
        return nbytes(self.shape(key), self.dtype(key))

    def __getitem__(self, key: str) -> np.ndarray:
        with self._reading(key):
            return self._read(key) if self.checksums else self._fetch_plain(key, aligned)

    def again(self, key: str, memory: Memory = aligned) -> np.ndarray:
        """Read a tensor that `pieces` has verified, without verifying its checksum again.

        Args:
            key: The tensor's key.
            memory: Returns the array to fill, given its shape and dtype. Only used for tensors
                that are stored as plain bytes.
        """
        with self._reading(key):
            return self._fetch_plain(key, memory)

    def _fetch_plain(self, key: str, memory: Memory) -> np.ndarray:
        extent = self._extent(key)
        if extent is None:
            return self._read(key)
        array = memory(self._shape(key), self._dtype(key))
        extent.read_into(array)
        return array

    def part(self, key: str, index: Index) -> np.ndarray:
        """Read a part of a tensor, and little else as far as the format allows.

        The checksum of a tensor covers all of it, so it is only verified if the part is the whole
        tensor.

        Args:
            key: The tensor's key.
            index: One slice per axis, with steps of 1: `(slice(0, 10), slice(None))`.

        Returns:
            The part, in an array of its own.

        Raises:
            RestoreError: If it cannot be read.
            ValueError: If the index has other axes than the tensor, or another step.
        """
        shape = self.shape(key)
        index = normalized(index, shape)
        if index == whole(shape):
            return self[key]
        with self._reading(key):
            extent = self._extent(key)
            if extent is None:
                return self._read_part(key, index)
            part = aligned(shape_of(index), self._dtype(key))
            read_part(extent, shape, index, part)
            return part

    def in_parts(self, key: str) -> bool:
        """Return True if `part` reads plain bytes, about as many as the part has."""
        with self._reading(key):
            return self._extent(key) is not None

    def in_pieces(self, key: str) -> bool:
        """Return True if `pieces` reads the tensor piece by piece, and so may run in threads."""
        with self._reading(key):
            return self._verifiable_extent(key) is not None

    def _verifiable_extent(self, key: str) -> Extent | None:
        """Return the extent if reading it verifies as much as `_read` does."""
        extent = self._extent(key)
        if extent is None or not self.checksums:
            return extent
        return extent if extent.checksum is not None else None

    def pieces(self, key: str, memory: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """Yield the elements in C order, `PIECE` at a time.

        A piece is valid until the next one is requested. The checksum is verified after the last
        piece. If the tensor is stored as plain bytes, only one piece is in memory at a time.

        Args:
            key: The tensor's key.
            memory: A flat array of as many elements. If it has the tensor's dtype, plain bytes are
                read into it, and the pieces are parts of it, which stay valid.
        """
        with self._reading(key):
            extent = self._verifiable_extent(key)
            if extent is None:
                yield from pieces_of(self[key])
                return
            size, dtype = math.prod(self._shape(key)), self._dtype(key)
            if memory is None or memory.dtype != dtype:
                memory = np.empty(min(size, PIECE), dtype)
            checksum = extent.checksum
            found = 0 if checksum is None else checksum.before
            for start in range(0, size, PIECE):
                place = start if memory.size == size else 0  # else it is used again and again
                piece = memory[place : place + min(PIECE, size - start)]
                extent.read_into(piece, start)
                if checksum is not None:
                    found = checksum.extend(found, piece.view(np.uint8))
                yield piece
            if checksum is not None:
                checksum.require(found)

    @property
    def files(self) -> Sequence[str]:
        """The paths of its files, as far as they are known."""
        return self._fingerprint.paths

    def require_unchanged(self) -> None:
        """Raise if the files were written to since they were opened.

        Raises:
            RestoreError: If a file has changed; the message names the files.
        """
        changed = self._fingerprint.changed()
        if changed:
            raise RestoreError(
                f"{self.location!r} was changed while it was read: {', '.join(map(repr, changed))}."
            )

    @contextlib.contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        if key not in self._keys():
            raise KeyError(key)
        with self._translating(repr(key)):
            yield

    @contextlib.contextmanager
    def _translating(self, what: str) -> Iterator[None]:
        try:
            yield
        except RestoreError:
            raise
        except Exception as error:  # each library has its own classes for damaged data
            raise RestoreError(
                f"Cannot read {what} from {self.location!r} ({self.format}): {error}"
            ) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys())

    def __len__(self) -> int:
        return len(self._keys())

    def __contains__(self, key: object) -> bool:
        return key in self._keys()

    def close(self) -> None:
        """Close the file. Arrays that were read stay valid."""

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


def pieces_of(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the elements of an array in C order, `PIECE` at a time."""
    elements = array.reshape(-1)
    for start in range(0, elements.size, PIECE):
        yield elements[start : start + PIECE]
