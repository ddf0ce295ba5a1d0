"""What two checkpoints differ in: keys, shapes, dtypes and values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from keras_trainops.checkpoints.arrays import is_real
from keras_trainops.checkpoints.checkpoint import Checkpoint


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
        absolute: The largest difference of two finite values, infinite if float64 has no room for
            it; 0 for text and other values that are no numbers.
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

    Two numbers differ if `|a - b| > absolute + relative * |b|`, as for `numpy.isclose`; other
    values, as text, if they are not equal. The order of bytes makes no other dtype.

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
        shape = first.shape(key)
        dtype, other = (file.dtype(key).newbyteorder("=") for file in (first, second))
        if shape != second.shape(key):
            found.shapes.append(Unlike(key, shape, second.shape(key)))
            continue
        if dtype != other:
            found.dtypes.append(Unlike(key, dtype.name, other.name))
        pairs = _told(first.pieces(key), second.pieces(key), progress)
        if _is_number(dtype) and _is_number(other):
            difference = _difference(key, pairs, absolute, relative)
        else:
            difference = _difference_of_others(key, pairs)
        if difference.unequal:
            found.values.append(difference)
        elif dtype == other:
            found.equal += 1
    found.values.sort(key=lambda d: (d.non_finite > 0, d.absolute, d.relative), reverse=True)
    return found


def _told(
    first: Iterable[np.ndarray], second: Iterable[np.ndarray], progress: Callable[[int], None]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pieces of both, of which `progress` is told once they were looked at."""
    for one, other in zip(first, second, strict=True):
        yield one, other
        progress(one.nbytes)


def _difference(
    key: str, pairs: Iterable[tuple[np.ndarray, np.ndarray]], absolute: float, relative: float
) -> Difference:
    unequal = size = non_finite = 0
    largest, largest_part = 0.0, 0.0
    for one, other in pairs:
        a, b = _wide(one), _wide(other)
        both = np.isfinite(a) & np.isfinite(b)
        odd = ~both & ~((a == b) | (np.isnan(a) & np.isnan(b)))
        non_finite += int(odd.sum())
        with np.errstate(over="ignore", invalid="ignore"):  # two values at the ends of float64
            apart = _apart(one, other)[both]
            a, b = np.abs(a[both]), np.abs(b[both])
            unequal += int((apart > absolute + relative * b).sum()) + int(odd.sum())
            magnitude = np.maximum(a, b)
            parts = np.divide(apart, magnitude, out=np.zeros_like(apart), where=magnitude > 0)
        size += one.size
        largest = max(largest, float(apart.max(initial=0.0)))
        largest_part = max(largest_part, float(parts.max(initial=0.0)))
    return Difference(key, unequal, size, largest, largest_part, non_finite)


def _difference_of_others(key: str, pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> Difference:
    unequal = size = 0
    for one, other in pairs:
        # As objects, since NumPy has no comparison for some pairs of dtypes, as text and numbers.
        unequal += int((one.astype(object) != other.astype(object)).sum())
        size += one.size
    return Difference(key, unequal, size, 0.0, 0.0, 0)


def _is_number(dtype: np.dtype) -> bool:
    """Whether values of this dtype are numbers, real or not, those of `ml_dtypes` among them."""
    return dtype.kind in "biufc" or (dtype.kind == "V" and dtype.type is not np.void)


def _apart(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Distances in float64, in which no two different integers are 0 apart."""
    integers = one.dtype.kind in "biu" and other.dtype.kind in "biu"
    if integers and np.result_type(one, other).kind != "f":  # as that of int64 and uint64 is
        high, low = np.maximum(one, other), np.minimum(one, other)
        # Modulo 2**64 the difference is right even where int64 has no room for it.
        return (high.astype(np.uint64) - low.astype(np.uint64)).astype(np.float64)
    return np.abs(_wide(one) - _wide(other))


def _wide(values: np.ndarray) -> np.ndarray:
    """In float64 or, if they are no real numbers, complex128."""
    return values.astype(np.float64 if is_real(values.dtype) else np.complex128)
