"""The adapter for tensors with one slice per entry of a vocabulary."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from keras_trainops.adapt.axes import axis_of, scatter, whole_numbers, with_length
from keras_trainops.adapt.base import OneTensor, Shape
from keras_trainops.adapt.slices import (
    Default,
    checked_default,
    checked_indices,
    constructor_call,
    filled,
    plain,
    require_default,
    require_room,
    require_within,
    unpacked,
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

    resizes = True

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
        old_indices, new_indices = (list(side) for side in zip(*moves, strict=True))
        self._set(old_indices, new_indices, len(old), len(new), axis, checked_default(default), oov)

    def _set(
        self,
        old_indices: list[int],
        new_indices: list[int],
        old_length: int,
        new_length: int,
        axis: int,
        default: Any,
        oov: int,
    ) -> None:
        self._old_indices, self._new_indices = old_indices, new_indices
        self._old_length, self._new_length = old_length, new_length
        self.axis, self.default, self.oov = axis, default, oov

    def get_config(self) -> dict[str, Any]:
        """Return the indices of the entries in place of the vocabularies."""
        return {
            "old_indices": self._old_indices,
            "new_indices": self._new_indices,
            "old_length": self._old_length,
            "new_length": self._new_length,
            "axis": self.axis,
            "default": plain(self.default),
            "oov": self.oov,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Rows:
        old = checked_indices(config["old_indices"]) or []
        new = checked_indices(config["new_indices"]) or []
        lengths = whole_numbers("lengths", [config["old_length"], config["new_length"]])
        axis, oov = whole_numbers("axis and oov", [config["axis"], config["oov"]])
        for indices, length in zip((old, new), lengths, strict=True):
            require_within(indices, length, "vocabulary")
        if len(old) != len(new) or not old or oov < 0:
            raise ValueError("the indices of the two vocabularies do not belong together")
        rows = cls.__new__(cls)
        default = checked_default(unpacked(config["default"]))
        rows._set(old, new, lengths[0], lengths[1], axis, default, oov)
        return rows

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
        return filled(kept, axis, self._new_length + self.oov, self._new_indices, self.default)

    def _undo(self, array: np.ndarray, shape: Shape, target: Shape) -> np.ndarray:
        axis = axis_of(self.axis, shape)
        require_room(array.shape[axis] - len(self._new_indices))
        kept = np.take(array, self._new_indices, axis)
        return scatter(kept, axis, shape[axis], self._old_indices)

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
