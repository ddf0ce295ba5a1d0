"""Statistics of a tensor's values, computed piece by piece."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


class Statistics(NamedTuple):
    """Statistics of the finite values of a tensor; None if it has no finite value.

    Attributes:
        minimum, maximum, mean, std: Computed in float64; `std` is the population standard
            deviation (`ddof=0`).
        nan, infinite: Number of NaN and of infinite values.
    """

    minimum: float | None
    maximum: float | None
    mean: float | None
    std: float | None
    nan: int
    infinite: int


def statistics(pieces: Iterable[np.ndarray]) -> Statistics:
    """Compute the statistics of real numbers, with one piece in memory at a time.

    Args:
        pieces: Arrays of real numbers, of any shape.

    Returns:
        The statistics of all values.

    Example:
        >>> import numpy as np
        >>> statistics([np.array([1.0, np.nan]), np.array([3.0, np.inf])])
        Statistics(minimum=1.0, maximum=3.0, mean=2.0, std=1.0, nan=1, infinite=1)

    References: Chan, Golub & LeVeque (1979), for combining the means and squares of parts.
    """
    count, nan, infinite = 0, 0, 0
    mean, squares = 0.0, 0.0  # `squares` of deviations from the mean; both in multiples of `unit`
    unit = float(np.finfo(np.float64).tiny)
    low, high = math.inf, -math.inf
    for piece in pieces:
        values = piece.reshape(-1).astype(np.float64)
        finite = values[np.isfinite(values)]
        not_numbers = int(np.isnan(values).sum())
        nan, infinite = nan + not_numbers, infinite + values.size - finite.size - not_numbers
        if not finite.size:
            continue
        low, high = min(low, float(finite.min())), max(high, float(finite.max()))
        # A power of two near the largest magnitude keeps squares and sums within float64.
        larger = max(unit, 2.0 ** (math.frexp(max(-low, high))[1] - 1))
        mean, squares, unit = mean * (unit / larger), squares * (unit / larger) ** 2, larger
        finite /= unit
        here = float(finite.mean())
        apart, total = here - mean, count + finite.size
        squares += float(np.square(finite - here).sum()) + apart**2 * count * finite.size / total
        mean += apart * finite.size / total
        count = total
    if not count:
        return Statistics(None, None, None, None, nan, infinite)
    mean = min(max(mean * unit, low), high)  # rounding may have moved it outside
    std = min(math.sqrt(squares / count) * unit, high / 2 - low / 2)
    return Statistics(low, high, mean, std, nan, infinite)
