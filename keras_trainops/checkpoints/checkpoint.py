"""The one protocol of checkpoint readers, and how a format is recognised."""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeAlias, TypeVar

import numpy as np

from keras_trainops.checkpoints.storage.raw import Checksum, Extent, Fingerprint, aligned, can_check
from keras_trainops.errors import RestoreError

T = TypeVar("T")
Memory: TypeAlias = "Callable[[tuple[int, ...], np.dtype], np.ndarray]"
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
