"""Compare two checkpoints: keys, shapes, dtypes and values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np

from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.dtypes import is_real

_Pairs: TypeAlias = Iterable[tuple[np.ndarray, np.ndarray]]


class Unlike(NamedTuple):
    """A key with different shapes, or different dtypes (by name), in the two checkpoints."""

    key: str
    first: tuple[int, ...] | str
    second: tuple[int, ...] | str


class Difference(NamedTuple):
    """Differences between the values of two tensors of one shape.

    Attributes:
        key: The tensors' key.
        unequal: Number of values that differ by more than the tolerance; NaN equals NaN.
        size: Number of values.
        absolute: Largest difference of two finite values; infinite if it overflows float64, and 0
            for values that are not numbers.
        relative: Largest difference divided by the larger magnitude of the two values.
        non_finite: Number of differences in which at least one value is NaN or infinite.
    """

    key: str
    unequal: int
    size: int
    absolute: float
    relative: float
    non_finite: int


@dataclass
class Comparison:
    """Differences between two checkpoints.

    Attributes:
        only_first, only_second: Keys of only one of the two.
        shapes, dtypes: Common keys with different shapes, and with different dtypes.
        values: Common keys with different values, the largest absolute difference first.
        equal: Number of keys with equal shape, dtype and values.
    """

    only_first: list[str] = field(default_factory=list)
    only_second: list[str] = field(default_factory=list)
    shapes: list[Unlike] = field(default_factory=list)
    dtypes: list[Unlike] = field(default_factory=list)
    values: list[Difference] = field(default_factory=list)
    equal: int = 0

    @property
    def same(self) -> bool:
        """True if nothing differs."""
        unlike = (self.only_first, self.only_second, self.shapes, self.dtypes, self.values)
        return not any(unlike)


class _Tolerance(NamedTuple):
    absolute: float
    relative: float


def compare(
    first: Checkpoint,
    second: Checkpoint,
    *,
    leave_out: Collection[str] = (),
    absolute: float = 0.0,
    relative: float = 0.0,
    progress: Callable[[int], None] = lambda nbytes: None,
) -> Comparison:
    """Compare two checkpoints tensor by tensor, piece by piece.

    Numbers differ if `|a - b| > absolute + relative * |b|`, as in `numpy.isclose`; other values,
    such as text, if they are not equal. Byte order does not count as a difference of dtypes.

    Args:
        first: The checkpoint of `a`.
        second: The checkpoint of `b`.
        leave_out: Keys to ignore.
        absolute: The absolute tolerance.
        relative: The relative tolerance.
        progress: Called with the number of bytes after each piece of the first checkpoint.

    Returns:
        The differences.

    Raises:
        RestoreError: If a tensor cannot be read.
    """
    ours, theirs = _without(leave_out, first), _without(leave_out, second)
    found = Comparison(only_first=_without(second, ours), only_second=_without(first, theirs))
    tolerance = _Tolerance(absolute, relative)
    for key in ours:
        if key not in second:
            continue
        dtypes = (first.dtype(key).newbyteorder("="), second.dtype(key).newbyteorder("="))
        if first.shape(key) != second.shape(key):
            found.shapes.append(Unlike(key, first.shape(key), second.shape(key)))
            continue
        pairs = _pairs(first.pieces(key), second.pieces(key), progress)
        _add(found, _difference(key, pairs, dtypes, tolerance), dtypes)
    found.values.sort(key=lambda d: (d.non_finite > 0, d.absolute, d.relative), reverse=True)
    return found


def _without(others: Collection[str], keys: Iterable[str]) -> list[str]:
    return [key for key in keys if key not in others]


def _add(found: Comparison, difference: Difference, dtypes: tuple[np.dtype, np.dtype]) -> None:
    one, other = dtypes
    if one != other:
        found.dtypes.append(Unlike(difference.key, one.name, other.name))
    if difference.unequal:
        found.values.append(difference)
    elif one == other:
        found.equal += 1


def _pairs(
    first: Iterable[np.ndarray], second: Iterable[np.ndarray], progress: Callable[[int], None]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield pieces of both tensors; report each to `progress` once it was compared.

    Args:
        first: The pieces of one tensor.
        second: The pieces of the other, of the same sizes.
        progress: Called with the number of bytes of each piece of `first`.
    """
    for one, other in zip(first, second, strict=True):
        yield one, other
        progress(one.nbytes)


def _difference(
    key: str, pairs: _Pairs, dtypes: tuple[np.dtype, np.dtype], tolerance: _Tolerance
) -> Difference:
    """Return the differences between the values of two tensors.

    Args:
        key: The tensors' key.
        pairs: Pieces of both tensors.
        dtypes: The dtypes of both tensors.
        tolerance: The tolerance for numbers; other values must be equal.
    """
    if all(map(_is_number, dtypes)):
        return _difference_of_numbers(key, pairs, tolerance)
    return _difference_of_others(key, pairs)


def _difference_of_numbers(key: str, pairs: _Pairs, tolerance: _Tolerance) -> Difference:
    """Compare real or complex numbers; see `_difference` for the arguments."""
    unequal = size = non_finite = 0
    largest, largest_part = 0.0, 0.0
    for one, other in pairs:
        a, b = _wide(one), _wide(other)
        both = np.isfinite(a) & np.isfinite(b)
        odd = ~both & ~((a == b) | (np.isnan(a) & np.isnan(b)))
        non_finite += int(odd.sum())
        with np.errstate(over="ignore", invalid="ignore"):  # values at both ends of float64
            apart = _distance(one, other)[both]
            a, b = np.abs(a[both]), np.abs(b[both])
            allowed = tolerance.absolute + tolerance.relative * b
            unequal += int((apart > allowed).sum()) + int(odd.sum())
            magnitude = np.maximum(a, b)
            parts = np.divide(apart, magnitude, out=np.zeros_like(apart), where=magnitude > 0)
        size += one.size
        largest = max(largest, float(apart.max(initial=0.0)))
        largest_part = max(largest_part, float(parts.max(initial=0.0)))
    return Difference(key, unequal, size, largest, largest_part, non_finite)


def _difference_of_others(key: str, pairs: _Pairs) -> Difference:
    unequal = size = 0
    for one, other in pairs:
        # As objects: NumPy cannot compare some pairs of dtypes, such as text and numbers.
        unequal += int((one.astype(object) != other.astype(object)).sum())
        size += one.size
    return Difference(key, unequal, size, 0.0, 0.0, 0)


def _is_number(dtype: np.dtype) -> bool:
    """Return True for dtypes of real or complex numbers, including those of `ml_dtypes`."""
    return dtype.kind in "biufc" or (dtype.kind == "V" and dtype.type is not np.void)


def _distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return `|one - other|` in float64; it is never 0 for different integers."""
    integers = one.dtype.kind in "biu" and other.dtype.kind in "biu"
    if integers and np.result_type(one, other).kind != "f":  # int64 and uint64 promote to float64
        high, low = np.maximum(one, other), np.minimum(one, other)
        # Modulo 2**64 the difference is right even if it overflows int64.
        return (high.astype(np.uint64) - low.astype(np.uint64)).astype(np.float64)
    return np.abs(_wide(one) - _wide(other))


def _wide(values: np.ndarray) -> np.ndarray:
    """Convert real numbers to float64, others to complex128."""
    return values.astype(np.float64 if is_real(values.dtype) else np.complex128)
