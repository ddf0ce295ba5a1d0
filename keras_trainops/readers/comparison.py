"""What two checkpoints differ in: keys, shapes, dtypes and values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from keras_trainops.readers.base import Checkpoint
from keras_trainops.readers.statistics import is_real


class Unlike(NamedTuple):
    """A key whose tensors have other shapes, or other dtypes (by name)."""

    key: str
    first: tuple[int, ...] | str
    second: tuple[int, ...] | str


class Difference(NamedTuple):
    """How far the values of two tensors of one shape are apart.

    Attributes:
        key: Their key.
        unequal: How many values differ by more than the tolerance; NaN equals NaN.
        size: How many there are.
        absolute: The largest difference of two finite values.
        relative: The largest such difference as a part of the larger value's magnitude.
        non_finite: How many differ in that they are NaN or infinite, in one of the two at least.
    """

    key: str
    unequal: int
    size: int
    absolute: float
    relative: float
    non_finite: int


@dataclass
class Comparison:
    """What differs between two checkpoints.

    Attributes:
        only_first, only_second: Keys that only one has.
        shapes, dtypes: Keys of both whose tensors differ in shape, and in dtype.
        values: Keys of both whose values differ, the largest absolute difference first.
        equal: How many keys have the same values, shape and dtype in both.
    """

    only_first: list[str] = field(default_factory=list)
    only_second: list[str] = field(default_factory=list)
    shapes: list[Unlike] = field(default_factory=list)
    dtypes: list[Unlike] = field(default_factory=list)
    values: list[Difference] = field(default_factory=list)
    equal: int = 0

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        unlike = (self.only_first, self.only_second, self.shapes, self.dtypes, self.values)
        return not any(unlike)


def compare(
    first: Checkpoint,
    second: Checkpoint,
    *,
    leave_out: Collection[str] = (),
    absolute: float = 0.0,
    relative: float = 0.0,
    progress: Callable[[int], None] = lambda nbytes: None,
) -> Comparison:
    """Compares two checkpoints tensor by tensor, each piece by piece.

    Two values differ if `|a - b| > absolute + relative * |b|`, as for `numpy.isclose`.

    Args:
        first: One checkpoint.
        second: The other, `b` above.
        leave_out: Keys that are not compared.
        absolute: See above.
        relative: See above.
        progress: Is told how many bytes of the first were compared.

    Raises:
        RestoreError: If a tensor cannot be read.
    """
    ours = [key for key in first if key not in leave_out]
    theirs = [key for key in second if key not in leave_out]
    found = Comparison(
        only_first=[key for key in ours if key not in second],
        only_second=[key for key in theirs if key not in first],
    )
    for key in (key for key in ours if key in second):
        shape, dtype = first.shape(key), first.dtype(key)
        if shape != second.shape(key):
            found.shapes.append(Unlike(key, shape, second.shape(key)))
            continue
        if dtype != second.dtype(key):
            found.dtypes.append(Unlike(key, dtype.name, second.dtype(key).name))
        pairs = zip(first.pieces(key), second.pieces(key), strict=True)
        difference = _difference(key, pairs, absolute, relative, progress)
        if difference.unequal:
            found.values.append(difference)
        elif dtype == second.dtype(key):
            found.equal += 1
    found.values.sort(key=lambda d: (d.non_finite > 0, d.absolute, d.relative), reverse=True)
    return found


def _difference(
    key: str,
    pairs: Iterable[tuple[np.ndarray, np.ndarray]],
    absolute: float,
    relative: float,
    progress: Callable[[int], None],
) -> Difference:
    unequal = size = non_finite = 0
    largest, largest_part = 0.0, 0.0
    for one, other in pairs:
        a, b = _wide(one), _wide(other)
        both = np.isfinite(a) & np.isfinite(b)
        odd = ~both & ~((a == b) | (np.isnan(a) & np.isnan(b)))
        non_finite += int(odd.sum())
        a, b = a[both], b[both]
        apart = np.abs(a - b)
        unequal += int((apart > absolute + relative * np.abs(b)).sum()) + int(odd.sum())
        size += one.size
        largest = max(largest, float(apart.max(initial=0.0)))
        magnitude = np.maximum(np.abs(a), np.abs(b))
        parts = np.divide(apart, magnitude, out=np.zeros_like(apart), where=magnitude > 0)
        largest_part = max(largest_part, float(parts.max(initial=0.0)))
        progress(one.nbytes)
    return Difference(key, unequal, size, largest, largest_part, non_finite)


def _wide(values: np.ndarray) -> np.ndarray:
    """In float64 or, if they are no real numbers, complex128."""
    return values.astype(np.float64 if is_real(values.dtype) else np.complex128)
