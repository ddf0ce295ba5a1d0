"""Tensors with a slice for each entry of a vocabulary, moved into another vocabulary."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from keras_trainops.adapt.base import OneTensor, Shape, axis_of, with_length
from keras_trainops.adapt.slices import Default, call, checked_default, place, require_default

Vocabulary: TypeAlias = "str | os.PathLike[str] | Iterable[Hashable]"


class Rows(OneTensor):
    """Moves the slices of a vocabulary's entries to where they stand in another vocabulary.

    For the rows of an embedding, the columns of an output layer (`axis=-1`), or both, as
    `[Rows(words, new_words), Rows(classes, new_classes, axis=1)]`; for a head with other classes,
    whose names are the vocabularies. An entry may stand anywhere; what only the old vocabulary has
    is dropped. The `repr`, and so the report, says how many slices were carried over.

    Args:
        old_vocabulary: The tensor's entries in order, or the path of a text file with one a line.
            The tensor may have more slices, as for entries out of the vocabulary: they are dropped.
        new_vocabulary: The same for the variable.
        axis: The axis with a slice for each entry.
        default: What new entries get; see `Pad`. None: they keep what the variable holds, as its
            initial values.
        oov: How many slices the variable has behind those of its vocabulary, for entries out of
            it; they get `default`. (Keras's lookup layers have theirs in front, and in
            `get_vocabulary()`: with that as the vocabularies they are entries as all others.)
        old_size: Only the first so many entries of the old vocabulary count; None: all.
        new_size: The same for the new vocabulary.

    Raises:
        ValueError: If a vocabulary has an entry twice or fewer entries than its size, a file cannot
            be read, or no entry is in both.

    Example:
        >>> import keras_trainops as kt
        >>> rows = kt.adapt.Rows(["cat", "dog", "cow"], ["dog", "emu", "cat"], oov=1, default=0.0)
        >>> rows.shape([(3, 64)], target=(4, 64))
        (4, 64)
        >>> rows
        Rows(2 of 3 slices carried over, axis=0, default=0.0, oov=1)

    References: `VocabInfo` of tf.estimator's warm start (`new_vocab_size`, `num_oov_buckets`,
    `old_vocab_size`, `backup_initializer`, `axis`); there `default` is zeros if not given.
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
        place_of = {entry: i for i, entry in enumerate(old)}
        moves = [(place_of[entry], i) for i, entry in enumerate(new) if entry in place_of]
        if not moves:
            raise ValueError(
                "`old_vocabulary` and `new_vocabulary` must have entries in common. Received: "
                f"{_shown(old)} and {_shown(new)}"
            )
        self._sources, self._places = [list(side) for side in zip(*moves, strict=True)]
        self._old, self._new = len(old), len(new)
        self.axis, self.default, self.oov = axis, checked_default(default), oov

    def _shape(self, shape: Shape, target: Shape) -> Shape:
        axis = axis_of(self.axis, shape)
        if shape[axis] < self._old:
            raise ValueError(
                f"`old_vocabulary` has {self._old} entries, and axis {self.axis} of the tensor "
                f"{shape[axis]} slices. With `old_size=` only the first entries count"
            )
        length = self._new + self.oov
        wanted = target[axis_of(self.axis, target)]
        if wanted != length:
            raise ValueError(
                f"`new_vocabulary` has {self._new} entries, which with oov={self.oov} is {length}, "
                f"and axis {self.axis} of the variable has {wanted} slices"
            )
        require_default(self.default, shape, axis, length - len(self._places))
        return with_length(shape, axis, length)

    def _adapt(self, array: np.ndarray, target: Shape) -> np.ndarray:
        axis = axis_of(self.axis, array.shape)
        moved = np.take(array, self._sources, axis)
        return place(moved, axis, self._new + self.oov, self._places, self.default)

    def __repr__(self) -> str:
        options = call(self, self.axis, default=self.default, oov=self.oov or None)
        carried = f"{len(self._places)} of {self._new} slices carried over"
        return options.replace("(", f"({carried}, ", 1)


def _entries(which: str, vocabulary: Vocabulary, size: int | None) -> Sequence[Hashable]:
    argument = f"`{which}_vocabulary`"
    if isinstance(vocabulary, (str, os.PathLike)):
        entries: list[Hashable] = [*_lines(argument, Path(vocabulary))]
    else:
        entries = np.asarray(vocabulary).tolist() if _is_array(vocabulary) else [*vocabulary]
    if size is not None:
        if not 0 < size <= len(entries):
            raise ValueError(
                f"`{which}_size` must be one of 1 … {len(entries)}, the number of entries in "
                f"{argument}. Received: {which}_size={size}"
            )
        entries = entries[:size]
    first: dict[Hashable, int] = {}
    for i, entry in enumerate(entries):
        if not isinstance(entry, Hashable):
            raise ValueError(f"{argument} must be a list of words or numbers. Received: {entry!r}")
        if first.setdefault(entry, i) != i:
            raise ValueError(
                f"{argument} must have each entry once. Received: {entry!r} at {first[entry]} and "
                f"{i}"
            )
    return entries


def _is_array(vocabulary: object) -> bool:
    return hasattr(vocabulary, "__array__")


def _lines(argument: str, path: Path) -> list[str]:
    """The lines of a file; as TensorFlow reads them, only a line feed ends one."""
    try:
        text = path.read_bytes().decode("utf-8", errors="surrogateescape")
    except OSError as error:
        raise ValueError(f"{argument} cannot be read: {error}") from None
    lines = text.removesuffix("\n").split("\n")
    return [line.removesuffix("\r") for line in lines]


def _shown(entries: Sequence[Hashable]) -> str:
    return f"[{', '.join(map(repr, entries[:3]))}{', …' if len(entries) > 3 else ''}]"
