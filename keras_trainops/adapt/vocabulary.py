"""The adapter for tensors with one slice per entry of a vocabulary."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from keras_trainops.adapt.base import OneTensor, Shape, axis_of, with_length
from keras_trainops.adapt.slices import (
    Default,
    checked_default,
    constructor_call,
    require_default,
    scatter,
)

Vocabulary: TypeAlias = "str | os.PathLike[str] | Iterable[Hashable]"


class Rows(OneTensor):
    """Moves the slices of a vocabulary's entries to their indices in another vocabulary.

    Use it for the rows of an embedding, for the columns of an output layer (`axis=-1`), or for
    both, as `[Rows(words, new_words), Rows(classes, new_classes, axis=1)]`. For a head with
    different classes, the class names are the vocabularies. Entries may be in any order; entries of
    the old vocabulary alone are dropped. The `repr`, and so the report, says how many slices were
    carried over.

    Args:
        old_vocabulary: Entries of the tensor in order, or the path of a text file with one entry
            per line. The tensor may have more slices, e.g. for out-of-vocabulary entries; these
            are dropped.
        new_vocabulary: Entries of the variable, in the same form.
        axis: The axis with one slice per entry.
        default: Value of new entries; see `Pad`. None keeps the variable's values, e.g. its initial
            ones.
        oov: Number of out-of-vocabulary slices after the vocabulary of the variable; they get
            `default`. (Lookup layers of Keras put theirs first, and list them in
            `get_vocabulary()`: with such vocabularies they are ordinary entries.)
        old_size: Number of leading entries of the old vocabulary to use. Default: all.
        new_size: Number of leading entries of the new vocabulary to use. Default: all.

    Raises:
        ValueError: If a vocabulary repeats an entry or has fewer entries than its size, if a file
            cannot be read, or if the vocabularies have no entry in common.

    Example:
        >>> import keras_trainops as kt
        >>> rows = kt.adapt.Rows(["cat", "dog", "cow"], ["dog", "emu", "cat"], oov=1, default=0.0)
        >>> rows.shape([(3, 64)], target=(4, 64))
        (4, 64)
        >>> rows
        Rows(2 of 3 slices carried over, axis=0, default=0.0, oov=1)

    References: `VocabInfo` of tf.estimator's warm start (`new_vocab_size`, `num_oov_buckets`,
    `old_vocab_size`, `backup_initializer`, `axis`), where new entries default to zeros.
    """

    def __init__(
        self,
        old_vocabulary: Vocabulary,
        new_vocabulary: Vocabulary,
        axis: int = 0,
        default: Default = None,
        oov: int = 0,
        old_size: int | None = None,
        new_size: int | None = None,
    ) -> None:
        if oov < 0:
            raise ValueError(f"`oov` must be a number of slices ≥ 0. Received: oov={oov}")
        old = _entries("old", old_vocabulary, old_size)
        new = _entries("new", new_vocabulary, new_size)
        index_of = {entry: i for i, entry in enumerate(old)}
        moves = [(index_of[entry], i) for i, entry in enumerate(new) if entry in index_of]
        if not moves:
            raise ValueError(
                "`old_vocabulary` and `new_vocabulary` must have entries in common. Received: "
                f"{_shown(old)} and {_shown(new)}"
            )
        self._old_indices, self._new_indices = [list(side) for side in zip(*moves, strict=True)]
        self._old_length, self._new_length = len(old), len(new)
        self.axis, self.default, self.oov = axis, checked_default(default), oov

    def _shape(self, shape: Shape, target: Shape) -> Shape:
        axis = axis_of(self.axis, shape)
        if shape[axis] < self._old_length:
            raise ValueError(
                f"`old_vocabulary` has {self._old_length} entries, but axis {self.axis} of the "
                f"tensor has only {shape[axis]} slices. `old_size=` limits it to its first entries"
            )
        length = self._new_length + self.oov
        wanted = target[axis_of(self.axis, target)]
        if wanted != length:
            raise ValueError(
                f"`new_vocabulary` has {self._new_length} entries, {length} with oov={self.oov}, "
                f"but axis {self.axis} of the variable has {wanted} slices"
            )
        require_default(self.default, shape, axis, length - len(self._new_indices))
        return with_length(shape, axis, length)

    def _adapt(self, array: np.ndarray, target: Shape) -> np.ndarray:
        axis = axis_of(self.axis, array.shape)
        kept = np.take(array, self._old_indices, axis)
        return scatter(kept, axis, self._new_length + self.oov, self._new_indices, self.default)

    def __repr__(self) -> str:
        call = constructor_call(self, self.axis, default=self.default, oov=self.oov or None)
        carried = f"{len(self._new_indices)} of {self._new_length} slices carried over"
        return call.replace("(", f"({carried}, ", 1)


def _entries(old_or_new: str, vocabulary: Vocabulary, size: int | None) -> Sequence[Hashable]:
    argument = f"`{old_or_new}_vocabulary`"
    if isinstance(vocabulary, (str, os.PathLike)):
        entries: list[Hashable] = [*_lines(argument, Path(vocabulary))]
    else:
        entries = np.asarray(vocabulary).tolist() if _is_array(vocabulary) else [*vocabulary]
    if size is not None:
        if not 0 < size <= len(entries):
            raise ValueError(
                f"`{old_or_new}_size` must be one of 1 … {len(entries)}, the number of entries in "
                f"{argument}. Received: {old_or_new}_size={size}"
            )
        entries = entries[:size]
    _require_distinct(argument, entries)
    return entries


def _require_distinct(argument: str, entries: Sequence[Hashable]) -> None:
    first: dict[Hashable, int] = {}
    for i, entry in enumerate(entries):
        if not isinstance(entry, Hashable):
            raise ValueError(f"{argument} must be a list of words or numbers. Received: {entry!r}")
        if first.setdefault(entry, i) != i:
            raise ValueError(
                f"{argument} must have distinct entries. Received: {entry!r} at {first[entry]} and "
                f"{i}"
            )


def _is_array(vocabulary: object) -> bool:
    return hasattr(vocabulary, "__array__")


def _lines(argument: str, path: Path) -> list[str]:
    """Read the lines of a file; as in TensorFlow, only a line feed ends a line."""
    try:
        text = path.read_bytes().decode("utf-8", errors="surrogateescape")
    except OSError as error:
        raise ValueError(f"{argument} cannot be read: {error}") from None
    lines = text.removesuffix("\n").split("\n")
    return [line.removesuffix("\r") for line in lines]


def _shown(entries: Sequence[Hashable]) -> str:
    return f"[{', '.join(map(repr, entries[:3]))}{', …' if len(entries) > 3 else ''}]"
