"""Checkpoints that have the tensors of another checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from keras_trainops.checkpoints.checkpoint import Checkpoint, Memory
from keras_trainops.checkpoints.storage.parts import Index
from keras_trainops.checkpoints.storage.raw import Extent, aligned


class ForwardingCheckpoint(Checkpoint):
    """A checkpoint that reads every tensor from another one.

    Args:
        inner: The other checkpoint.
        location: The location for messages; None for that of `inner`.
    """

    def __init__(self, inner: Checkpoint, location: str | None = None) -> None:
        super().__init__(inner.location if location is None else location)
        self.inner = inner
        self.format = inner.format
        self.training_state = inner.training_state
        self.checksums = inner.checksums

    def _keys(self) -> Mapping[str, Any]:
        return self.inner

    def _shape(self, key: str) -> tuple[int, ...]:
        return self.inner.shape(key)

    def _dtype(self, key: str) -> np.dtype:
        return self.inner.dtype(key)

    def _extent(self, key: str) -> Extent | None:
        return self.inner._extent(key)

    def _read(self, key: str) -> np.ndarray:
        return self.inner[key]

    def __getitem__(self, key: str) -> np.ndarray:
        return self.inner[key]

    def again(self, key: str, memory: Memory = aligned) -> np.ndarray:
        return self.inner.again(key, memory)

    def part(self, key: str, index: Index) -> np.ndarray:
        return self.inner.part(key, index)

    def in_parts(self, key: str) -> bool:
        return self.inner.in_parts(key)

    def in_pieces(self, key: str) -> bool:
        return self.inner.in_pieces(key)

    def pieces(self, key: str, memory: np.ndarray | None = None) -> Iterator[np.ndarray]:
        return self.inner.pieces(key, memory)

    def _structure(self) -> Mapping[str, Any]:
        return self.inner.structure()

    @property
    def files(self) -> Sequence[str]:
        return self.inner.files

    def require_unchanged(self) -> None:
        self.inner.require_unchanged()

    def close(self) -> None:
        self.inner.close()


class Restructured(ForwardingCheckpoint):
    """The tensors of a checkpoint with another structure.

    Args:
        inner: The checkpoint.
        structure: What `structure()` returns.
    """

    def __init__(self, inner: Checkpoint, structure: Mapping[str, Any]) -> None:
        super().__init__(inner)
        self._given = structure

    def _structure(self) -> Mapping[str, Any]:
        return self._given
