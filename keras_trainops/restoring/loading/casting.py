"""Cast tensors to another dtype, and find values that it cannot hold."""

from __future__ import annotations

import numpy as np


class Casting:
    """Casts the pieces of a tensor and remembers what was lost.

    Args:
        dtype: The new dtype.
    """

    def __init__(self, dtype: np.dtype) -> None:
        self.dtype = dtype
        self._not_finite, self._all_kept = 0, True

    def check(self, piece: np.ndarray) -> None:
        """Examine a piece; cast it only if the dtype may not hold all values."""
        if piece.dtype.kind not in "biu":
            finite = np.isfinite(piece)
            self._not_finite += 0 if finite.all() else int(piece.size - np.count_nonzero(finite))
        if self._all_kept and not np.can_cast(piece.dtype, self.dtype):
            self._all_kept = _is_kept(piece, cast(piece, self.dtype))

    def __call__(self, piece: np.ndarray) -> np.ndarray:
        """Examine a piece and return it in the new dtype."""
        self.check(piece)
        return cast(piece, self.dtype)

    @property
    def complaint(self) -> str:
        """What is wrong with the pieces so far, after "the tensor"; empty if nothing is."""
        if self._not_finite:
            return f"has {self._not_finite} values that are NaN or infinite"
        return "" if self._all_kept else f"has values outside the range of {self.dtype}"


def cast(value: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return an array in another dtype, without warnings about values that do not fit."""
    if value.dtype == dtype:
        return value
    with np.errstate(all="ignore"):  # `Casting` reports them, with their place
        return value.astype(dtype, copy=False)


def _is_kept(raw: np.ndarray, value: np.ndarray) -> bool:
    """Return True if a cast kept integers exact (they may wrap around) and floats finite."""
    return bool((value == raw).all() if value.dtype.kind in "biu" else np.isfinite(value).all())
